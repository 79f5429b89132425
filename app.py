"""The Space: zero-shot anomaly detection in a browser and as a service. What it does is in tipsomaly/service/."""

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from starlette.responses import JSONResponse
from starlette.routing import Route

from tipsomaly import ImageError, ModelError, __version__
from tipsomaly.detection import visualization
from tipsomaly.detection.calibration import Calibration
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.service import comparison, exports, uploads, verdict
from tipsomaly.service.comparison_tab import ComparisonTab
from tipsomaly.service.examples import Examples
from tipsomaly.service.exports import Inspection
from tipsomaly.service.space import Space
from tipsomaly.service.verdict_panel import VerdictPanel

HERE = Path(__file__).parent
CLASSES = (
    *("object", "bottle", "cable", "capsule", "carpet", "fabric", "hazelnut", "leather", "magnetic tile", "metal nut"),
    *("metal plate", "pcb", "perforated plate", "pill", "printed label", "screw", "skin", "solar cell", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),
)
BUTTONS = ["download", "fullscreen"]
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched
FILES_KEPT = 3600  # seconds
CSS = """
.gradio-container {max-width: 1320px !important; margin: auto; width: 100% !important}
.gradio-container .main.app {width: 100%}
.card {padding: 4px 2px; color: var(--body-text-color)}
.card .score {font-size: 2rem; font-weight: 600; line-height: 1.2}
.card .of {font-size: 1rem; font-weight: 400; color: var(--body-text-color-subdued)}
.card .anomalous {color: #c2410c} .dark .card .anomalous {color: #fb923c}
.card .normal {color: #047857} .dark .card .normal {color: #34d399}
.bar {position: relative; display: flex; height: 1.5rem; border-radius: 6px; overflow: hidden; margin: .5rem 0 .25rem;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary)}
.bar .global {background: #4f46e5} .bar .local {background: #d97706}
.bar .threshold {position: absolute; top: 0; bottom: 0; width: 3px; background: var(--body-text-color)}
.key {display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .9rem}
.key i {display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .35rem}
.key .global i {background: #4f46e5} .key .local i {background: #d97706}
.states {display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: .25rem 1.5rem}
.states h4 {margin: .5rem 0 .25rem} .states li {display: flex; justify-content: space-between; gap: .75rem}
.states ul {list-style: none; padding: 0; margin: 0} .states b {font-variant-numeric: tabular-nums; font-weight: 500}
.legend {display: flex; align-items: center; gap: .5rem; font-size: .9rem}
.legend span.ramp {flex: 1; height: .8rem; border-radius: 4px; max-width: 420px}
#examples .caption-label {font-size: .75rem; max-width: 95%; padding: 2px 4px}
@media (max-width: 600px) {
  .gradio-container .main.app {padding: 8px !important}
}
"""
METHOD = """
A frozen TIPS image-text model turns a picture into an object token, a spatial token and a grid of patch tokens, and a
sentence into a vector. *Fixed* prompts ("a bad photo of a flawless zipper.") give a normal and an abnormal prototype
for the image; *learned* prompts, trained with a local loss alone, give another pair for the patches. Every score is the
softmax of one prototype against the other. The anomaly map is the patches' probability, upsampled and smoothed. The
image score is the spatial token's probability plus the largest patch probability.
"""
ABOUT = """
### What you see here
The models on offer are named on the left. **nano**, the default, is a small model of TIPS' architecture (1.8 million
parameters) that we trained on drawn surfaces alone, so that everything runs offline in a moment. It finds plain
scratches, holes, cracks and stains better than chance, misses much, and knows only a few hundred words. It is not the
paper's model (TIPS-L/14-HR, 488 million parameters), and its results are not the paper's.

### Cite
Salehi, Karami, Noey, Noey, Yamada, Hosseini, Sabokrou: *TIPS Over Tricks: Simple Prompts for Effective Zero-shot
Anomaly Detection*, ICASSP 2026, [arXiv 2602.03594](https://arxiv.org/abs/2602.03594). TIPS: Maninis et al., ICLR 2025,
[arXiv 2410.16512](https://arxiv.org/abs/2410.16512).

### Licences
This code and nano: MIT. TIPS weights: Apache-2.0 / CC-BY 4.0, Google. The authors' learned prompts: MIT.
The example photographs are CC0; our own code composed the defects on them and drew the pictures that say so.
Sources and authors are in `examples/examples.json`.

### As a service
Every function of the page has an endpoint: `/detect`, `/localize`, `/compare`, `/batch`; `/health` says whether the
server is up. See *Use via API* at the foot of the page, and the README.
"""


# -- what is drawn as HTML; every word of a visitor is escaped ---------------------------------------------------------


def score_card(inspection: Inspection, where: str = "") -> str:
    """The score as a number and as a bar of its two parts, and the verdict if there is a threshold."""
    result = inspection.result
    shares = f"global {result.global_score:.3f} and local {result.local_score:.3f} of at most 1 each"
    threshold, most = result.image_threshold, sum(result.image_score.values())
    parts = {"spatial": result.global_score, "local": result.local_score}
    widths = {part: 100 * result.image_score.get(part, 0) * value / most for part, value in parts.items()}
    left = 100 * min((threshold or 0) / most, 1)
    tick = "" if threshold is None else f'<div class="threshold" style="left:{left:.2f}%"></div>'
    note = f"<p>Note: {escape(result.note)}.</p>" if result.note else ""
    kinds = ", ".join(f"<b>{escape(kind)}</b> {value:.2f}" for kind, value in list((result.kinds or {}).items())[:3])
    kinds = f'<p id="kinds">Kind of the strongest evidence: {kinds}</p>' if kinds else ""
    return f"""<div class="card" id="score-card">{verdict.card(inspection, where)}
<div class="score">{result.score:.3f} <span class="of">of {most:g} · {escape(result.class_name)}</span></div>
<div class="bar" role="img" aria-label="{shares}">
<div class="global" style="width:{widths["spatial"]:.2f}%"></div>
<div class="local" style="width:{widths["local"]:.2f}%"></div>{tick}</div>
<div class="key"><span class="global"><i></i>global, p_a(spatial token): <b>{result.global_score:.3f}</b></span>
<span class="local"><i></i>strongest local evidence: <b>{result.local_score:.3f}</b></span></div>
{kinds}{note}<p class="of">{inspection.seconds * 1000:.0f} ms</p></div>"""


def sentences(inspection: Inspection, count: int = 4) -> str:
    """The fixed sentences nearest to the picture, for each state."""

    def state(title: str, similarities: Mapping[str, float]) -> str:
        items = "".join(
            f"<li><span>{escape(t)}</span><b>{s:.3f}</b></li>" for t, s in list(similarities.items())[:count]
        )
        return f"<div><h4>{title}</h4><ul>{items}</ul></div>"

    columns = state("Loudest for normal", inspection.normal) + state("Loudest for abnormal", inspection.abnormal)
    return f'<div class="card">Cosine of the sentence with the spatial token<div class="states">{columns}</div></div>'


# -- the functions behind the page: what a visitor did wrong becomes one line ------------------------------------------


@contextmanager
def explained() -> Iterator[None]:
    """A visitor's mistake as one line of plain text, without the server's paths."""
    try:
        yield
    except ImageError as error:
        raise gr.Error(
            escape(f"This picture cannot be used: {uploads.reason(error)}."), print_exception=False
        ) from None
    except ValueError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from None


def chosen(image: str | None) -> str:
    """The picture, or a line that asks for one."""
    if image is None:
        raise gr.Error("Choose a picture first.", print_exception=False)
    return image


class Demo:
    """Handlers of events, over one Space. Their inputs and outputs are those of gradio's components."""

    def __init__(self, space: Space) -> None:
        self.space, self.examples = space, Examples(HERE / "examples")
        self.bundled = verdict.Bundled(space, self.examples)

    def inspect(
        self,
        image: str | None,
        class_name: str,
        domain: str,
        model: str,
        threshold: float,
        rescaled: bool,
        calibration: Calibration | None = None,
    ) -> tuple:
        """A picture, to everything on the first two tabs."""
        if image is None:  # the picture was taken away
            return None, EMPTY, None, None, "", *self.redraw(None, threshold, rescaled)
        with explained():
            known = None if calibration else self.bundled.calibration(image, class_name, domain, model)
            inspection = self.space.inspect(image, class_name, domain, model, calibration or known)
        start = inspection.result.pixel_threshold
        threshold = threshold if start is None else start
        return (
            inspection,
            score_card(inspection, self.bundled.WHERE if known else ""),
            inspection.shown.overlay(inspection.result.pixel_threshold),
            exports.record(inspection.result),
            sentences(inspection),
            *self.redraw(inspection, threshold, rescaled),
        )

    def pick(self, event: gr.SelectData) -> list[str]:
        """An example's picture, class and fixed prompts."""
        example = self.examples.all[event.index]
        return [str(example.picture), example.class_name, example.domain]

    def redraw(self, inspection: Inspection | None, threshold: float, rescaled: bool) -> tuple:
        """What depends on the threshold and the scale, from the last run's maps: the model does not run again."""
        if inspection is None:
            return threshold, None, comparison.legend(), None, None, [], None
        shown, result = inspection.shown, replace(inspection.result)
        low, high = (float(shown.anomaly_map.min()), float(shown.anomaly_map.max())) if rescaled else (0.0, 1.0)
        heatmap = visualization.heatmap((shown.anomaly_map - low) / max(high - low, 1e-6))
        regions = [[*region.box, region.area, round(region.peak, 3)] for region in result.regions(threshold)]
        return (
            threshold,
            (shown.image, heatmap),
            comparison.legend(low, high),
            exports.filled(shown, threshold),
            visualization.black_and_white(shown.mask(threshold)),
            regions,
            None,  # files of another threshold
        )

    def files(self, inspection: Inspection | None, threshold: float) -> Iterator[list[str]]:
        """Paths to download; gradio copies the files before the next step deletes them."""
        if inspection is None:
            raise gr.Error("Inspect a picture first.", print_exception=False)
        with explained(), TemporaryDirectory() as folder:
            yield [str(path) for path in exports.write_files(inspection.result, threshold, Path(folder))]

    def batch(
        self,
        files: list[str] | None,
        class_name: str,
        domain: str,
        model: str,
        calibration: Calibration | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple]:
        """Summary, gallery, table and files to download."""
        if not files:
            raise gr.Error("Choose pictures or a zip first.", print_exception=False)
        rows = []
        with explained(), TemporaryDirectory() as folder:
            for row in self.space.batch(files, class_name, domain, model, calibration):
                rows.append(row)
                progress(None, desc=f"{len(rows)} pictures")
            if not rows:
                raise ValueError("there is no picture in these files")
            cells, out = exports.table(rows), Path(folder)
            exports.write_csv(cells, out / "scores.csv")
            exports.write_overlays(rows, out / "overlays.zip")
            gallery = [
                (replace(r.result).overlay(), f"{r.result.score:.3f} {r.name}")
                for r in exports.ranked(rows)[:60]
                if r.result
            ]
            yield summary(rows), gallery, cells, [str(out / "scores.csv"), str(out / "overlays.zip")]

    def detect_endpoint(self, image: str | None, class_name: str, domain: str, model: str) -> dict:
        """Scores of a picture."""
        with explained():
            return exports.record(self.space.inspect(chosen(image), class_name, domain, model).result)

    def localize_endpoint(
        self, image: str | None, class_name: str, domain: str, model: str, threshold: float
    ) -> Iterator[tuple[dict, list[str]]]:
        """Scores and regions of a picture, and its files."""
        with explained(), TemporaryDirectory() as folder:
            result = self.space.inspect(chosen(image), class_name, domain, model).result
            paths = exports.write_files(result, threshold, Path(folder))
            yield exports.record(result, threshold), [str(path) for path in paths]

    def compare_endpoint(
        self,
        image: str | None,
        class_name: str,
        domain: str,
        model: str,
        normal: str,
        abnormal: str,
        mask: str | None,
    ) -> tuple[dict, list]:
        """Scores of a picture under each kind of prompts, and overlays with their names."""
        with explained():
            found = self.space.compare(chosen(image), class_name, domain, model, normal, abnormal, mask)
        data = {name: exports.record(r) | {"metrics": found.metrics.get(name)} for name, r in found.results.items()}
        return data, [(r.overlay(), name) for name, r in found.results.items()]


def summary(rows: list[exports.Row]) -> str:
    """A batch in one line of Markdown."""
    failed = sum(row.error is not None for row in rows)
    text = f"**{len(rows) - failed} pictures scored**, {failed} could not be used."
    full = f" At most {uploads.MAX_BATCH} are taken in one batch." if len(rows) == uploads.MAX_BATCH else ""
    return text + full


EMPTY = '<div class="card">Choose a picture or one of the examples: the result appears here.</div>'


def build(space: Space) -> gr.Blocks:
    """The page, and the endpoints."""
    demo = Demo(space)
    with gr.Blocks(title="Tipsomaly", delete_cache=(FILES_KEPT // 4, FILES_KEPT)) as app:
        inspection = gr.State(time_to_live=FILES_KEPT)
        picture = {"interactive": False, "format": "jpeg"}
        gr.Markdown(
            "# Tipsomaly\nIs the thing on this picture defective, and where? The model has never seen the product."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                image = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard", "webcam"],
                    height=280,
                    elem_id="picture",
                )
                class_name = gr.Dropdown(
                    list(CLASSES),
                    value="object",
                    allow_custom_value=True,
                    label="What is on it?",
                    info="choose, or type a word or two",
                )
                run = gr.Button("Inspect", variant="primary")
                samples = gr.Gallery(
                    [(str(example.picture), example.caption) for example in demo.examples.all],
                    label="Examples: good, and with a composed defect",
                    columns=2,  # a pair a row
                    height=420,
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                )
                with gr.Accordion("Model and prompts", open=False):
                    model = gr.Dropdown(space.choices, label="Model / learned prompts, for the map")
                    domain = gr.Radio(list(ENSEMBLES), value="industrial", label="Fixed prompts, for the image score")
            with gr.Column(scale=2, min_width=320), gr.Tabs(overflow_behavior="wrap"):
                settings = [class_name, domain, model]
                with gr.Tab("Detection") as tab_d:
                    card = gr.HTML(EMPTY)
                    overlay = gr.Image(label="Anomaly map over the picture", height=420, buttons=BUTTONS, **picture)
                    gr.HTML(comparison.legend())
                    verdicts = VerdictPanel(space, demo.examples, explained)
                    spoken = gr.HTML()
                    with gr.Accordion("As data", open=False):
                        data = gr.JSON(label="Scores")
                with gr.Tab("Localization") as tab_l:
                    slider = gr.ImageSlider(label="Picture | anomaly map", max_height=420, **picture)
                    scale = gr.HTML(comparison.legend())
                    with gr.Row():
                        threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold of the map", elem_id="threshold")
                        rescaled = gr.Checkbox(label="Stretch the colours to this picture")
                    with gr.Row():
                        outlined = gr.Image(label="Regions above the threshold", buttons=BUTTONS, **picture)
                        mask_view = gr.Image(label="Mask", buttons=BUTTONS, **picture)
                    regions = gr.Dataframe(
                        headers=["left", "top", "right", "bottom", "area (px)", "peak"],
                        label="Regions, strongest first, in pixels of the picture",
                        interactive=False,
                    )
                    make_files = gr.Button("Make files: overlay, mask, map (.npy, 16-bit PNG), regions (JSON)")
                    downloads = gr.File(
                        label="Files, at the picture's own size", file_count="multiple", interactive=False
                    )
                with gr.Tab("Prompt comparison") as tab_c:
                    comparing = ComparisonTab(space, demo.examples, explained)
                with gr.Tab("Batch") as tab_b:
                    gr.Markdown(
                        f"Many pictures of one class (the class, model and prompts are those beside the tabs); at most "
                        f"{uploads.MAX_BATCH}, as files or in a zip."
                    )
                    files_in = gr.File(label="Pictures or zip", file_count="multiple", height=140, elem_id="batch")
                    run_batch = gr.Button("Score the batch", variant="primary")
                    report = gr.Markdown("The table appears here, most anomalous first.")
                    scores = gr.Dataframe(headers=list(exports.HEADERS), label="Scores", interactive=False, wrap=True)
                    outputs = gr.File(label="Table (CSV) and overlays (zip)", file_count="multiple", interactive=False)
                    gallery = gr.Gallery(
                        label="Most anomalous first", columns=4, format="jpeg", height="auto", object_fit="contain"
                    )
                with gr.Tab("About") as tab_a:
                    gr.Markdown(f"### The method in five sentences\n{METHOD}")
                    gr.Image(
                        str(HERE / "examples" / "method.png"),
                        label="From picture to score",
                        interactive=False,
                        buttons=[],
                    )
                    gr.Markdown(ABOUT)

        drawn = [threshold, slider, scale, outlined, mask_view, regions, downloads]
        private = {"api_visibility": "private"}
        model_runs = {"concurrency_limit": 2, "concurrency_id": "model"}
        picked = [image, class_name, domain]
        pick = samples.select(demo.pick, None, picked, show_progress="hidden", **private)

        def judge(event):
            return event(
                demo.inspect,
                [image, *settings, threshold, rescaled, verdicts.calibration],
                [inspection, card, overlay, data, spoken, *drawn],
                **private,
                **model_runs,
            )

        for event in (run.click, image.input, pick.then):
            judge(event)
        verdicts.connect(image, settings, lambda e: judge(e.success), **model_runs)
        comparing.connect(tab_c, [tab_d, tab_l, tab_b, tab_a], image, settings, **model_runs)
        gr.on(
            [threshold.input, rescaled.input],
            demo.redraw,
            [inspection, threshold, rescaled],
            drawn,
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_limit=4,
            **private,
        )
        make_files.click(demo.files, [inspection, threshold], downloads, concurrency_limit=1, **private)
        own = [comparing.normal, comparing.abnormal, comparing.truth]
        batches = {"concurrency_limit": 1, "concurrency_id": "batch"}
        run_batch.click(
            demo.batch,
            [files_in, *settings, verdicts.calibration],
            [report, gallery, scores, outputs],
            api_name="batch",
            **batches,
        )

        with gr.Group(visible=False):  # components of the endpoints' answers
            answer, several = gr.JSON(), gr.File(file_count="multiple")
            overlays = gr.Gallery(format="png")
        for name, function, given, answers, limits in (
            ("detect", demo.detect_endpoint, [image, *settings], [answer], model_runs),
            ("localize", demo.localize_endpoint, [image, *settings, threshold], [answer, several], model_runs),
            ("compare", demo.compare_endpoint, [image, *settings, *own], [answer, overlays], model_runs),
        ):
            gr.Button(visible=False).click(function, given, answers, api_name=name, **limits)
    return app


def launch(space: Space, host: str = "127.0.0.1", port: int | None = None, block: bool = True) -> tuple[gr.Blocks, str]:
    """Serve the page; returns it and its address."""
    app = build(space)
    health = Route("/health", lambda _: JSONResponse({"status": "ok", "version": __version__, "models": space.choices}))
    _, url, _ = app.queue(max_size=200).launch(
        server_name=host,
        server_port=port,
        max_file_size=uploads.MAX_FILE,
        state_session_capacity=500,
        theme=gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", **FONTS),
        css=CSS + comparison.CSS + verdict.CSS,
        app_kwargs={"routes": [health]},
        show_error=True,
        ssr_mode=False,
        quiet=not block,
        prevent_thread_lock=not block,
    )
    return app, url


def main(arguments: list[str] | None = None) -> None:
    """Serve the page; see `python app.py --help`."""
    environment = os.environ.get
    parser = argparse.ArgumentParser(description="Serve zero-shot anomaly detection in a browser and as a service.")
    parser.add_argument(
        "--model",
        nargs="+",
        default=environment("TIPSOMALY_MODEL", "nano").split(),
        help="models on offer, the default first: names, folders or Hub repositories; or TIPSOMALY_MODEL [nano]",
    )
    parser.add_argument(
        "--calibration",
        nargs="*",
        default=environment("TIPSOMALY_CALIBRATION", "").split(),
        help="files of `tipsomaly calibrate` or `reference`, for verdicts; or TIPSOMALY_CALIBRATION",
    )
    parser.add_argument("--host", default=environment("GRADIO_SERVER_NAME", "127.0.0.1"), help="[%(default)s]")
    parser.add_argument("--port", type=int, default=environment("GRADIO_SERVER_PORT", "7860"), help="[%(default)s]")
    args = parser.parse_args(arguments)
    try:
        launch(Space(args.model, args.calibration), args.host, args.port)
    except (ModelError, OSError) as error:  # OSError: the port is taken
        parser.error(str(error))


if __name__ == "__main__":
    main()
