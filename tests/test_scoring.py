import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from tipsomaly.detection.scoring import STRATEGIES, anomaly_map, anomaly_probability, image_scores, local_evidence


@pytest.fixture(scope="module")
def results(golden):
    return [golden.pipe(path, name) for path, name in zip(golden.images, golden.case["classes"], strict=True)]


@pytest.mark.parametrize(
    "expected, attribute",
    [
        ("score_object", "object_score"),
        ("score_spatial", "global_score"),
        ("score_local_max", "local_score"),
        ("score_final", "score"),
    ],
)
def test_scores_equal_the_reference(golden, results, expected, attribute):
    np.testing.assert_allclose([getattr(r, attribute) for r in results], golden.expected[expected], atol=1e-4)


def test_learned_prompts_for_the_image_score_equal_the_reference(golden):
    learned = [golden.pipe.compare(path)["learned"].global_score for path in golden.images]
    np.testing.assert_allclose(learned, golden.expected["score_learned"], atol=1e-4)


def test_patch_probabilities_and_maps_equal_the_reference(golden, results):
    patches = np.stack([r.patch_map.ravel() for r in results])
    np.testing.assert_allclose(patches, golden.expected["patch_probability"], atol=1e-4)
    maps = np.stack([anomaly_map(r.patch_map, r.input_size) for r in results])
    np.testing.assert_allclose(maps, golden.expected["anomaly_map"], atol=1e-4)


def test_maps_of_fixed_prompts_equal_the_reference(golden):
    for i, name in enumerate(golden.case["classes"]):
        result = golden.pipe.with_options(mode="fixed")(golden.images[i], name)
        expected = golden.expected["anomaly_map_fixed"][i]
        np.testing.assert_allclose(anomaly_map(result.patch_map, result.input_size), expected, atol=1e-4)


@pytest.mark.parametrize("size", [None, (33, 51), (400, 300)])
def test_the_map_is_upsampling_then_scipys_blur_then_resizing(size):
    patches = np.random.default_rng(0).random((5, 9)).astype(np.float32)
    upsampled = F.interpolate(torch.from_numpy(patches)[None, None], size=(70, 126), mode="bilinear")
    smooth = torch.from_numpy(gaussian_filter(upsampled[0, 0].numpy(), 4))
    if size:
        smooth = F.interpolate(smooth[None, None], size=size, mode="bilinear")[0, 0]
    np.testing.assert_allclose(anomaly_map(patches, (70, 126), size), smooth, atol=1e-5)


def test_a_batch_of_tensors_gives_the_maps_of_its_arrays():
    patches = np.random.default_rng(0).random((3, 5, 9)).astype(np.float32)
    maps = anomaly_map(torch.from_numpy(patches), (70, 126), (80, 90))
    for i in range(3):
        np.testing.assert_allclose(maps[i], anomaly_map(patches[i], (70, 126), (80, 90)), atol=1e-6)


def test_without_sigma_the_map_is_only_upsampled():
    patches = np.eye(2, dtype=np.float32)
    assert anomaly_map(patches, (28, 28), sigma=0)[0, 0] == 1
    assert anomaly_map(patches, (28, 28))[0, 0] < 1


def test_equation_1_is_a_softmax_over_cosines():
    prototypes = F.normalize(torch.randn(2, 8), dim=-1)
    tokens = torch.randn(3, 4, 8) * 100  # of any length
    cosines = torch.stack([F.cosine_similarity(tokens, p, dim=-1) for p in prototypes], -1)
    torch.testing.assert_close(
        anomaly_probability(tokens, prototypes, 0.05), (cosines / 0.05).softmax(-1)[..., 1], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "parts, expected",
    [((0.1, 0.2, 0.4), (0.1, 0.2, 0.2, 0.15, 0.6)), ((0.9, 0.3, 0.05), (0.9, 0.3, 0.9, 0.6, 0.35))],
)
def test_strategies_are_those_of_table_2c(parts, expected):
    assert list(image_scores(*parts)) == list(STRATEGIES) == ["S1", "S2", "S3", "S4", "S5"]
    assert tuple(image_scores(*parts).values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    "shape, top, count", [((10, 10), 0.29, 29), ((12, 12), 0.01, 1), ((3, 2, 8, 9), 0.01, 4), ((4,), 1, 4)]
)
def test_the_local_evidence_is_the_largest_patch_or_the_mean_of_the_largest_ones(shape, top, count):
    values = np.random.default_rng(0).random(shape, np.float32)
    largest = sorted(values.ravel().tolist(), reverse=True)
    assert local_evidence(values) == largest[0]
    assert local_evidence(values, top) == pytest.approx(sum(largest[:count]) / count)
