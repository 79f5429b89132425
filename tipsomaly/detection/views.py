"""From pictures to what the model is given, ahead of it in threads: the whole picture, then its tiles if it is cut."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from tipsomaly.data.images import ImageSource, fitted_size, load_image, source_name, to_pixels
from tipsomaly.data.interest import Place, RegionOfInterest
from tipsomaly.detection.tiling import Tiling
from tipsomaly.errors import ImageError, printable

THREADS = 16


class Scores(NamedTuple):
    """Of one view under one pair of prototypes, on the CPU; of a GPU's batch, not before the batch's event."""

    spatial_token: Tensor
    """(D,), a unit vector."""
    image: Tensor
    """(2,): p_a of the object and of the spatial token."""
    patch_map: Tensor
    """(h, w)"""
    anomaly_map: Tensor | None = None
    kinds: Tensor | None = None
    """(h, w, K) float16, from prompts that know kinds."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture at the model's input size, what its result must remember, and the scores so far."""

    pixels: Tensor
    """(3, H, W) uint8"""
    width: int
    height: int
    note: str | None
    source: ImageSource
    image: Image.Image | None
    """At its own size, if there are tiles to be cut."""
    place: Place | None
    """Of the region of interest, if there is one: what the model sees, `width` and `height` are then of its box."""
    boxes: list[tuple[int, int, int, int]]
    """left, top, right, bottom of each tile; empty if the picture is not cut."""
    scores: dict[int, list[Scores]] = field(default_factory=dict)
    """By the index of the view, for each pair of prototypes."""


@dataclass(frozen=True, eq=False)
class View:
    """What the model sees at once: a whole picture (index 0) or a tile of it (1, 2, ...)."""

    picture: Picture
    index: int
    pixels: Tensor
    """(3, H, W) uint8"""
    speakers: Tensor | None = None
    """With a region of interest `Place.speakers` of its patches."""

    @property
    def is_last(self) -> bool:
        """Whether it is the last view of its picture."""
        return self.index == len(self.picture.boxes)


@dataclass(frozen=True)
class Viewer:
    """How pictures are given to the model."""

    image_size: tuple[int, int]
    """(height, width) in pixels"""
    patch_size: int
    tiling: Tiling | None
    keep_aspect: bool
    region: RegionOfInterest | None = None

    def views(self, images: Iterable[ImageSource], batch_size: int) -> Iterator[View | ImageError]:
        """Each picture at the input size, then its tiles, in order. Of pictures to be tiled, which are held until their
        last tile is cut, only one more is decoded ahead."""
        pictures = ahead(self.read, images, 2 if self.tiling else 2 * batch_size)
        places = ((p, i) for p in pictures for i in range(1 if isinstance(p, ImageError) else 1 + len(p.boxes)))
        return ahead(self.cut, places, 2 * batch_size) if self.tiling else map(self.cut, places)

    def read(self, source: ImageSource) -> Picture:
        """Decode a picture and decide how it is cut. Raises ImageError."""
        loaded = load_image(source)
        whole, place = loaded.image, None
        if self.region:
            try:
                place = self.region.place(*whole.size)
            except ImageError as error:
                raise ImageError(f"{printable(source_name(source) or 'image')}: {error}") from None
            whole = place.cut(whole)
        width, height = whole.size
        boxes = self.tiling.boxes(width, height) if self.tiling else []
        image = whole if len(boxes) > 1 else None  # one tile would be the whole picture again
        pixels = to_pixels(whole, self.input_size(width, height))
        return Picture(pixels, width, height, loaded.note, source, image, place, boxes if image else [])

    def cut(self, place: tuple[Picture | ImageError, int]) -> View | ImageError:
        """A view of a picture at the model's input size, by its index: 0 is the whole, then come the tiles."""
        picture, index = place
        if isinstance(picture, ImageError):
            return picture
        if index == 0:
            return self._view(picture, 0, picture.pixels)
        assert picture.image is not None  # which is kept where there are tiles
        left, top, right, bottom = box = picture.boxes[index - 1]
        pixels = to_pixels(picture.image.crop(box), self.input_size(right - left, bottom - top))
        return self._view(picture, index, pixels, box)

    def _view(self, picture: Picture, index: int, pixels: Tensor, box: tuple[int, int, int, int] | None = None) -> View:
        grid = pixels.shape[1] // self.patch_size, pixels.shape[2] // self.patch_size
        return View(picture, index, pixels, picture.place.speakers(grid, box) if picture.place else None)

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels that a picture, or a tile, of this size is resized to."""
        if not self.keep_aspect:
            return self.image_size
        return fitted_size(width, height, self.image_size, self.patch_size)


def ahead(function: Callable[[Any], Any], items: Iterable[Any], count: int) -> Iterator[Any]:
    """`map(function, items)`, at most `count` items ahead in threads; an ImageError takes the place of its result."""

    def outcome(future: Future) -> Any:
        error = future.exception()
        if error is None or isinstance(error, ImageError):
            return error or future.result()
        raise error

    with ThreadPoolExecutor(min(THREADS, count, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
        pending: deque[Future] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= count:
                    yield outcome(pending.popleft())
            while pending:
                yield outcome(pending.popleft())
        finally:
            for future in pending:
                future.cancel()
