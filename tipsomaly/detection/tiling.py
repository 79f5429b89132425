"""Large pictures in overlapping tiles, and their maps blended into one without seams.

This is ours, not the paper's, which squashes every picture to one square and so loses what is small in a large one.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from tipsomaly.detection.scoring import anomaly_map
from tipsomaly.errors import OptionError

SMALLEST = 56
"""Side in pixels below which a tile shows too little, and a large picture has too many of them."""


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut: tiles of one size, evenly spread, the first at one border and the last at the other.

    >>> Tiling(tile=100, overlap=0.25).spans(250)
    [(0, 100), (75, 175), (150, 250)]
    """

    tile: int
    """Side of a tile in pixels of the picture, at least 56; a shorter side of a picture is not cut."""
    overlap: float = 0.25
    """Share of a tile's side that the next one covers too, in [0, 0.75]; where tiles meet it is at least this."""

    def __post_init__(self) -> None:
        if self.tile < SMALLEST:
            raise OptionError(f"a tile must be at least {SMALLEST} pixels wide, not {self.tile}")
        if not 0 <= self.overlap <= 0.75:
            raise OptionError(f"the overlap of tiles must be from 0 to 0.75 of their side, not {self.overlap}")

    def spans(self, length: int) -> list[tuple[int, int]]:
        """(start, stop) of each tile along a side of `length` pixels."""
        if length <= self.tile:
            return [(0, length)]
        step = self.tile * (1 - self.overlap)
        last = length - self.tile
        count = math.ceil(last / step)
        return [(start, start + self.tile) for start in (i * last // count for i in range(count + 1))]

    def boxes(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """left, top, right, bottom of each tile, row by row."""
        pairs = product(self.spans(height), self.spans(width))
        return [(left, top, right, bottom) for (top, bottom), (left, right) in pairs]


@dataclass(frozen=True, eq=False)
class Tiles:
    """The patch maps of a tiled picture."""

    patch_maps: np.ndarray
    """float32 (rows, columns, h, w) in [0, 1]: patch probabilities of each tile."""
    tiling: Tiling
    input_size: tuple[int, int]
    """(height, width) in pixels that the model saw of each tile."""

    def anomaly_map(self, size: tuple[int, int], sigma: float) -> np.ndarray:
        """float32 `size` = (height, width) of the picture, in [0, 1]: the tiles' anomaly maps, each weighted by the
        distance to the border of its tile. Where two overlap, one fades into the other; memory is that of the map."""
        blended = np.zeros(size, np.float32)
        rows, columns = (self.tiling.spans(length) for length in size)
        for maps, (top, bottom), row_weights in zip(self.patch_maps, rows, _weights(rows), strict=True):
            for patch_map, (left, right), column_weights in zip(maps, columns, _weights(columns), strict=True):
                tile_map = anomaly_map(patch_map, self.input_size, (bottom - top, right - left), sigma)
                tile_map *= row_weights[:, None]
                tile_map *= column_weights
                blended[top:bottom, left:right] += tile_map
        return np.clip(blended, 0.0, 1.0, out=blended)

    def patch_centres(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """y and x in pixels of the centre of each patch, in the order of `patch_maps`; `size` as above."""
        axes = []
        for length, n in zip(size, self.patch_maps.shape[2:], strict=True):
            spans = np.array(self.tiling.spans(length))  # (tiles, 2)
            axes.append(spans[:, :1] + (np.arange(n) + 0.5) / n * (spans[:, 1:] - spans[:, :1]))
        rows, columns = axes
        y, x = np.broadcast_arrays(rows[:, None, :, None], columns[None, :, None, :])
        return y.ravel(), x.ravel()


def _weights(spans: list[tuple[int, int]]) -> list[np.ndarray]:
    """Of the pixels of each span, float32: highest in its middle, with a sum of 1 over the spans at every pixel."""
    total = np.zeros(spans[-1][1])
    ramps = []
    for start, stop in spans:
        distance = np.arange(stop - start) + 0.5
        ramps.append(np.minimum(distance, distance[::-1]))
        total[start:stop] += ramps[-1]
    return [(ramp / total[start:stop]).astype(np.float32) for ramp, (start, stop) in zip(ramps, spans, strict=True)]
