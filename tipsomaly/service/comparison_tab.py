"""The tab that compares prompts: its components, and what happens on it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np

from tipsomaly.service import comparison
from tipsomaly.service.examples import Examples
from tipsomaly.service.space import Space
from tipsomaly.studies.paper import MODEL

EMPTY = '<div class="card">Choose a picture or one of the examples: the comparison appears here.</div>'
IDEA = """
The paper's idea, on your picture: *fixed* prompts are good at saying whether a picture is normal, prompts *learned*
with a local loss alone at saying where it is not. **Decoupled** takes the image score of the one and the map of the
other.
"""
TABLE_2 = f"""
#### What the paper reports ({MODEL}, not measured here)
On whole data sets: nothing of it is of the model or the picture above. The rows in bold are what the paper proposes.
"""


class ComparisonTab:
    """Made inside the tab; `connect` says when it runs."""

    def __init__(self, space: Space, examples: Examples, explained: Callable[[], AbstractContextManager]) -> None:
        """`explained` turns what a visitor did wrong into a line of the page."""
        self.space, self.examples, self.explained = space, examples, explained
        gr.Markdown(IDEA)
        self.page = gr.HTML(EMPTY)
        with gr.Row():
            self.normal = gr.Textbox(
                label="Your own phrases for normal, one a line", placeholder="clean {}", lines=2, min_width=220
            )
            self.abnormal = gr.Textbox(
                label="Your own phrases for abnormal, one a line", placeholder="{} with rust", lines=2, min_width=220
            )
        with gr.Row():
            self.suggested = [gr.Button(f"Try: {name}", size="sm", min_width=120) for name in comparison.SUGGESTIONS]
            self.run = gr.Button("Compare", variant="primary", size="sm", min_width=120)
        with gr.Accordion("A ground-truth mask of your own picture", open=False):
            self.truth = gr.Image(
                label="White is defective; the masks of the examples are known",
                type="filepath",
                image_mode=None,
                sources=["upload"],
                height=160,
                elem_id="truth",
            )
        gr.Markdown(TABLE_2)
        gr.HTML(comparison.paper())
        self.open, self.shown = gr.State(False), gr.State()

    def compare(
        self, image: str | None, class_name: str, domain: str, model: str, normal: str, abnormal: str, mask: str | None
    ) -> str:
        """The comparison as HTML; the mask of an example is the bundled one unless another is given."""
        if image is None:
            return EMPTY
        hint = ""
        if bool((normal or "").strip()) != bool((abnormal or "").strip()):
            normal = abnormal = ""
            hint = '<p class="note">Your own phrases join in when there is one for each state, normal and abnormal.</p>'
        example = self.examples.find(image)
        with self.explained():
            truth = mask or (example.mask if example else None)
            found = self.space.compare(image, class_name, domain, model, normal, abnormal, truth)
        if example and not example.mask and not mask:
            shown = found.results["fixed"]
            found = replace(found, truth=np.zeros((shown.height, shown.width), bool))  # it is known to be good
        return hint + comparison.html(found)

    def refresh(self, opened: bool, shown: tuple | None, *inputs: Any) -> tuple:
        """The comparison of what is chosen now: at once on an open tab, on a closed one when it is opened."""
        if not opened:
            return EMPTY, None
        if shown == inputs:
            return gr.skip(), gr.skip()
        return self.compare(*inputs), inputs

    def connect(
        self, tab: gr.Tab, others: Sequence[gr.Tab], image: gr.Image, settings: Sequence[Any], **limits: Any
    ) -> None:
        """`settings` are class, fixed prompts and model; `limits` those of events that run the model."""
        own = [self.normal, self.abnormal, self.truth]
        inputs, outputs = [self.open, self.shown, image, *settings, *own], [self.page, self.shown]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        for other in others:
            other.select(lambda: False, None, self.open, queue=False, **private)
        opened = tab.select(lambda: True, None, self.open, queue=False, **private)
        opened.then(self.refresh, inputs, outputs, **private, **limits)
        for button, phrases in zip(self.suggested, comparison.SUGGESTIONS.values(), strict=True):
            filled = button.click(lambda p=phrases: p, None, own[:2], queue=False, **private)
            filled.then(self.refresh, inputs, outputs, **private, **limits)
        # a mask is of the picture that was there
        cleared = image.change(lambda: None, None, self.truth, queue=False, **private)
        cleared.then(self.refresh, inputs, outputs, trigger_mode="always_last", **private, **limits)
        gr.on(
            [
                self.run.click,
                *(component.change for component in (*settings, self.truth)),
                *(event for box in (self.normal, self.abnormal) for event in (box.blur, box.submit)),
            ],
            self.refresh,
            inputs,
            outputs,
            trigger_mode="always_last",
            **private,
            **limits,
        )
