"""The part of the page where good pictures are chosen: its components, and what happens on it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from tipsomaly.service import verdict
from tipsomaly.service.examples import Examples
from tipsomaly.service.space import MAX_GOOD, MIN_GOOD, Space

WORDS = f"""
Drop {MIN_GOOD} to {MAX_GOOD} pictures of **good** ones of the class that you chose, taken as the picture to be judged
was. From then on each picture of the class gets a verdict.
"""


class VerdictPanel:
    """Made where it stands; `connect` says what runs after good pictures were chosen."""

    def __init__(self, space: Space, examples: Examples, explained: Callable[[], AbstractContextManager]) -> None:
        """`explained` turns what a visitor did wrong into a line of the page."""
        self.space, self.examples, self.explained = space, examples, explained
        self.calibration = gr.State()
        with gr.Accordion("A verdict of your own: defective or not", open=False):
            gr.Markdown(WORDS)
            self.files = gr.File(
                label="Good pictures, or a zip of them", file_count="multiple", height=120, elem_id="goods"
            )
            self.rate = gr.Radio(
                [(f"{rate * 100:g} %", rate) for rate in verdict.RATES],
                value=verdict.RATES[0],
                label="Good pictures that may be called defective",
            )
            with gr.Row():
                self.use = gr.Button("Use these good pictures", variant="primary", size="sm", min_width=140)
                self.bundled = gr.Button("Use the bundled good examples", size="sm", min_width=140)
                self.forget = gr.Button("Forget them", size="sm", min_width=140)
            self.status = gr.Markdown(elem_id="trust")
            self.download = gr.File(label="For the command", interactive=False, visible=False)
        self.outputs: list[Any] = [self.calibration, self.status, self.download]
        """Of `calibrate`."""

    def calibrate(
        self, files: list[str] | None, rate: float, class_name: str, domain: str, model: str
    ) -> Iterator[tuple]:
        """Good pictures to the calibration, what it is worth in words, and its file."""
        with self.explained(), TemporaryDirectory() as folder:
            found = self.space.calibrate(files or [], class_name, domain, model, rate)
            path = Path(folder) / "calibration.json"
            found.save(path)
            status = f"{verdict.trust(found)}\n\n```console\n$ {verdict.command(found, domain, model)}\n```"
            yield found, status, gr.File(str(path), visible=True)

    def calibrate_bundled(
        self, image: str | None, rate: float, class_name: str, domain: str, model: str
    ) -> Iterator[tuple]:
        """The same with the good examples, less that of the picture's own pair."""
        goods = self.examples.goods(self.examples.find(image))
        yield from self.calibrate([str(path) for path in goods], rate, class_name, domain, model)

    def connect(
        self, image: gr.Image, settings: Sequence[Any], judge: Callable[[gr.events.Dependency], Any], **limits: Any
    ) -> None:
        """`settings` are class, fixed prompts and model; `judge` adds to an event that the picture is scored again."""
        private: dict[str, Any] = {"api_visibility": "private"}
        outputs = self.outputs
        given = [self.rate, *settings]
        judge(self.use.click(self.calibrate, [self.files, *given], outputs, **private, **limits))
        judge(self.bundled.click(self.calibrate_bundled, [image, *given], outputs, **private, **limits))
        nothing = (None, "", gr.File(None, visible=False))
        judge(self.forget.click(lambda: nothing, None, outputs, queue=False, **private))
