"""Streaming pixel metrics against scikit-learn and a plain AUPRO of 200 thresholds, one class of 518 x 518 maps.

python examples/benchmarks/metrics.py [--maps 80] [--baseline-maps N]

Prints the time of both in this run, the ratio, how far the results are apart, and the peak of what the streaming one
allocates. Both use one core; CPU seconds are what the ratio is about, as they depend less on what else is running.
The baseline is given all maps at once, in memory; with fewer --baseline-maps its time is scaled up linearly, which
favours it (sorting grows faster), and the results compared are those of the fewer maps.

The ratio depends on how fast numpy sorts, which is up to ten times faster on a processor with AVX512: in CPU seconds 23
(AVX512), 53 (a Xeon with AVX512 that much else ran on) and 85 were seen. The extra memory grows until buffers and bins
are full, 68 MB after 80 maps and 133 MB after 400, and then no more: of each kind of pixels at most BUFFER wait to be
sorted (8 MB of normal, 25 MB of defective ones) and at most CAPACITY bins are kept (21 and 38 MB), whatever the number
of maps is; sorting a buffer into bins takes about twice the buffer for a moment.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from scipy import ndimage

from tipsomaly.detection.scoring import anomaly_map
from tipsomaly.studies.metrics import PixelMetrics

SIZE, PATCHES, TEMPERATURE = 518, 37, 0.004


def make_maps(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Maps as the pipeline makes them, three in four with one to three elliptic defects that it finds more or less."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for index in range(count):
        rng = np.random.default_rng(index)
        mask = np.zeros((SIZE, SIZE), bool)
        for _ in range(rng.integers(1, 4) if index % 4 else 0):
            (y, x), (height, width) = rng.uniform(60, SIZE - 60, 2), rng.uniform(10, 60, 2)
            mask |= ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1
        found = mask.reshape(PATCHES, SIZE // PATCHES, PATCHES, -1).mean(axis=(1, 3))
        similarity = ndimage.gaussian_filter(rng.normal(size=(PATCHES, PATCHES)), 1) * 0.02  # abnormal minus normal
        similarity += rng.normal(-0.012, 0.002) + found * rng.uniform(0, 0.03)
        patches = 1 / (1 + np.exp(-similarity / TEMPERATURE))
        yield anomaly_map(patches, (SIZE, SIZE)), mask


def baseline(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    return {
        "pixel_auroc": roc_auc_score(labels, scores),
        "pixel_ap": average_precision_score(labels, scores),
        "pixel_f1max": np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)),
        "aupro_200": aupro_of_200_thresholds(maps, masks),
    }


def aupro_of_200_thresholds(maps: np.ndarray, masks: np.ndarray) -> float:
    """All maps at each threshold, region by region; the regions are found once."""
    from sklearn.metrics import auc

    regions = []
    for index, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(index, *np.nonzero(labels == region)) for region in range(1, count + 1)]
    normal = ~masks
    pixels = normal.sum()
    lowest, highest = float(maps.min()), float(maps.max())
    overlaps, rates = [], []
    for threshold in np.arange(lowest, highest, (highest - lowest) / 200).astype(np.float32):
        found = maps > threshold
        overlaps.append(np.mean([found[region].mean() for region in regions]))
        rates.append((found & normal).sum() / pixels)
    overlaps, rates = np.array(overlaps), np.array(rates)
    kept = rates < 0.3
    rates = rates[kept]
    return auc((rates - rates.min()) / (rates.max() - rates.min()), overlaps[kept])


def streamed(pairs: Iterable[tuple[np.ndarray, np.ndarray]], exact: bool = False) -> dict[str, float | None]:
    metrics = PixelMetrics(exact)
    for anomaly_scores, mask in pairs:
        metrics.update(anomaly_scores, mask)
    return metrics.compute()


def timed(function: Callable, *arguments: object) -> tuple:
    """The result, the seconds, and the CPU seconds of this thread: both sides use only one."""
    wall, cpu = time.perf_counter(), time.thread_time()
    result = function(*arguments)
    return result, time.perf_counter() - wall, time.thread_time() - cpu


def peak_memory(count: int) -> float:
    """Megabytes allocated at the peak, of which about 10 are for making a map."""
    tracemalloc.start()
    streamed(make_maps(count))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=80, help="maps of the class (default: 80)")
    parser.add_argument("--baseline-maps", type=int, help="maps for the baseline, its time is scaled (default: all)")
    options = parser.parse_args()
    count = options.maps
    fewer = min(options.baseline_maps or count, count)

    pairs = list(make_maps(count))
    maps, masks = map(np.stack, zip(*pairs[:fewer], strict=True))
    result, wall, cpu = timed(streamed, pairs)
    print(f"streaming, {count} maps: {wall:.2f} s, {cpu:.2f} CPU s")
    plain, plain_wall, plain_cpu = timed(baseline, maps, masks)
    print(f"baseline, {fewer} maps: {plain_wall:.2f} s, {plain_cpu:.2f} CPU s", end="")
    plain_wall, plain_cpu = plain_wall * count / fewer, plain_cpu * count / fewer
    print(f"; scaled to {count} maps: {plain_wall:.2f} s, {plain_cpu:.2f} CPU s" if fewer < count else "")
    print(f"ratio: {plain_wall / wall:.0f} ({plain_cpu / cpu:.0f} in CPU seconds)")

    same, exact = result if fewer == count else streamed(pairs[:fewer]), streamed(pairs[:fewer], exact=True)
    del pairs, maps, masks
    print(f"{'metric':12}{'streaming':>12}{'from baseline':>15}{'from exact mode':>17}")
    for name, value in same.items():
        apart = f"{abs(value - plain[name]):.1e}" if name in plain else "-"
        print(f"{name:12}{value:12.6f}{apart:>15}{abs(value - exact[name]):17.1e}")
    for maps_seen in (count, 5 * count):
        print(f"peak extra memory, {maps_seen} maps: {peak_memory(maps_seen):.0f} MB")


if __name__ == "__main__":
    main()
