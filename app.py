"""The Space: zero-shot anomaly detection in a browser and as a service. What it does is in tipsomaly/service/."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from tipsomaly import ModelError
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.service import batch, batch_tab, comparison, exports, localization, uploads, verdict
from tipsomaly.service.batch_tab import BatchTab
from tipsomaly.service.cards import OPENING
from tipsomaly.service.comparison_tab import ComparisonTab
from tipsomaly.service.demo import START, Demo, explained
from tipsomaly.service.endpoints import Endpoints
from tipsomaly.service.examples import Examples
from tipsomaly.service.middleware import Preview, RateLimit
from tipsomaly.service.routes import MAX_WAITING, Routes
from tipsomaly.service.space import Space
from tipsomaly.service.texts import ABOUT, CLASSES, CSS, METHOD
from tipsomaly.service.verdict_panel import VerdictPanel

EXAMPLES = Path(__file__).parent / "examples"
TITLE = "Tipsomaly"
DESCRIPTION = "Is the thing on this picture defective, and where? Zero-shot: the model has never seen the product."
BUTTONS: list[Any] = ["download", "fullscreen"]
FONTS: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # not fetched
# gradio's Soft, with every text at WCAG's contrast of 4.5 to 1
THEME = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", **FONTS).set(
    block_label_text_color="*primary_700",
    block_title_text_color="*primary_700",
    body_text_color_subdued="*neutral_600",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_secondary_background_fill_hover_dark="*primary_600",
    checkbox_label_background_fill_selected="*primary_600",
    color_accent="*primary_600",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    link_text_color_dark="*secondary_300",
    link_text_color_visited="*secondary_700",
    link_text_color_visited_dark="*secondary_300",
)
FILES_KEPT = 3600  # seconds
UNREADABLE = (
    "The request cannot be read: upload files first, and send what the API's documentation lists, in its order."
)
BRING = """picture => {
  const results = document.querySelector("#results"), still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!picture) return;
  const [detection, ...others] = [...results.querySelectorAll("[role=tab]")].filter(tab => tab.checkVisibility());
  if (others.some(tab => tab.ariaSelected == "true" && ["Batch", "About"].includes(tab.innerText.trim())))
    detection.click();
  if (results.getBoundingClientRect().left < 100)
    results.scrollIntoView({behavior: still ? "auto" : "smooth"});
}"""
"""Whoever chose a picture is brought to its result: from Batch and About to Detection, and down to the results where
they are below the picture, as on a phone."""


class Page(gr.Blocks):
    """Blocks that say in a line of ours what they could not read: gradio's own lines name folders of the server."""

    async def preprocess_data(self, *args: Any, **kwargs: Any) -> list[Any]:
        try:
            return await super().preprocess_data(*args, **kwargs)
        except gr.Error:
            raise
        except Exception:  # of gradio, pydantic or the network, each with its own words
            raise gr.Error(UNREADABLE, print_exception=False) from None


def build(space: Space) -> gr.Blocks:
    """The page, and the endpoints."""
    demo = Demo(space, Examples(EXAMPLES))
    with Page(title=TITLE, analytics_enabled=False, delete_cache=(FILES_KEPT // 4, FILES_KEPT)) as app:
        inspection = gr.State(time_to_live=FILES_KEPT)
        picture: dict[str, Any] = {"interactive": False, "format": "jpeg"}
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
                    height=300,
                    elem_id="picture",
                    alt_text="The picture that is inspected",
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
                    label="Examples: good, and defective",
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
            with gr.Column(scale=2, min_width=320), gr.Tabs(overflow_behavior="wrap", elem_id="results") as tabs:
                settings: list[Any] = [class_name, domain, model]
                with gr.Tab("Detection") as tab_d:
                    card = gr.HTML(OPENING)
                    overlay = gr.Image(label="Anomaly map", height=440, buttons=BUTTONS, elem_id="overlay", **picture)
                    gr.HTML(comparison.legend())
                    verdicts = VerdictPanel(space, demo.examples, explained)
                    spoken = gr.HTML()
                    with gr.Accordion("As data", open=False):
                        data = gr.JSON(label="Scores", elem_id="data")
                with gr.Tab("Localization", id=batch_tab.LOCALIZATION) as tab_l:
                    slider = gr.ImageSlider(label="Picture | anomaly map", max_height=420, **picture)
                    scale = gr.HTML(comparison.legend())
                    threshold = gr.Slider(
                        0,
                        1,
                        START,
                        step=0.01,
                        label="Threshold of the map",
                        info="begins where good pictures seldom show anything, where they are known",
                        elem_id="threshold",
                    )
                    rescaled = gr.Checkbox(label="Stretch the colours to this picture")
                    regions = gr.HTML(js_on_load=localization.SCRIPT, apply_default_css=False)
                    make_files = gr.Button("Make files, at the picture's own size")
                    with gr.Row():
                        downloads = [
                            gr.DownloadButton(name, size="sm", min_width=120, visible=False)
                            for name in localization.FILES
                        ]
                with gr.Tab("Prompt comparison") as tab_c:
                    comparing = ComparisonTab(space, demo.examples, explained)
                with gr.Tab("Batch") as tab_b:
                    batches = BatchTab(space, verdicts, explained)
                with gr.Tab("About") as tab_a:
                    gr.Markdown(f"### The method in five sentences\n{METHOD}")
                    gr.Image(
                        str(EXAMPLES / "method.png"),
                        label="From picture to score",
                        alt_text="A picture and a sentence pass through TIPS; what they give is compared to a score "
                        "and a map, as the five sentences above say",
                        interactive=False,
                        buttons=[],
                    )
                    gr.Markdown(ABOUT)

        drawn = [slider, scale, regions, *downloads]
        unread: list[Any] = [
            image,
            comparing.truth,
        ]  # gradio would open the file, and tell of its own paths if it cannot
        for component in unread:
            component.preprocess = lambda sent: sent and sent.path
        private: dict[str, Any] = {"api_visibility": "private"}
        redraws = private | {"show_progress": "hidden", "concurrency_limit": 4, "concurrency_id": "redraw"}
        model_runs: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "model"}
        picked = [image, class_name, domain]
        pick = samples.select(demo.pick, None, picked, show_progress="hidden", **private)
        own_picture, own_batch = (
            event(demo.own_class, [inspection, class_name, domain], picked[1:], show_progress="hidden", **private)
            for event in (image.input, batches.files.upload)
        )
        inspected = [inspection, card, overlay, data, spoken, threshold]
        app.load(demo.opening, None, [*picked, *inspected, *drawn], show_progress="hidden", **private)

        def judge(event: Callable[..., Any], brings: bool = False) -> None:
            judged = event(
                demo.inspect,
                [image, *settings, threshold, verdicts.calibration, inspection],
                inspected,
                **private,
                **model_runs,
            )
            # at the threshold that the slider has by now
            judged.then(demo.redraw, [inspection, threshold, rescaled], drawn, **redraws)
            if brings:
                judged.then(None, image, None, js=BRING)

        # whatever is changed, what is shown is of what is chosen now
        for event in (own_batch.then, *(component.input for component in settings)):
            judge(event)
        for event in (run.click, own_picture.then, pick.then):
            judge(event, brings=True)
        verdicts.connect(image, settings, lambda e: judge(e.success), **model_runs)
        comparing.connect(tab_c, [tab_d, tab_l, tab_b, tab_a], image, settings, **model_runs)
        gr.on(
            [threshold.input, rescaled.input],
            demo.redraw,
            [inspection, threshold, rescaled],
            drawn,
            trigger_mode="always_last",
            **redraws,
        )
        make_files.click(demo.files, [inspection, threshold], downloads, concurrency_limit=1, **private)
        own = [comparing.normal, comparing.abnormal, comparing.truth]
        batches.connect(tabs, image, settings, judge, **model_runs)

        with gr.Group(visible=False):  # components of the endpoints' answers
            line, answer, several = gr.Markdown(), gr.JSON(), gr.File(file_count="multiple")
            overlays, scores = gr.Gallery(format="png"), gr.Dataframe(headers=list(exports.HEADERS))
            # for MCP the choices of a list would be all there are
            word = gr.Textbox("object", label="Class name: what is on the picture")
        asked = [word, domain, model]
        endpoints = Endpoints(space, batches)
        for name, function, given, answers, limits in (
            ("detect", endpoints.detect, [image, *asked], [answer], model_runs),
            ("localize", endpoints.localize, [image, *asked, threshold], [answer, several], model_runs),
            ("compare", endpoints.compare, [image, *asked, *own], [answer, overlays], model_runs),
            ("batch", endpoints.batch, [batches.files, *asked], [line, overlays, scores, several], batch_tab.LIMITS),
        ):
            gr.Button(visible=False).click(function, given, answers, api_name=name, **limits)
    return app


def launch(
    space: Space,
    host: str = "127.0.0.1",
    port: int | None = None,
    block: bool = True,
    mcp: bool = False,
    rate_limit: int | None = None,
) -> tuple[gr.Blocks, str]:
    """Serve the page; returns it and its address. `mcp` serves the endpoints as tools, too, with the package mcp;
    `rate_limit` is of requests a minute and visitor."""
    app = build(space)
    routes = Routes(space, lambda: len(app._queue), EXAMPLES / "demo-detection.jpg")
    middleware = [Middleware(Preview, title=TITLE, description=DESCRIPTION)]
    if rate_limit:
        middleware.insert(0, Middleware(RateLimit, per_minute=rate_limit))
    _, url, _ = app.queue(max_size=MAX_WAITING, api_open=False).launch(  # nothing passes by the queue
        server_name=host,
        server_port=port,
        max_file_size=uploads.MAX_FILE,
        state_session_capacity=500,
        theme=THEME,
        css=CSS + comparison.CSS + localization.CSS + verdict.CSS + batch.CSS,
        app_kwargs={"routes": routes.all(), "middleware": middleware},
        mcp_server=mcp or None,  # None: as GRADIO_MCP_SERVER says
        enable_monitoring=False,
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
    parser.add_argument("--mcp", action="store_true", help="serve MCP, too; or GRADIO_MCP_SERVER=True")
    parser.add_argument(
        "--rate-limit",
        type=int,
        default=environment("TIPSOMALY_RATE_LIMIT", "0"),
        help="requests a minute and visitor; or TIPSOMALY_RATE_LIMIT; 0: no limit [%(default)s]",
    )
    args = parser.parse_args(arguments)
    try:
        space = Space(args.model, args.calibration)
        launch(space, args.host, args.port, mcp=args.mcp, rate_limit=args.rate_limit)
    except (ModelError, OSError, ImportError) as error:  # OSError: the port is taken; ImportError: no package mcp
        parser.error(str(error))


if __name__ == "__main__":
    main()
