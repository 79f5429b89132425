"""Views in batches through the tower, their scores back: two batches in flight on a GPU."""

from collections.abc import Iterator

import torch

from tipsomaly.detection.views import View
from tipsomaly.errors import ImageError


def _landed(batch: list[View | ImageError], done: torch.cuda.Event | None) -> Iterator[View | ImageError]:
    if done:
        done.synchronize()
    yield from batch
