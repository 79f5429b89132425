"""The part of a picture that counts: a region of interest, less what is ignored."""

import json
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from tipsomaly.data.images import MAX_PIXELS
from tipsomaly.data.masks import mask_pixels
from tipsomaly.errors import ImageError, OptionError, one_line, printable
from tipsomaly.files import expand, sha256

ALIKE = 0.01
"""How much the aspect ratio of a picture may differ from that of the region's, as its share."""

MaskSource = str | Path | np.ndarray
"""A picture that is white (above half of its largest value) where something is, a .json file of polygons (see
`polygons`), or a bool array (height, width)."""


@dataclass(frozen=True, eq=False)
class RegionOfInterest:
    """What counts of pictures that show a thing always in the same place, as those of a fixed camera do. What lies
    outside changes no number: a picture is cut to the region's bounding box, and what is not of the region there is
    painted over with the region's own colours. It is scaled to pictures of another size, but the same proportions.

    >>> region = RegionOfInterest.of(np.eye(4, dtype=bool))
    >>> region.place(8, 8).box
    (0, 0, 8, 8)
    """

    mask: np.ndarray
    """bool (height, width), True where a pixel counts; somewhere at least."""

    @classmethod
    def of(cls, roi: MaskSource | None, ignore: MaskSource | None = None) -> "RegionOfInterest":
        """What is in `roi` (None: everything) and not in `ignore`. Raises OptionError, in one line, for what is no
        mask, leaves nothing, or is of two sizes."""
        counts, not_counts = (None if source is None else _mask(source) for source in (roi, ignore))
        if counts is None and not_counts is None:
            raise OptionError("a region of interest needs a mask of what counts or of what is ignored")
        counts = ~np.zeros_like(not_counts) if counts is None else counts
        if not_counts is not None:
            if counts.shape != not_counts.shape:
                sizes = " and ".join(f"{m.shape[1]} x {m.shape[0]}" for m in (counts, not_counts))
                raise OptionError(f"the region of interest and what is ignored are of different sizes: {sizes}")
            counts = counts & ~not_counts
        if not counts.any():
            raise OptionError("no pixel is left in the region of interest")
        return cls(counts)

    def digest(self) -> str:
        """SHA-256 of its size and pixels."""
        return sha256(repr(self.mask.shape), np.packbits(self.mask).tobytes())

    def place(self, width: int, height: int) -> "Place":
        """Where it lies in a picture of this size, in pixels. Raises ImageError for one of other proportions."""
        return _place(self, width, height)


@dataclass(frozen=True, eq=False)
class Place:
    """A region of interest in pictures of one size."""

    box: tuple[int, int, int, int]
    """left, top, right, bottom in pixels; right and bottom are outside."""
    inside: np.ndarray
    """bool (bottom - top, right - left)"""
    size: tuple[int, int]
    """(height, width) of the picture in pixels."""

    def cut(self, image: Image.Image) -> Image.Image:
        """The box of an RGB picture, painted over where it is not of the region."""
        cut = image.crop(self.box)
        if self.inside.all():
            return cut
        pixels = np.array(cut)
        outside, nearest = self._painting
        flat = pixels.reshape(-1, 3)
        flat[outside] = flat[nearest]
        return Image.fromarray(pixels)

    @cached_property
    def _painting(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers, row by row, of the pixels outside, and of the nearest one inside to each: found once for all
        pictures. Of the mean colour, a blur and a mirror image, all of which were tried on good pictures, the nearest
        colour raises their scores least."""
        from scipy import ndimage

        y, x = ndimage.distance_transform_edt(~self.inside, return_distances=False, return_indices=True)
        outside = np.flatnonzero(~self.inside)
        return outside, (y * self.inside.shape[1] + x).ravel()[outside]

    def speakers(self, grid: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> Tensor:
        """int64 (h, w), on a grid of patches over the box, or over a box in it: the number, row by row, of the patch
        whose say stands for that of each. A patch that touches the region speaks for itself, any other has the nearest
        that does to speak for it; -1 everywhere where none does."""
        from scipy import ndimage

        left, top, right, bottom = box or (0, 0, self.inside.shape[1], self.inside.shape[0])
        inside = torch.from_numpy(self.inside[top:bottom, left:right].astype(np.float32))
        touches = F.adaptive_max_pool2d(inside[None], grid)[0].numpy() > 0
        if not touches.any():
            return torch.full(grid, -1)
        y, x = ndimage.distance_transform_edt(~touches, return_distances=False, return_indices=True)
        return torch.from_numpy(y * grid[1] + x).long()

    def take(self, values: np.ndarray) -> np.ndarray:
        """(n,): those of a map (height, width) of the picture that lie in the region."""
        left, top, right, bottom = self.box
        return values[top:bottom, left:right][self.inside]

    def put_back(self, values: np.ndarray) -> np.ndarray:
        """A map (bottom - top, right - left) of the box as one of the whole picture, 0 outside the region."""
        left, top, right, bottom = self.box
        whole = np.zeros(self.size, values.dtype)
        whole[top:bottom, left:right] = np.where(self.inside, values, 0)
        return whole


@lru_cache(maxsize=4)
def _place(region: RegionOfInterest, width: int, height: int) -> Place:
    mask = region.mask
    theirs = f"{mask.shape[1]} x {mask.shape[0]}"
    if abs(width * mask.shape[0] / (height * mask.shape[1]) - 1) > ALIKE:
        raise ImageError(f"{width} x {height} pixels; the region of interest is of pictures like {theirs}")
    if mask.shape != (height, width):
        mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ImageError(f"{width} x {height} pixels: nothing is left of the region of interest of {theirs}")
    left, top, right, bottom = (int(x) for x in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return Place((left, top, right, bottom), mask[top:bottom, left:right].copy(), (height, width))


def _mask(source: MaskSource) -> np.ndarray:
    if isinstance(source, np.ndarray):
        if source.ndim != 2 or source.dtype != bool or not source.size:
            raise OptionError(f"a mask is a bool array (height, width), not {source.dtype} {source.shape}")
        return source
    path = expand(source)
    if path.suffix.lower() == ".json":
        return polygons(path)
    try:
        return mask_pixels(path, MAX_PIXELS)
    except ValueError as error:
        raise OptionError(str(error)) from None


def polygons(path: Path) -> np.ndarray:
    """bool (height, width) of a file {"size": [width, height], "polygons": [[[x, y], [x, y], [x, y], ...], ...]} in
    pixels, True inside of any of them. Raises OptionError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        width, height = content["size"]
        if type(width) is not int or type(height) is not int or not 0 < width * height <= MAX_PIXELS:
            raise ValueError("its size cannot be used")
        canvas = Image.new("1", (width, height))
        for polygon in content["polygons"]:
            points = [(float(x), float(y)) for x, y in polygon]
            if len(points) < 3 or not all(math.isfinite(value) for point in points for value in point):
                raise ValueError("a polygon has three points or more")
            ImageDraw.Draw(canvas).polygon(points, fill=1)
    except OSError as error:
        raise OptionError(f"{printable(path)}: {error.strerror or one_line(error)}") from None
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        form = '{"size": [width, height], "polygons": [[[x, y], ...], ...]}'
        raise OptionError(f"{printable(path)}: not polygons, {form} ({one_line(error)})") from None
    return np.asarray(canvas)
