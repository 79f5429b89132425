"""Masks as other tools want them: polygons around what is true, and run lengths."""

import numpy as np

TOLERANCE = 0.75
"""Pixels by which a polygon may cut a corner: enough to make a slanted line of a staircase."""


def polygons(mask: np.ndarray, tolerance: float = TOLERANCE) -> list[np.ndarray]:
    """The outer borders of the 8-connected regions of a bool (H, W) mask, largest first, each int (n, 2) points x, y on
    the corners of pixels, clockwise as seen. Holes are filled: the formats that take polygons have none.

    With a tolerance of 0 a polygon without holes covers its region to the pixel; otherwise points that lie within it
    of the straight line between their neighbours are left out (Douglas and Peucker's algorithm).
    """
    rings = [ring for ring in _rings(mask) if _area(ring) > 0]
    rings.sort(key=_area, reverse=True)
    return [_simplified(ring, tolerance) for ring in rings]


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length encoding of a bool (H, W) mask: column by column, how many pixels are false, then
    how many are true, and so on."""
    flat = np.concatenate([[False], np.asarray(mask, bool).ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:-1] != flat[:-2])
    return np.diff(np.concatenate([[0], changes, [flat.size - 2]])).tolist()


def _rings(mask: np.ndarray) -> list[np.ndarray]:
    """Closed borders, int (n, 2), corners alone, with the region on the right: around a region clockwise, around a hole
    the other way. Where two pixels touch at a corner alone, the border goes around both."""
    padded = np.pad(np.asarray(mask, bool), 1)
    above, below, left, right = padded[:-1, 1:-1], padded[1:, 1:-1], padded[1:-1, :-1], padded[1:-1, 1:]
    onward: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for edges, start, step in (
        (below & ~above, (0, 0), (1, 0)),
        (above & ~below, (1, 0), (-1, 0)),
        (right & ~left, (0, 1), (0, -1)),
        (left & ~right, (0, 0), (0, 1)),
    ):
        for y, x in np.argwhere(edges).tolist():
            onward.setdefault((x + start[0], y + start[1]), []).append(step)
    unused = {(point, step) for point, steps in onward.items() for step in steps}
    rings = []
    while unused:
        first = edge = next(iter(unused))
        corners, before = [], None
        while edge in unused:
            unused.remove(edge)
            (x, y), step = edge
            if step != before:
                corners.append((x, y))
            before = step
            point = (x + step[0], y + step[1])
            edge = (point, min(onward[point], key=lambda after: _turn(step, after)))  # to the left: around both
        if first[1] == before:  # it started in the middle of a side
            del corners[0]
        rings.append(np.array(corners))
    return rings


def _turn(before: tuple[int, int], after: tuple[int, int]) -> int:
    """-1 to the left, 0 straight on, 1 to the right, as seen with y downwards."""
    return before[0] * after[1] - before[1] * after[0]


def _area(ring: np.ndarray) -> float:
    """Of what a ring encloses, in pixels; negative if it runs around a hole."""
    x, y = ring.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """The ring without the points that Douglas and Peucker's algorithm leaves out; all of it, if fewer than 3 stay."""
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(1)))
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far, -1]] = True
    spans = [(0, far), (far, len(ring))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        (x, y), line = (closed[first + 1 : last] - closed[first]).T, closed[last] - closed[first]
        length = np.hypot(*line)
        distances = np.abs(line[0] * y - line[1] * x) / length if length else np.hypot(x, y)
        worst = int(np.argmax(distances))
        if distances[worst] > tolerance:
            keep[middle := first + 1 + worst] = True
            spans += [(first, middle), (middle, last)]
    kept = ring[keep[:-1]]
    return kept if len(kept) > 2 else ring


def compressed(counts: list[int]) -> str:
    """Run lengths as COCO's text: from the fourth on as difference to the one two before, five bits a character."""
    text = []
    for i, length in enumerate(counts):
        value = length - counts[i - 2] if i > 2 else length
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr((bits | (32 if more else 0)) + 48))
            if not more:
                break
    return "".join(text)
