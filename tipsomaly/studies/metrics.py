"""AUROC, AP, F1-max and AUPRO of pictures and pixels, in memory that does not grow with the number of maps.

AUPRO is the area under the mean overlap of the connected regions (the share of a region that is found) against the
false-positive rate of pixels, from 0 to `FPR_LIMIT`, divided by that limit. All metrics follow from how many normal and
defective pixels score at least as high as each defective one, AUPRO if a defective pixel weighs 1 / area of its region.
So no map is kept, only a histogram of the scores of normal pixels and one of defective pixels and their weight.

**Bound.** A histogram keeps every score apart while pixels are few. Then it puts them into bins: `low` is their mass
(number or weight) as if each were at the lower end of its bin, `high` at the upper end, so that the true mass at or
above any threshold is between the two. They never differ by more than `SHARE` of `low`: before new pixels do that
inside a bin, it is cut at some of their values, so that at most SHARE of the new mass above is left between two cuts.
So the doubt grows by at most SHARE of what `low` grows by, whatever comes in whatever order. A bin may be as narrow as
one float32 value, where nothing is in doubt: a saturated softmax or scores within 1e-6 of each other do no harm.

The extremes, normal pixels high and defects low or the reverse, give `bounds`; `compute` gives the middle. With FP and
TP the mass of normal and defective pixels at or above a threshold, the extremes differ in

- AUROC and AUPRO by at most SHARE for the doubt in FP and SHARE for that in TP: they are areas.
- F1 = 2 TP / (TP + FP + defects) by a factor of at most (1 + SHARE)^2 at each threshold, so F1-max by 2 SHARE.
- AP, the mean over the defects of P = TP / (TP + FP), by less than 2 SHARE. The doubt in the counts moves P by at most
  2 SHARE P (1 - P) <= SHARE / 2. At most SHARE TP defects may also move past a normal pixel, where P falls: that costs
  SHARE / defects times the sum of TP over the falls of P, which is at most 1.25 defects, as TP P stays >= 0 and each
  defect raises it by at most P + P (1 - P). Last, k <= SHARE TP defects put in one place share one P, though in truth
  they may follow one another while P rises, by k P (1 - P) / TP <= SHARE / 4, ever more slowly: SHARE / 8 on average.

Hence `compute` is within SHARE of the exact values. Some hundred thousand bins do for that; should there ever be more
than `CAPACITY`, the histogram doubles its own share and joins some, and `bounds` tell what that costs.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage

Metrics = dict[str, float | None]
"""Metrics by name, each in [0, 1]; None where it is not defined."""
Bounds = dict[str, tuple[float, float] | None]

FPR_LIMIT = 0.3
SHARE = 9e-5
"""The bound on the error of each pixel metric: 1e-4 and some room for rounding."""
BUFFER = 1 << 21
"""Pixels of one kind that are gathered before they are put into bins: classes with fewer are exact."""
CAPACITY = 1 << 20
"""The most bins that a histogram has."""

_END = np.uint32(0x3F800001)
"""Above the key of score 1."""


def image_metrics(scores: np.ndarray, labels: np.ndarray) -> Metrics:
    """Exact `image_auroc`, `image_ap` and `image_f1max`; None if all pictures are normal or all are defective.

    scores (n,) finite numbers of any range, higher for defects; labels (n,) nonzero for a defective picture.

    >>> metrics = image_metrics(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    >>> {name: round(value, 4) for name, value in metrics.items()}
    {'image_auroc': 0.75, 'image_ap': 0.8333, 'image_f1max': 0.8}
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels) != 0
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"expected scores and labels of one shape (n,), got {scores.shape} and {labels.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("the scores hold NaN or infinity")
    normal, defects = (np.unique(scores[labels == label], return_counts=True) for label in (False, True))
    return _rank_metrics("image", normal[0], normal[1][None], defects[0], defects[1][None])


def dataset_mean(per_class: Mapping[str, Mapping[str, float | None]]) -> tuple[Metrics, dict[str, list[str]]]:
    """The mean of every metric over the classes that have it, and the names of the classes left out, by metric.

    >>> dataset_mean({"tile": {"aupro": 0.75}, "wood": {"aupro": 0.25}, "grid": {"aupro": None}})
    ({'aupro': 0.5}, {'aupro': ['grid']})
    """
    means, left_out = {}, {}
    for name in dict.fromkeys(name for metrics in per_class.values() for name in metrics):
        values = {label: metrics.get(name) for label, metrics in per_class.items()}
        found = [value for value in values.values() if value is not None]
        means[name] = sum(found) / len(found) if found else None
        left_out[name] = [label for label, value in values.items() if value is None]
    return means, left_out


class PixelMetrics:
    """Pixel metrics of one class, map by map, within 1e-4 of the exact values in constant memory (see the module).

    `exact` keeps and sorts every score: for small sets, as memory grows with the pixels.

    >>> metrics = PixelMetrics()
    >>> metrics.update(np.array([[0.9, 0.2], [0.4, 0.1]]), np.array([[1, 1], [0, 0]]))
    >>> metrics.update(np.array([[0.3, 0.1]]))  # a normal picture
    >>> metrics.compute()["pixel_auroc"]
    0.75
    """

    def __init__(self, exact: bool = False) -> None:
        self._normal, self._defects = _Histogram(1, exact), _Histogram(2, exact)
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
            rows, columns = (np.flatnonzero(defective.any(axis=axis)) for axis in (1, 0))
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # labelling all of it takes longer
            inside = defective[box]
            regions = ndimage.label(inside, structure=np.ones((3, 3)))[0][inside]
            self._defects.add(keys[box][inside], 1 / np.bincount(regions)[regions])

    def compute(self) -> Metrics:
        """`pixel_auroc`, `pixel_ap`, `pixel_f1max`, `aupro` and `aupro_200`; None without pixels of both kinds.

        `aupro_200` is the released code's approximation: thresholds in 200 equal steps from the class's lowest to its
        highest score; mean overlap against false-positive rate of `score > threshold` where that rate is below
        FPR_LIMIT; trapezoids over these rates stretched to [0, 1], None if fewer than two differ. So it changes when
        the scores are rescaled. It is exact while all scores are kept apart. Later each rate is known to SHARE / 2 of
        itself, but the result has no bound, as it jumps when a rate crosses the limit.
        """
        extremes = self._extremes()
        middle = {name: pair and sum(pair) / 2 for name, pair in self._bounds(*extremes).items()}
        return middle | {"aupro_200": self._aupro_200(*extremes)}

    def bounds(self) -> Bounds:
        """An interval that holds the exact value of each metric but `aupro_200`; a point if no order was given up."""
        return self._bounds(*self._extremes())

    @property
    def nbytes(self) -> int:
        """The size of all that is kept between calls."""
        return self._normal.nbytes + self._defects.nbytes

    def _extremes(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """What `_rank_metrics` takes, in the worst and in the best case of what is not known."""
        (low, high), (defects_low, defects_high) = self._normal.extremes(), self._defects.extremes()
        return (*high, *defects_low), (*low, *defects_high)

    def _bounds(self, worst: tuple[np.ndarray, ...], best: tuple[np.ndarray, ...]) -> Bounds:
        low, high = _rank_metrics("pixel", *worst), _rank_metrics("pixel", *best)
        if not self._defects.ordered and low["pixel_ap"] is not None:
            low["pixel_ap"] = max(low["pixel_ap"] - self._defects.share / 8, 0.0)  # the last point on AP above
        ends = ((name, low[name], high[name]) for name in low)
        return {name: None if below is None or above is None else (below, above) for name, below, above in ends}

    def _aupro_200(self, *extremes: tuple[np.ndarray, ...]) -> float | None:
        if not self._lowest < self._highest or not all(array.size for array in extremes[0]):
            return None
        step = (self._highest - self._lowest) / 200
        count = np.ceil((self._highest - self._lowest) / step)  # 201 now and then, by rounding, as in that code
        thresholds = _keys((self._lowest + step * np.arange(count)).astype(np.float32))

        def rate_above(keys: np.ndarray, mass: np.ndarray) -> np.ndarray:
            from_top = np.append(np.cumsum(mass[::-1])[::-1], 0)
            return from_top[np.searchsorted(keys, thresholds, side="right")] / from_top[0]

        rates = [(rate_above(normal, n[0]), rate_above(defects, d[1])) for normal, n, defects, d in extremes]
        false, overlap = np.mean(rates, axis=0).astype(np.float32)  # that code's precision
        kept = false < np.float32(FPR_LIMIT)
        false, overlap = false[kept], overlap[kept]
        if np.unique(false).size < 2:
            return None
        return float(np.sum((false[:-1] - false[1:]) * (overlap[:-1] + overlap[1:])) / 2 / np.ptp(false))


class _Histogram:
    """The mass of pixels by score in `columns`: their number and, for defects, their weight.

    Bin j holds the keys from `edges[j]`, (bins,) uint32 ascending, to below the next edge; `low` and `high`, float64
    (columns, bins), are the mass placed at its lower and upper end. They differ where a bin was cut: what it held is
    then in the first new bin of `low` and in the last of `high`.
    """

    def __init__(self, columns: int, exact: bool) -> None:
        self.edges, self.low, self.high = np.zeros(1, np.uint32), np.zeros((columns, 1)), np.zeros((columns, 1))
        self.ordered, self.share = True, SHARE
        self._exact = exact
        self._buffer: list[tuple[np.ndarray, ...]] = []
        self._buffered = 0  # pixels

    @property
    def nbytes(self) -> int:
        arrays: list[np.ndarray] = [
            self.edges,
            self.low,
            self.high,
            *(array for part in self._buffer for array in part),
        ]
        return sum(array.nbytes for array in arrays)

    def add(self, *pixels: np.ndarray) -> None:
        """Keys (n,) and, for defects, weights (n,)."""
        self._buffer.append(pixels)
        self._buffered += pixels[0].size
        if self._buffered >= BUFFER and not self._exact:
            self._flush()

    def extremes(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Distinct keys (K,), ascending, and mass (columns, K): at the lower ends of the bins; at the upper ends."""
        if self.ordered:
            keys, *weight = self._sorted()
            keys, starts = _distinct(keys)
            counts = np.diff(starts, append=self._buffered)
            return [(keys, np.stack([counts, *(np.add.reduceat(column, starts) for column in weight)]))] * 2
        if self._buffer:
            self._flush()
        ends = np.append(self.edges[1:], _END) - np.uint32(1)
        return [(k[m[0] > 0], m[:, m[0] > 0]) for k, m in ((self.edges, self.low), (ends, self.high))]

    def _sorted(self) -> list[np.ndarray]:
        """The buffer, by ascending key."""
        nothing = (self.edges[:0], *self.low[1:, :0])
        keys, *weight = (np.concatenate(arrays) for arrays in zip(nothing, *self._buffer, strict=True))
        if not weight:
            keys.sort()  # several times faster than sorting places
            return [keys]
        # Sorting each key with its place in one integer is faster than argsort.
        packed = np.sort(keys.astype(np.uint64) << np.uint64(32) | np.arange(keys.size, dtype=np.uint64))
        order = packed.astype(np.uint32)
        return [keys[order], *(column[order] for column in weight)]

    def _flush(self) -> None:
        """Move the buffer into the bins, after cutting those where it would raise too much doubt."""
        keys, *weight = self._sorted()
        self._buffer, self._buffered, self.ordered = [], 0, False
        sums = [np.append(np.cumsum(column), 0) for column in weight]

        def above(places: np.ndarray) -> list[np.ndarray]:
            """Number and weight of the new pixels from each place on."""
            return [keys.size - places, *(column[-2] - column[places - 1] for column in sums)]

        places = np.append(np.searchsorted(keys, self.edges), keys.size)
        added = -np.diff(above(places))
        heavy = ~self._allowed(self.low + added, self.high + added)
        heavy &= (added[0] > 0) & (np.diff(self.edges, append=_END) > 1)
        if heavy.any():
            counts = np.diff(places)[heavy]
            inside = np.repeat(places[1:][heavy] - np.cumsum(counts), counts) + np.arange(counts.sum())
            cuts = self._cuts(keys, inside, above)
            at = np.searchsorted(self.edges, cuts)
            new = self.edges.take(at, mode="clip") != cuts
            cuts, at = cuts[new], at[new]
            self.edges = np.insert(self.edges, at, cuts)
            self.low = np.insert(self.low, at, 0, axis=1)
            self.high = np.insert(self.high, at - 1, 0, axis=1)
            added = -np.diff(above(np.insert(places, at, np.searchsorted(keys, cuts))))
        self.low += added
        self.high += added
        while self.edges.size > CAPACITY:
            self._thin()

    def _cuts(self, keys: np.ndarray, inside: np.ndarray, above: Callable) -> np.ndarray:
        """New edges, ascending, for the pixels at the places `inside` of `keys`: between two of them is at most `share`
        of the mass above, half of it at the lower edge itself, unless that value has a bin of its own, and half beyond.
        """
        first = np.arange(inside.size) == inside.size - 1  # where the mass, counted from the top, enters a new step
        for mass in above(inside):
            steps = np.floor(np.log(mass.astype(np.float32)) * np.float32(2 / self.share))
            first[:-1] |= steps[:-1] != steps[1:]
        values = _distinct(keys[inside[first]])[0]
        alone = np.zeros(values.size, bool)
        for mass, rest in zip(*(above(np.searchsorted(keys, values, side=s)) for s in ("left", "right")), strict=True):
            alone |= mass - rest > rest * (self.share / 2)
        return _distinct(np.sort(np.concatenate([values, values[alone] + np.uint32(1)])))[0]

    def _allowed(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """(bins,) bool: whether at thresholds inside a bin the doubt is at most `share` of what is surely above."""
        surely, perhaps = (np.cumsum(mass, axis=1) for mass in (low, high))
        surely, perhaps = surely[:, -1:] - surely, perhaps[:, -1:] - perhaps + high
        return (perhaps <= (1 + self.share) * surely).all(axis=0)

    def _thin(self) -> None:
        """Double the share, and join the pairs of bins where it is kept."""
        self.share *= 2
        pairs = np.arange(0, self.edges.size, 2)
        kept = np.ones(self.edges.size, bool)
        allowed = self._allowed(*(np.add.reduceat(mass, pairs, axis=1) for mass in (self.low, self.high)))
        kept[1::2] = ~allowed[: self.edges.size // 2]
        starts = np.flatnonzero(kept)
        self.edges = self.edges[starts]
        self.low, self.high = (np.add.reduceat(mass, starts, axis=1) for mass in (self.low, self.high))


def _keys(scores: np.ndarray) -> np.ndarray:
    """float32 (...) >= 0 -> their bits as uint32 (...), in the same order."""
    return (scores + np.float32(0)).view(np.uint32)  # -0 + 0 is 0


def _distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending keys (n,) -> the distinct ones and the place of the first of each."""
    starts = np.flatnonzero(np.diff(keys, prepend=_END))
    return keys[starts], starts


def _rank_metrics(
    prefix: str, normal: np.ndarray, normal_mass: np.ndarray, defects: np.ndarray, defect_mass: np.ndarray
) -> Metrics:
    """Metrics from distinct ascending scores and the mass at each: numbers (1, K) of normal pixels or pictures; numbers
    (1, K) of defective ones, or numbers and weights (2, K), which add `aupro`. Ties count as in scikit-learn."""
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
