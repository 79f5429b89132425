"""Masks of every kind become bool arrays of their picture's size."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from trees import SIZE, SPOT, draw

from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import Sample
from tipsomaly.errors import DatasetError


def rgba() -> Image.Image:
    alpha = np.zeros((*SIZE, 4), np.uint8)
    alpha[SPOT > 0] = 255
    return Image.fromarray(alpha)  # white where it is defective, see-through elsewhere


def numbers() -> Image.Image:
    """Two kinds of defect side by side, as numbers."""
    return Image.fromarray(SPOT * np.where(np.arange(SIZE[1]) < 6, 9, 1).astype(np.uint8))


def palette() -> Image.Image:
    """The same in colours, one much darker than the other."""
    image = numbers()
    image.putpalette([0, 0, 0, 0, 40, 0] + [0] * 21 + [200, 0, 0])
    return image


MASKS = {
    "0 and 255": lambda: Image.fromarray(SPOT * 255),
    "0 and 1": lambda: Image.fromarray(SPOT),
    "numbers": numbers,
    "one bit": lambda: Image.fromarray(SPOT > 0),
    "16 bits": lambda: Image.fromarray(SPOT.astype(np.uint16) * 65535),
    "16 bits, 0 and 1": lambda: Image.fromarray(SPOT.astype(np.uint16)),
    "floats": lambda: Image.fromarray(SPOT.astype(np.float32)),
    "colour": lambda: Image.fromarray(np.stack([SPOT * 0, SPOT * 255, SPOT * 0], -1)),
    "transparent": rgba,
    "palette": palette,
    "grey around": lambda: Image.fromarray((SPOT * 195 + 60).astype(np.uint8)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_any_kind_are_read(tmp_path, kind):
    image, path = draw(tmp_path / "a.png"), tmp_path / "mask.tif"
    MASKS[kind]().save(path)
    mask = load_mask(Sample(image, path, "x", "cut", 1))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, SPOT > 0)


def test_a_black_mask_is_empty(tmp_path):
    sample = Sample(draw(tmp_path / "a.png"), draw(tmp_path / "m.png", SPOT * 0), "x", "cut", 1)
    assert not load_mask(sample).any()


def test_masks_are_resized_as_torchvision_does_and_cut_at_one_half(tmp_path):
    random = np.random.default_rng(0)
    mask = (random.random((60, 91)) > 0.4).astype(np.uint8) * 255
    sample = Sample(draw(tmp_path / "a.png", mask), draw(tmp_path / "m.png", mask), "x", "cut", 1)
    pixels = torch.from_numpy(mask)[None, None].float() / 255
    for size in ((21, 35), (120, 200)):
        smooth = F.interpolate(pixels, size, mode="bilinear", antialias=True)[0, 0].numpy()
        clear = np.abs(smooth - 0.5) > 0.01  # PIL rounds to 256 steps, twice
        np.testing.assert_array_equal(load_mask(sample, size)[clear], (smooth > 0.5)[clear])
        assert clear.mean() > 0.9
    np.testing.assert_array_equal(load_mask(sample, (60, 91)), mask > 0)
    assert load_mask(Sample(sample.image, None, "x", "good", 0), (3, 5)).shape == (3, 5)


def test_a_scratch_of_one_pixel_in_a_large_picture_leaves_no_crumbs(tmp_path):
    mask = np.zeros((1000, 1500), np.uint8)
    rows = np.arange(100, 900)
    mask[rows, rows + 300] = 255
    sample = Sample(draw(tmp_path / "a.png", mask), draw(tmp_path / "m.png", mask), "x", "scratch", 1)
    assert load_mask(sample).sum() == 800
    assert not load_mask(sample, (518, 518)).any()


def test_the_mask_of_a_turned_picture_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held sideways: stored 10 x 14, seen 14 x 10
    Image.new("RGB", (10, 14)).save(tmp_path / "a.jpg", exif=exif)
    upright = Sample(tmp_path / "a.jpg", draw(tmp_path / "m.png", SPOT), "x", "cut", 1)
    assert load_mask(upright).shape == SIZE
    assert load_mask(Sample(tmp_path / "a.jpg", None, "x", "good", 0)).shape == SIZE
    turned = Image.fromarray(np.rot90(SPOT).copy())  # quarter a turn to the left, which the tag takes back
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_mask(Sample(tmp_path / "a.jpg", tmp_path / "turned.png", "x", "cut", 1)), SPOT)
    lying = Sample(tmp_path / "a.jpg", draw(tmp_path / "n.png", SPOT.T.copy()), "x", "cut", 1)
    with pytest.raises(DatasetError, match=r"n\.png is 10 x 14 pixels, its picture .*a\.jpg is 14 x 10"):
        load_mask(lying)


def test_pictures_beyond_the_limit_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    sample = Sample(draw(tmp_path / "a.png"), draw(tmp_path / "m.png", SPOT), "x", "cut", 1)
    monkeypatch.setattr("tipsomaly.data.masks.MAX_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"m\.png: more than 0 megapixels"):
        load_mask(sample)
