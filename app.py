"""The Space: zero-shot anomaly detection in a browser. `python app.py --help` says how to configure it."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

import gradio as gr

from tipsomaly import ImageError, Pipeline, Result, visualization
from tipsomaly.prompts import ENSEMBLES

EXAMPLES = Path(__file__).parent / "examples" / "pictures"
ABOUT = """# Tipsomaly
Is the thing on this picture defective, and where? Give one picture and the name of what is on it; the model has never
seen the product. After *TIPS Over Tricks: Simple Prompts for Effective Zero-shot Anomaly Detection* (ICASSP 2026).
"""
NANO = """The bundled model **nano** is a small model of the same architecture, trained on drawn surfaces alone, so that
everything runs offline in a moment. It is not the paper's model, and its results are not the paper's."""


def examples() -> list[list[str]]:
    """The bundled pictures with the class that each file is named after: `<class>-<number>.png`."""
    return [[str(path), path.stem.rsplit("-", 1)[0].replace("_", " ")] for path in sorted(EXAMPLES.glob("*.*"))]


def parts(result: Result) -> str:
    """The image score and its two parts, as a table."""
    rows = (
        ("image score (0 to 2)", result.score),
        ("global: p_a(spatial token)", result.global_score),
        ("local: largest patch probability", result.local_score),
    )
    lines = "\n".join(f"| {name} | {value:.3f} |" for name, value in rows)
    note = f"\n\nNote: {escape(result.note)}." if result.note else ""
    return f"| | |\n|---|---|\n{lines}{note}"


class Demo:
    """The functions behind the tabs; every request carries its own settings, the model is shared."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def detect(self, image: str | None, class_name: str, domain: str) -> tuple[str, object]:
        result = self._run(image, class_name, domain)
        return parts(result), result.overlay()

    def localize(self, image: str | None, class_name: str, domain: str, threshold: float):
        result = self._run(image, class_name, domain)
        picture = result.image
        table = [[*region.box, region.area, round(region.peak, 3)] for region in result.regions(threshold)]
        outlined = visualization.contours(picture, result.mask(threshold))
        return (picture, visualization.heatmap(result.anomaly_map)), outlined, table

    def compare(self, image: str | None, class_name: str, domain: str):
        with explained(image):
            results = self.pipeline.with_options(domain=domain).compare(image, class_name)
        table = [
            [mode, *(round(value, 3) for value in (r.score, r.global_score, r.local_score, *r.strategies.values()))]
            for mode, r in results.items()
        ]
        return [(r.overlay(), f"{mode}: {r.score:.3f}") for mode, r in results.items()], table

    def _run(self, image: str | None, class_name: str, domain: str) -> Result:
        with explained(image):
            return self.pipeline.with_options(domain=domain)(image, class_name)


@contextmanager
def explained(image: str | None) -> Iterator[None]:
    """A visitor's mistake as one line of plain text, without the server's paths."""
    if image is None:
        raise gr.Error("Choose a picture first.", print_exception=False)
    try:
        yield
    except ImageError as error:
        reason = str(error).split(": ", 1)[-1]
        raise gr.Error(escape(f"This picture cannot be used: {reason}."), print_exception=False) from None
    except ValueError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from None


def build(pipeline: Pipeline) -> gr.Blocks:
    """The app over a loaded pipeline."""
    demo = Demo(pipeline)
    with gr.Blocks(title="Tipsomaly") as app:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                image = gr.Image(
                    label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard", "webcam"]
                )
                class_name = gr.Textbox("object", label="What is on it?", info="a word or two", max_length=100)
                domain = gr.Radio(list(ENSEMBLES), value="industrial", label="Fixed prompts")
                gr.Examples(examples(), [image, class_name], label="Drawn examples", examples_per_page=12)
            with gr.Column(scale=2, min_width=320):
                with gr.Tab("Detection"):
                    run = gr.Button("Detect", variant="primary")
                    scores = gr.Markdown("Choose a picture and press *Detect*.")
                    overlay = gr.Image(label="Anomaly map, 0 to 1, over the picture", interactive=False)
                    run.click(demo.detect, [image, class_name, domain], [scores, overlay], api_name="detect")
                with gr.Tab("Localization"):
                    threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold of the anomaly map")
                    run = gr.Button("Localize", variant="primary")
                    slider = gr.ImageSlider(label="Picture and anomaly map (dark 0, bright 1)", interactive=False)
                    outlined = gr.Image(label="Regions above the threshold", interactive=False)
                    regions = gr.Dataframe(
                        headers=["left", "top", "right", "bottom", "area (px)", "peak"],
                        label="Regions",
                        interactive=False,
                    )
                    run.click(
                        demo.localize,
                        [image, class_name, domain, threshold],
                        [slider, outlined, regions],
                        api_name="localize",
                    )
                with gr.Tab("Prompt comparison"):
                    gr.Markdown(
                        "The paper's decoupled-prompt ablation: *fixed* prompts for both scores, *learned* ones for "
                        "both, or *decoupled*: fixed for the image score, learned for the map."
                    )
                    run = gr.Button("Compare", variant="primary")
                    gallery = gr.Gallery(
                        label="Maps on one scale, 0 to 1", columns=3, height="auto", object_fit="contain"
                    )
                    table = gr.Dataframe(
                        headers=["prompts", "score", "global", "local", "S1", "S2", "S3", "S4", "S5"],
                        label="Scores, and the image-level strategies S1 to S5",
                        interactive=False,
                    )
                    run.click(demo.compare, [image, class_name, domain], [gallery, table], api_name="compare")
        gr.Markdown(NANO)
    return app


def main(arguments: list[str] | None = None) -> None:
    environment = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default=environment("TIPSOMALY_MODEL", "nano"), help="model, or TIPSOMALY_MODEL [%(default)s]"
    )
    parser.add_argument("--host", default=environment("GRADIO_SERVER_NAME", "127.0.0.1"), help="[%(default)s]")
    parser.add_argument(
        "--port", type=int, default=int(environment("GRADIO_SERVER_PORT", "7860")), help="[%(default)s]"
    )
    args = parser.parse_args(arguments)
    app = build(Pipeline.from_pretrained(args.model))
    app.queue(default_concurrency_limit=2).launch(
        server_name=args.host, server_port=args.port, max_file_size="50mb", theme=gr.themes.Soft(), show_error=True
    )


if __name__ == "__main__":
    main()
