"""AUROC, AP, F1-max and AUPRO of pictures and pixels, in memory that does not grow with the number of maps.

All of them follow from a few counts for each score of a defective pixel: how many normal and defective pixels score
higher, and as high. AUPRO is the area under the mean overlap of the connected regions (the share of a region that is
found) against the false-positive rate of pixels, from 0 to `FPR_LIMIT`, divided by that limit; it asks no more of a
region than that each pixel weighs 1 / area. So no map is kept: a histogram of the scores of normal pixels and one of
defective pixels, with their number and weight, are enough.

**Bound.** Scores are float32 in [0, 1]; their bit patterns, read as integers, have the same order. A histogram keeps the
values apart while pixels are few. Then it divides the patterns into bins of 512, fine in proportion to the score, and
gives up the order within a bin if that holds at most `SHARE` = 7e-5 of the mass above it. Denser bins, as around the
ends of a saturated softmax, stay exact. So at every threshold only the bin around it is in doubt: the true count of
normal pixels, FP, is between a certain one and 1 + SHARE times that, and so are the count and the weight of defective
pixels, TP. Two extremes enclose the truth: unordered normal pixels at the top of their bins and unordered defects at
the bottom, or the reverse. `bounds` gives the metrics of both and `compute` their middle. They differ in

- AUROC and AUPRO by at most SHARE for the doubt in FP, and SHARE for that in TP or weight: they are areas.
- F1 = 2 TP / (TP + FP + defects) by a factor of at most (1 + SHARE)^2 at each threshold, so F1-max by 2 SHARE.
- AP, the mean over the defects of P = TP / (TP + FP), by at most 2.75 SHARE: the doubt in the counts moves P by at most
  2 SHARE P (1 - P) <= SHARE / 2. An unordered defect may also move past the ordered normal pixels of its bin, and P
  falls there; as a bin has at most SHARE TP such defects, this costs SHARE / defects times the sum of TP over the falls
  of P, and that sum is at most (1 + 1/4) defects, as TP P stays >= 0 and one defect adds at most P + P (1 - P) to it.
  Last, defects put in one place share one P although they may follow one another: at most SHARE.

Hence the middle is within SHARE, for AP within 1.4 SHARE, of the exact value: 1e-4. There are at most
(1 + ln(pixels SHARE)) / SHARE dense bins; if they ever hold more than `CAPACITY` values, the histogram doubles its own
share to stay small, and `bounds`, which hold for any share, tell the cost.
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

Metrics = dict[str, float | None]
"""Metrics by name, each in [0, 1]; None where it is not defined."""

FPR_LIMIT = 0.3

SHARE = 7e-5
"""Bins whose order is given up hold at most this share of the mass above them."""
BUFFER = 1 << 21
"""Pixels of a kind that are gathered before they go into bins; classes with fewer are exact."""
CAPACITY = 1 << 21
"""Values that a histogram keeps apart at most."""


def image_metrics(scores: np.ndarray, labels: np.ndarray) -> Metrics:
    """Exact `image_auroc`, `image_ap` and `image_f1max`; None if all pictures are normal or all are defective.

    scores (n,) finite numbers of any range, higher for defects; labels (n,) nonzero for a defective picture.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels) != 0
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"expected scores and labels of one shape (n,), got {scores.shape} and {labels.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("the scores hold NaN or infinity")
    normal, defects = (np.unique(scores[labels == label], return_counts=True) for label in (False, True))
    return _rank_metrics("image", normal[0], normal[1][None], defects[0], defects[1][None])


def dataset_mean(per_class: Mapping[str, Mapping[str, float | None]]) -> tuple[Metrics, dict[str, list[str]]]:
    """The mean of every metric over the classes that have it, and the names of the classes left out, by metric."""
    means, left_out = {}, {}
    for name in dict.fromkeys(name for metrics in per_class.values() for name in metrics):
        values = {label: metrics.get(name) for label, metrics in per_class.items()}
        found = [value for value in values.values() if value is not None]
        means[name] = sum(found) / len(found) if found else None
        left_out[name] = [label for label, value in values.items() if value is None]
    return means, left_out


class PixelMetrics:
    """Pixel metrics of one class, map by map, within 1e-4 of the exact values in constant memory (see the module).

    `exact` keeps every distinct score: for small sets, as memory grows with the pixels.
    """

    def __init__(self, exact: bool = False) -> None:
        self._normal = _Histogram(columns=1, exact=exact)
        self._defects = _Histogram(columns=2, exact=exact)
        self._lowest, self._highest = 1.0, 0.0

    def update(self, anomaly_map: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Add a picture: its map (H, W) in [0, 1], taken as float32, and its mask (H, W), nonzero where defective, or
        None for a normal picture. Regions are 8-connected."""
        scores = np.asarray(anomaly_map, dtype=np.float32)
        if scores.ndim != 2 or not scores.size:
            raise ValueError(f"expected an anomaly map (H, W), got shape {scores.shape}")
        if mask is not None and np.shape(mask) != scores.shape:
            raise ValueError(f"the mask {np.shape(mask)} and the anomaly map {scores.shape} differ in shape")
        lowest, highest = float(scores.min()), float(scores.max())
        if not (lowest >= 0 and highest <= 1):  # NaN is neither
            raise ValueError(f"anomaly scores must be in [0, 1], these are in [{lowest:g}, {highest:g}]")
        self._lowest, self._highest = min(self._lowest, lowest), max(self._highest, highest)
        keys = _keys(scores)
        defective = np.zeros(scores.shape, bool) if mask is None else np.asarray(mask) != 0
        self._normal.add(keys[~defective])
        if defective.any():
            box = ndimage.find_objects(defective.view(np.uint8))[0]  # what is outside need not be labelled
            inside = defective[box]
            regions = ndimage.label(inside, structure=np.ones((3, 3)))[0][inside]
            self._defects.add(keys[box][inside], (1 / np.bincount(regions - 1))[regions - 1])

    def compute(self) -> Metrics:
        """`pixel_auroc`, `pixel_ap`, `pixel_f1max`, `aupro` and `aupro_200`; None unless there are pixels of both kinds.

        `aupro_200` is the released code's approximation: thresholds in 200 equal steps from the class's lowest to its
        highest score; mean overlap against false-positive rate of `score > threshold` where that rate is below
        FPR_LIMIT; trapezoids over the rates stretched to [0, 1], None if fewer than two are left. It changes with
        the scale of the scores. It is exact if no order was given up; otherwise the rates are known to SHARE / 2 of
        themselves, but there is no bound for what follows from them, as one rate may cross the limit.
        """
        extremes = self._extremes()
        middle = {name: pair and sum(pair) / 2 for name, pair in self._bounds(*extremes).items()}
        return middle | {"aupro_200": self._aupro_200(*extremes)}

    def bounds(self) -> dict[str, tuple[float, float] | None]:
        """An interval that holds the exact value, for each metric but `aupro_200`; a point if no order was given up."""
        return self._bounds(*self._extremes())

    @property
    def nbytes(self) -> int:
        """The size of all that is kept between calls."""
        return self._normal.nbytes + self._defects.nbytes

    def _extremes(self) -> list[tuple[np.ndarray, ...]]:
        """What `_rank_metrics` takes, in the worst and in the best case of what is not known."""
        return [(*self._normal.placed(top=not best), *self._defects.placed(top=best)) for best in (False, True)]

    def _bounds(self, worst: tuple[np.ndarray, ...], best: tuple[np.ndarray, ...]) -> dict:
        low, high = _rank_metrics("pixel", *worst), _rank_metrics("pixel", *best)
        if not self._defects.ordered and low["pixel_ap"] is not None:
            low["pixel_ap"] /= 1 + self._defects.share  # the last item on AP in the module's text
        return {name: None if low[name] is None else (low[name], high[name]) for name in low}

    def _aupro_200(self, *extremes: tuple[np.ndarray, ...]) -> float | None:
        if not self._lowest < self._highest or not all(array.size for array in extremes[0]):
            return None
        step = (self._highest - self._lowest) / 200
        count = np.ceil((self._highest - self._lowest) / step)  # 201 now and then, by rounding, as in that code
        thresholds = _keys((self._lowest + step * np.arange(count)).astype(np.float32))

        def rate_above(keys: np.ndarray, mass: np.ndarray) -> np.ndarray:
            from_top = np.append(np.cumsum(mass[::-1])[::-1], 0)
            return from_top[np.searchsorted(keys, thresholds, side="right")] / from_top[0]

        rates = [(rate_above(n_keys, n[0]), rate_above(d_keys, d[1])) for n_keys, n, d_keys, d in extremes]
        false, overlap = np.mean(rates, axis=0).astype(np.float32)  # that code's precision
        kept = false < np.float32(FPR_LIMIT)
        false, overlap = false[kept], overlap[kept]
        if np.unique(false).size < 2:
            return None
        return float(np.sum((false[:-1] - false[1:]) * (overlap[:-1] + overlap[1:])) / 2 / np.ptp(false))


class _Histogram:
    """The mass of pixels by score, in `columns`: their number and, for defects, their weight.

    Bin j takes keys from `edges[j]` (uint32, ascending) to below the next edge. At every threshold the mass at or above
    it lies between what `low`, at the lower ends of the bins, and `high`, at the upper ends, (columns, bins), add up to.
    """

    def __init__(self, columns: int, exact: bool) -> None:
        self.edges, self.low, self.high = np.zeros(1, np.uint32), np.zeros((columns, 1)), np.zeros((columns, 1))
        self.share = SHARE
        self.ordered = True
        self._exact = exact
        self._buffer: list[tuple[np.ndarray, ...]] = []
        self._buffered = 0

    @property
    def nbytes(self) -> int:
        arrays = [self.edges, self.low, self.high, *(array for part in self._buffer for array in part)]
        return sum(array.nbytes for array in arrays)

    def add(self, *pixels: np.ndarray) -> None:
        """Keys (n,) and, for defects, weights (n,)."""
        self._buffer.append(pixels)
        self._buffered += pixels[0].size
        if self._buffered >= BUFFER and not self._exact:
            self._flush()

    def placed(self, top: bool) -> tuple[np.ndarray, np.ndarray]:
        """Distinct keys (K,), ascending, and mass (columns, K), unordered pixels at the top or bottom of their bins."""
        if self.ordered:
            keys, *weight = self._sorted()
            keys, starts = _distinct(keys)
            counts = np.diff(starts, append=self._buffered)
            return keys, np.stack([counts, *(np.add.reduceat(column, starts) for column in weight)])
        if self._buffer:
            self._flush()
        keys, mass = (np.append(self.edges[1:], _NO_KEY) - np.uint32(1), self.high) if top else (self.edges, self.low)
        filled = mass[0] > 0
        return keys[filled], mass[:, filled]

    def _sorted(self) -> list[np.ndarray]:
        """The buffer by ascending key."""
        nothing = (self.edges[:0], *self.low[1:, :0])
        keys, *weight = (np.concatenate(arrays) for arrays in zip(nothing, *self._buffer, strict=True))
        if not weight:
            keys.sort()  # in place, ten times faster than sorting indices
            return [keys]
        order = np.argsort(keys)
        return [keys[order], *(column[order] for column in weight)]

    def _flush(self) -> None:
        """Move the buffer into the bins, after cutting those that would hold too much."""
        keys, *weight = self._sorted()
        self._buffer, self._buffered, self.ordered = [], 0, False
        sums = [np.append(np.cumsum(column), 0) for column in weight]

        def below(places: np.ndarray) -> list[np.ndarray]:
            """The mass of the pixels before each place in `keys`."""
            return [places, *(column[places - 1] for column in sums)]

        places = np.append(np.searchsorted(keys, self.edges), keys.size)
        added = np.diff(below(places))
        heavy = (added[0] > 0) & ~self._allowed(self.low + added, self.high + added)
        if heavy.any():
            counts = np.diff(places)[heavy]
            inside = np.repeat(places[1:][heavy] - np.cumsum(counts), counts) + np.arange(counts.sum())
            # Cut where the mass from the top enters a new one of steps that grow by half the share ...
            first = np.zeros(inside.size, bool)
            for all_mass, mass in zip(below(places[-1:]), below(inside), strict=True):
                steps = (np.log(all_mass - mass) * (2 / self.share)).astype(np.int32)
                first |= np.diff(steps, append=-1) != 0
            values = _distinct(keys[inside[first]])[0]
            # ... and above a value that is more than half the share by itself, so that it is alone in its bin.
            left, right = (below(np.searchsorted(keys, values, side=side)) for side in ("left", "right"))
            alone = np.zeros(values.size, bool)
            for all_mass, mass, more in zip(below(places[-1:]), left, right, strict=True):
                alone |= more - mass > self.share / 2 * (all_mass - more)
            edges = np.concatenate([values, values[alone] + np.uint32(1)])
            edges.sort()
            at = np.searchsorted(self.edges, edges)
            new = (np.diff(edges, prepend=_NO_KEY) != 0) & (self.edges.take(at, mode="clip") != edges)
            edges, at = edges[new], at[new]
            self.edges = np.insert(self.edges, at, edges)
            self.low = np.insert(self.low, at, 0, axis=1)
            self.high = np.insert(self.high, at - 1, 0, axis=1)
            places = np.insert(places, at, np.searchsorted(keys, edges))
            added = np.diff(below(places))
        self.low += added
        self.high += added
        while self.edges.size > CAPACITY:
            self._thin()

    def _allowed(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """(bins,) bool: whether the doubt inside a bin is at most `share` of what is surely above it."""
        surely, perhaps = (np.cumsum(mass, axis=1) for mass in (low, high))
        surely = surely[:, -1:] - surely
        perhaps = perhaps[:, -1:] - perhaps + high
        return (perhaps <= (1 + self.share) * surely).all(axis=0) | (np.diff(self.edges, append=_NO_KEY) == 1)

    def _thin(self) -> None:
        """Merge pairs of bins where doubling the share allows it."""
        self.share *= 2
        pairs = np.arange(0, self.edges.size, 2)
        allowed = self._allowed(*(np.add.reduceat(mass, pairs, axis=1) for mass in (self.low, self.high)))
        kept = np.ones(self.edges.size, bool)
        kept[1::2] = ~allowed[: self.edges.size // 2]
        starts = np.flatnonzero(kept)
        self.low, self.high = (np.add.reduceat(mass, starts, axis=1) for mass in (self.low, self.high))
        self.edges = self.edges[kept]


_NO_KEY = np.uint32(0x3F800001)
"""Above the key of score 1."""


def _keys(scores: np.ndarray) -> np.ndarray:
    """float32 (...) >= 0 -> uint32 (...) in the same order."""
    return (scores + np.float32(0)).view(np.uint32)  # -0 + 0 is 0


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending keys (n,) -> the distinct ones and the place of the first of each."""
    starts = np.flatnonzero(np.diff(keys, prepend=_NO_KEY))
    return keys[starts], starts


def _rank_metrics(
    prefix: str, normal: np.ndarray, normal_mass: np.ndarray, defects: np.ndarray, defect_mass: np.ndarray
) -> Metrics:
    """Metrics from distinct ascending scores and the mass at each: (1, K) of numbers for the normal ones; (1, K) of
    numbers for the defective ones, or (2, K) of numbers and overlaps, which adds `aupro`. Ties are as in scikit-learn.
    """
    names = [f"{prefix}_{name}" for name in ("auroc", "ap", "f1max")] + ["aupro"] * (len(defect_mass) == 2)
    if not normal.size or not defects.size:
        return dict.fromkeys(names)
    # For each score of a defect: the normal pixels as high or higher, those as high, the defects as high or higher.
    place = np.searchsorted(normal, defects)
    false = np.append(np.cumsum(normal_mass[0, ::-1])[::-1], 0)[place]
    tied = np.where(normal.take(place, mode="clip") == defects, normal_mass[0].take(place, mode="clip"), 0)
    true = np.cumsum(defect_mass[0, ::-1])[::-1]

    def area(mass: np.ndarray, limit: float) -> float:
        """Under the curve of mass found against normal pixels found, up to `limit` of these, as a share of its frame:
        mass counts for as long as the limit is away, on average while the tied normal pixels are found with it."""
        before, after = np.maximum(limit - (false - tied), 0), np.maximum(limit - false, 0)
        left = np.where(tied, (before - after) * (before + after) / (2 * np.maximum(tied, 1)), before)
        return float(mass @ left / (limit * mass.sum()))

    values = [
        area(defect_mass[0], normal_mass.sum()),
        float(defect_mass[0] @ (true / (true + false)) / true[0]),
        float(np.max(2 * true / (true + false + true[0]))),
        *(area(weight, FPR_LIMIT * normal_mass.sum()) for weight in defect_mass[1:]),
    ]
    return dict(zip(names, values, strict=True))
