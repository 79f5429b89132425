"""What programs call: with gradio's client, over plain HTTP, or as tools of MCP, where an assistant reads names and
docstrings."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import gradio as gr

from tipsomaly.service import exports, uploads
from tipsomaly.service.batch_tab import BatchTab
from tipsomaly.service.demo import chosen, explained
from tipsomaly.service.space import Space

GALLERY = 60
"""Overlays of a batch that are handed out one by one, those of the highest scores; all are in its zip."""
PARAMETERS = {
    "image": "The picture to inspect.",
    "files": "The pictures to inspect, or zip files of pictures.",
    "class_name": 'What is on the picture, in a word or two, such as "metal nut".',
    "domain": "Which fixed sentences give the image score: of industrial or medical pictures, or of any object.",
    "model": "The model, and the learned prompts that draw its map.",
    "threshold": "Regions are where the anomaly map, which lies between 0 and 1, is at least this.",
    "normal": "Phrases of your own for the normal state, one a line, {} for the class name; with abnormal ones.",
    "abnormal": "Phrases of your own for the abnormal state, one a line.",
    "mask": "The ground truth: a picture as large as the other, white where it is defective. It gives pixel metrics.",
}
F = TypeVar("F", bound=Callable)


def described(function: F) -> F:
    """The function with what its parameters are at the end of its docstring, where gradio looks for it."""
    given = (name for name in inspect.signature(function).parameters if name in PARAMETERS)
    lines = "".join(f"\n    {name}: {PARAMETERS[name]}" for name in given)
    function.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:{lines}"
    return function


class Endpoints:
    """The endpoints over one Space, by their names. What a caller did wrong becomes one line of plain text."""

    def __init__(self, space: Space, batches: BatchTab) -> None:
        self.space, self.batches = space, batches

    @described
    def detect(self, image: str | None, class_name: str, domain: str, model: str) -> dict:
        """How likely the thing on a picture is defective: its anomaly score and the parts of it."""
        with explained(page=False):
            return exports.record(self.space.inspect(chosen(image), class_name, domain, model).result)

    @described
    def localize(
        self, image: str | None, class_name: str, domain: str, model: str, threshold: float
    ) -> Iterator[tuple[dict, list[str]]]:
        """Where the thing on a picture is defective: scores, regions with boxes in pixels, and files of the map."""
        with explained(page=False), TemporaryDirectory() as folder:
            threshold = uploads.checked_threshold(threshold)
            result = self.space.inspect(chosen(image), class_name, domain, model).result
            paths = exports.write_files(result, threshold, Path(folder))
            yield exports.record(result, threshold), [str(path) for path in paths]

    @described
    def compare(
        self,
        image: str | None,
        class_name: str,
        domain: str,
        model: str,
        normal: str | None = None,
        abnormal: str | None = None,
        mask: str | None = None,
    ) -> tuple[dict, list]:
        """Scores of a picture under each kind of prompts, fixed, learned and decoupled, and overlays of their maps."""
        with explained(page=False):
            found = self.space.compare(chosen(image), class_name, domain, model, normal or "", abnormal or "", mask)
        data = {name: exports.record(r) | {"metrics": found.metrics.get(name)} for name, r in found.results.items()}
        return data, [(r.overlay(), name) for name, r in found.results.items()]

    @described
    def batch(
        self,
        files: list[str] | None,
        class_name: str,
        domain: str,
        model: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple]:
        """Scores of many pictures of one class, the most anomalous first: a line, overlays, a table, the same as CSV
        and the overlays as a zip. On the way there, only the line, of how far it is."""
        for step in self.batches.steps(files, (class_name, domain, model), None, progress, page=False):
            if step.files is None:
                yield step.line, None, None, None
            else:
                gallery = [
                    (str(row.overlay), f"{row.result.score:.3f} {row.name}")
                    for row in exports.ranked(step.rows)[:GALLERY]
                    if row.result
                ]
                yield step.line, gallery, exports.table(step.rows), step.files
