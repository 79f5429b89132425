from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from tipsomaly.studies import metrics
from tipsomaly.studies.metrics import PixelMetrics, dataset_mean, image_metrics

GOLDEN = Path(__file__).parent / "golden" / "metrics.npz"


def saturated(rng, shape):
    """The softmax of two similarities at temperature 0.004: piles up at 0 and 1, both also exactly."""
    return 1 / (1 + np.exp(-rng.normal(-0.02, 0.05, shape) / 0.004))


DISTRIBUTIONS = {
    "uniform": lambda rng, shape: rng.random(shape),
    "saturated": saturated,
    "wide": lambda rng, shape: np.exp(-87 * rng.random(shape)),
    "subnormal": lambda rng, shape: 1e-40 * rng.random(shape),
    "near one": lambda rng, shape: 1 - 1e-5 * rng.random(shape),
    "within 1e-6": lambda rng, shape: 0.5 + 1e-6 * rng.uniform(-1, 1, shape),
    "two spikes": lambda rng, shape: rng.choice([0.2, 0.8], shape) + 1e-6 * rng.normal(size=shape),
    "tied": lambda rng, shape: rng.integers(0, 7, shape) / 6,
    "constant": lambda rng, shape: np.full(shape, 0.3),
    "drifting": lambda rng, shape: np.linspace(0, 0.999, shape[0])[:, None, None] + 1e-3 * rng.random(shape),
    "shrinking": lambda rng, shape: 0.5 + (rng.random(shape) - 0.5) * 0.7 ** np.arange(shape[0])[:, None, None],
}


def maps_and_masks(name, count=6, size=20, seed=0):
    """float32 maps of a distribution, defects somewhat higher; masks of many regions, every third without."""
    rng = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(rng.normal(size=(count, size, size)), (0, 2, 2)) > 0.1
    masks[::3] = False
    scores = DISTRIBUTIONS[name](rng, masks.shape)
    higher = np.where(rng.random(masks.shape) < 0.3, DISTRIBUTIONS[name](rng, masks.shape), 0)
    return np.clip(np.where(masks, np.maximum(scores, higher), scores), 0, 1).astype(np.float32), masks


def accumulated(maps, masks, exact=False):
    accumulator = PixelMetrics(exact)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        accumulator.update(anomaly_map, mask if mask.any() else None)
    return accumulator


def from_sklearn(prefix, scores, labels):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return {
        f"{prefix}_auroc": roc_auc_score(labels, scores),
        f"{prefix}_ap": average_precision_score(labels, scores),
        f"{prefix}_f1max": np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)),
    }


def plain_curve(maps, masks, thresholds, found):
    """The false-positive rate and the mean overlap of regions at each threshold, counted on the maps."""
    labels = [ndimage.label(mask, np.ones((3, 3)))[0] for mask in masks]
    regions = [(i, label == k) for i, label in enumerate(labels) for k in range(1, label.max() + 1)]
    hits = [found(maps, threshold) for threshold in thresholds]
    overlaps = [np.mean([hit[i][region].mean() for i, region in regions]) for hit in hits]
    return np.array([hit[~masks].mean() for hit in hits]), np.array(overlaps)


def plain_aupro(maps, masks, limit=0.3):
    rates, overlaps = plain_curve(maps, masks, np.unique(maps)[::-1], np.greater_equal)
    rates, overlaps = np.append(0, rates), np.append(0, overlaps)
    end = np.interp(limit, rates, overlaps)
    return auc(np.append(rates[rates < limit], limit), np.append(overlaps[rates < limit], end)) / limit


def plain_aupro_200(maps, masks):
    low, high = float(maps.min()), float(maps.max())
    thresholds = np.arange(low, high, (high - low) / 200).astype(np.float32)
    rates, overlaps = plain_curve(maps, masks, thresholds, np.greater)
    rates, overlaps = rates[rates < 0.3], overlaps[rates < 0.3]
    return auc((rates - rates.min()) / (rates.max() - rates.min()), overlaps)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("exact", [True, False])
def test_small_sets_are_exact(name, exact):
    maps, masks = maps_and_masks(name)
    accumulator = accumulated(maps, masks, exact)
    expected = from_sklearn("pixel", maps.ravel(), masks.ravel()) | {"aupro": plain_aupro(maps, masks)}
    result = accumulator.compute()
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert all(low == high == result[key] for key, (low, high) in accumulator.bounds().items())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_streaming_is_within_its_bound_of_the_exact_values(name, monkeypatch):
    monkeypatch.setattr(metrics, "BUFFER", 1 << 15)
    maps, masks = maps_and_masks(name, count=40, size=128)
    accumulator, exact = accumulated(maps, masks), accumulated(maps, masks, exact=True).compute()
    assert not accumulator._normal.ordered
    assert not accumulator._defects.ordered
    result, bounds = accumulator.compute(), accumulator.bounds()
    assert set(bounds) == {"pixel_auroc", "pixel_ap", "pixel_f1max", "aupro"}
    for key, (low, high) in bounds.items():
        assert low - 1e-12 <= exact[key] <= high + 1e-12
        assert low <= result[key] <= high
        assert high - low <= 2e-4
    assert {key: exact[key] for key in bounds} == pytest.approx({key: result[key] for key in bounds}, abs=1e-4)


def test_streaming_gives_up_order_where_it_can(monkeypatch):
    monkeypatch.setattr(metrics, "BUFFER", 1 << 15)
    accumulator = accumulated(*maps_and_masks("uniform", count=40, size=128))
    assert all(low < high for low, high in accumulator.bounds().values())
    assert accumulator._normal.edges.size < accumulator._normal.low[0].sum() / 2


@pytest.mark.parametrize("name", ["uniform", "saturated", "drifting"])
def test_a_full_histogram_gets_coarser_and_its_bounds_hold(name, monkeypatch):
    monkeypatch.setattr(metrics, "BUFFER", 1 << 15)
    monkeypatch.setattr(metrics, "CAPACITY", 1 << 11)
    maps, masks = maps_and_masks(name, count=40, size=128)
    accumulator, exact = accumulated(maps, masks), accumulated(maps, masks, exact=True).compute()
    assert accumulator._normal.edges.size <= 1 << 11
    assert accumulator._normal.share > metrics.SHARE
    for key, (low, high) in accumulator.bounds().items():
        assert low - 1e-12 <= exact[key] <= high + 1e-12
        assert high - low <= 2 * max(accumulator._normal.share, accumulator._defects.share)
    for histogram in (accumulator._normal, accumulator._defects):
        histogram.share *= 1.05  # for rounding
        wide = np.diff(histogram.edges, append=metrics._END) > 1
        assert histogram._allowed(histogram.low, histogram.high)[wide].all()


def test_memory_does_not_grow_with_the_number_of_maps(monkeypatch):
    monkeypatch.setattr(metrics, "BUFFER", 1 << 14)
    monkeypatch.setattr(metrics, "CAPACITY", 1 << 14)
    maps, masks = maps_and_masks("saturated", count=1000, size=64)
    most = []
    for count in (100, 1000):  # both fill the histograms
        accumulator, sizes = PixelMetrics(), []
        for anomaly_map, mask in zip(maps[:count], masks[:count], strict=True):
            accumulator.update(anomaly_map, mask)
            sizes.append(accumulator.nbytes)
        most.append(max(sizes))
    assert most[1] <= 1.2 * most[0]
    assert most[1] < accumulated(maps, masks, exact=True).nbytes / 3


def test_golden_values_of_the_reference():
    golden = np.load(GOLDEN)
    result = accumulated(golden["maps"], golden["masks"]).compute()
    for key in ("pixel_auroc", "pixel_ap", "pixel_f1max"):
        assert result[key] == pytest.approx(float(golden[key]), abs=1e-9)
    assert result["aupro_200"] == pytest.approx(float(golden["pixel_aupro_200_thresholds"]), abs=1e-7)
    assert abs(result["aupro_200"] - result["aupro"]) > 1e-3
    images = image_metrics(golden["scores"], golden["labels"])
    assert images == pytest.approx({key: float(golden[key]) for key in images}, abs=1e-9)
    assert set(images) == {"image_auroc", "image_ap", "image_f1max"}


@pytest.mark.parametrize("name", ["uniform", "saturated", "wide", "on the thresholds"])
def test_aupro_200_is_the_plain_one(name):
    maps, masks = maps_and_masks("uniform" if name == "on the thresholds" else name)
    if name == "on the thresholds":
        maps = (np.round(maps * 200) * (1 / 200)).astype(np.float32)
        maps[0, 0, :2] = 0, 1
    assert accumulated(maps, masks).compute()["aupro_200"] == pytest.approx(plain_aupro_200(maps, masks), abs=1e-6)


def test_aupro_200_changes_with_the_scale_of_scores_and_aupro_does_not():
    maps, masks = maps_and_masks("uniform")
    maps = np.round(maps * 4096) / np.float32(4096)
    as_is, squared = (
        accumulated(scores, masks).compute() for scores in (maps, maps**2)
    )  # squares are exact in float32
    assert np.unique(maps).size == np.unique(maps**2).size
    assert {key: as_is[key] for key in as_is if key != "aupro_200"} == {
        key: squared[key] for key in squared if key != "aupro_200"
    }
    assert abs(as_is["aupro_200"] - squared["aupro_200"]) > 1e-3


def test_regions_are_8_connected_and_weigh_the_same():
    anomaly_map, mask = np.full((9, 9), 0.5), np.zeros((9, 9), bool)
    mask[[0, 1, 8], [0, 1, 8]] = True
    anomaly_map[[0, 1, 8], [0, 1, 8]] = 1, 0, 1
    accumulator = PixelMetrics()
    accumulator.update(anomaly_map, mask)
    assert accumulator.compute()["aupro"] == pytest.approx((1 / 2 + 1) / 2)  # the diagonal pair is one region


def test_the_order_of_maps_does_not_matter(monkeypatch):
    maps, masks = maps_and_masks("saturated", count=40, size=128)
    backwards = maps[::-1], masks[::-1]
    assert accumulated(maps, masks).compute() == pytest.approx(accumulated(*backwards).compute(), abs=1e-9)
    monkeypatch.setattr(metrics, "BUFFER", 1 << 15)
    assert accumulated(maps, masks).compute() == pytest.approx(accumulated(*backwards).compute(), abs=1e-4)


def test_computing_on_the_way_changes_little_or_nothing(monkeypatch):
    monkeypatch.setattr(metrics, "BUFFER", 1 << 15)
    maps, masks = maps_and_masks("saturated", count=20, size=128)
    once, often = accumulated(maps, masks), PixelMetrics()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        often.update(anomaly_map, mask)
        often.compute()
    assert often.compute() == pytest.approx(once.compute(), abs=1e-4)


def test_without_both_kinds_of_pixels_there_is_no_value():
    nothing = dict.fromkeys(("pixel_auroc", "pixel_ap", "pixel_f1max", "aupro", "aupro_200"))
    normal, defective = PixelMetrics(), PixelMetrics()
    normal.update(np.random.default_rng(0).random((8, 8)))
    defective.update(np.random.default_rng(0).random((8, 8)), np.ones((8, 8)))
    for accumulator in (PixelMetrics(), normal, defective):
        assert accumulator.compute() == nothing
        assert set(accumulator.bounds().values()) == {None}
    for labels in ([0, 0], [1, 1]):
        assert image_metrics([0.1, 0.2], labels) == dict.fromkeys(("image_auroc", "image_ap", "image_f1max"))


def test_constant_scores_have_every_value_but_aupro_200():
    accumulator = PixelMetrics()
    accumulator.update(np.full((4, 4), 0.5), np.eye(4))
    result = accumulator.compute()
    assert result["aupro_200"] is None
    assert result["pixel_auroc"] == 0.5
    assert result["aupro"] == pytest.approx(0.15)
    assert result["pixel_ap"] == 0.25


def test_negative_zero_is_zero():
    accumulator = PixelMetrics()
    accumulator.update(np.array([[0.0, -0.0]]), np.array([[True, False]]))
    assert accumulator.compute()["pixel_auroc"] == 0.5


@pytest.mark.parametrize("tied", [False, True])
def test_image_metrics_are_those_of_scikit_learn(tied):
    rng = np.random.default_rng(1)
    labels = rng.random(60) < 0.6
    scores = rng.normal(size=60) + labels
    scores = np.round(scores) if tied else scores
    assert image_metrics(scores, labels) == pytest.approx(from_sklearn("image", scores, labels), abs=1e-12)


def test_the_dataset_mean_is_over_the_classes_that_have_a_value():
    classes = {"a": {"aupro": 0.5, "ap": 0.0}, "b": {"aupro": None, "ap": 0.5}, "c": {"aupro": 0.7}, "d": {"f1": None}}
    means, left_out = dataset_mean(classes)
    assert means == pytest.approx({"aupro": 0.6, "ap": 0.25, "f1": None})
    assert left_out == {"aupro": ["b", "d"], "ap": ["c", "d"], "f1": ["a", "b", "c", "d"]}


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "message"),
    [
        (np.zeros((4, 4, 1)), None, r"\(H, W\), got shape \(4, 4, 1\)"),
        (np.zeros((0, 4)), None, r"got shape \(0, 4\)"),
        (np.zeros((4, 4)), np.zeros((4, 5)), r"mask \(4, 5\) and the anomaly map \(4, 4\)"),
        (np.full((4, 4), np.nan), None, "nan"),
        (np.full((4, 4), np.inf), None, "inf"),
        (np.full((4, 4), -0.1), None, r"in \[0, 1\], these are in \[-0.1, -0.1\]"),
        (np.full((4, 4), 1.1), None, r"these are in \[1.1, 1.1\]"),
    ],
)
def test_bad_maps_and_masks_are_refused_and_leave_nothing(anomaly_map, mask, message):
    accumulator = PixelMetrics()
    with pytest.raises(ValueError, match=message):
        accumulator.update(anomaly_map, mask)
    assert accumulator._normal._buffer == []


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, np.nan], [0, 1], "NaN"),
        ([0.1, 0.2], [0, 1, 1], r"\(2,\) and \(3,\)"),
        ([[0.1, 0.2]], [[0, 1]], r"\(1, 2\)"),
    ],
)
def test_bad_image_scores_are_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        image_metrics(scores, labels)
