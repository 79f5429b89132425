"""Drawing on pictures."""

import numpy as np
from PIL import Image

from tipsomaly.detection import visualization


def test_an_overlay_is_the_same_everywhere_on_a_tall_picture():
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (600, 7, 3), dtype=np.uint8))
    anomaly_map = random.random((600, 7), dtype=np.float32)
    base, colours = (np.asarray(picture, np.float32) for picture in (image, visualization.heatmap(anomaly_map)))
    weight = 0.75 * (0.25 + 0.75 * anomaly_map[..., None])
    expected = base + (colours - base) * weight
    drawn = np.asarray(visualization.overlay(image, anomaly_map), np.float32)
    np.testing.assert_allclose(drawn, expected, atol=0.51)


def test_a_heatmap_has_one_scale_for_every_picture():
    low, high = (np.asarray(visualization.heatmap(np.full((2, 2), value))) for value in (0.0, 1.0))
    assert visualization.colours(2) == [tuple(low[0, 0]), tuple(high[0, 0])]
    assert low.sum() < high.sum()
    np.testing.assert_array_equal(np.asarray(visualization.heatmap(np.full((2, 2), 7.0))), high)


def test_contours_lie_within_the_mask():
    mask = np.zeros((40, 40), bool)
    mask[10:20, 5:30] = True
    drawn = np.asarray(visualization.contours(Image.new("RGB", (40, 40)), mask))
    outline = (drawn == visualization.CONTOUR).all(-1)
    assert outline.sum() == mask.sum() - 8 * 23
    assert not (outline & ~mask).any()


def test_pictures_stand_side_by_side_at_one_height():
    row = visualization.side_by_side([Image.new("RGB", (10, 20), "red"), Image.new("L", (40, 40))], height=40)
    assert row.size == (20 + 8 + 40, 40)
    assert row.getpixel((24, 0)) == (255, 255, 255)
