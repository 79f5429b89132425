"""Training pictures of nano that are composed on photographs: here on tiny ones that are made for the tests."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from hub.nano.canvas import Canvas
from hub.nano.defects import DEFECTS, apply
from hub.nano.photographs import Photographs, is_held_out, noun, perlin
from hub.nano.surfaces import SURFACES

SHOWN = ("asphalt 01 surface", "fork on plain ground", "blood smear, microscope", "brick wall 02 surface")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty grey photographs of noise; every fourth is red and has marks of its own."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    with (root / "LICENSES.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, ["file", "what", "kind", "material", "own_marks"])
        writer.writeheader()
        for i in range(40):
            marked = i % 4 == 3
            pixels = random.integers(80, 160, (72, 60 + i, 1)) * ((1, 0, 0) if marked else (1, 1, 1))
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{i}.jpg")
            kind = "medical" if i % 4 == 2 else "object"
            row = {"file": f"{i}.jpg", "what": SHOWN[i % 4], "kind": kind, "material": "stone-concrete-asphalt"}
            writer.writerow({**row, "own_marks": "cracks" if marked else ""})
    return root


@pytest.fixture(scope="module")
def photographs(folder):
    return Photographs(folder)


def test_a_tenth_is_kept_out_by_its_name_and_marked_ones_are_never_normal(folder, photographs):
    held_out = Photographs(folder, held_out=True).files
    assert held_out and not set(held_out) & set(photographs.files)
    assert len(held_out) + len(photographs.files) == 30
    assert 80 < sum(is_held_out(f"images/{i}.jpg") for i in range(1000)) < 125
    for surface in photographs.families.values():
        image, foreground = surface.draw(Canvas(6, 56, torch.Generator().manual_seed(0)))
        assert image.shape == (6, 3, 56, 56)
        assert foreground.shape == (6, 1, 56, 56)
        assert (image.amax(1) - image.amin(1)).max() < 0.1


def test_families_are_named_after_what_they_show(photographs):
    assert noun("rosewood veneer1 surface") == "rosewood veneer"
    assert list(photographs.families) == ["asphalt", "fork", "blood smear"]
    assert photographs.families["asphalt"].nouns == ("asphalt", "object")
    assert photographs.families["fork"].nouns[:2] == ("fork", "stone")
    assert photographs.families["blood smear"].domain == "medical"


def test_a_batch_follows_its_seed_and_half_of_it_is_normal(photographs):
    one, other, third = (photographs.draw_batch(seed, 24, 56, groups=3) for seed in (5, 5, 6))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.masks, other.masks)
    assert not torch.equal(one.images, third.images)
    assert one.images.shape == (24, 3, 56, 56)
    assert 0 <= one.images.min() <= one.images.max() <= 1
    assert sorted(one.family) == sorted(photographs.families)
    assert torch.equal(one.kind >= 0, one.masks.flatten(1).amax(1) > 0.5)
    for kind in one.kind.view(3, 8):
        assert (kind[:4] == -1).all()
        assert (kind[4:] >= 0).any()


def test_composed_defects_change_the_picture_where_their_masks_say(photographs):
    composed = {defect.draw: defect for defect in photographs.defects if defect not in DEFECTS.values()}
    assert len(composed) == 5
    for defect in composed.values():
        generator = torch.Generator().manual_seed(3)
        image, foreground = SURFACES["concrete"].draw(Canvas(8, 84, generator))
        damaged, mask = apply(defect, Canvas(8, 84, generator), image, foreground)
        assert defect.name in DEFECTS
        assert mask.amax((1, 2, 3)).sum() >= 6
        change = (damaged - image).abs().mean(1, keepdim=True)
        assert (change * mask).sum() / mask.sum() > 5 * (change * (1 - mask)).sum() / (1 - mask).sum()


def test_perlin_noise_is_smooth_and_has_no_seams_between_cells():
    noise = perlin(Canvas(6, 512, torch.Generator().manual_seed(0)))
    assert (noise[..., 1:] - noise[..., :-1]).abs().max() < 0.6
    assert abs(noise.mean()) < 1e-4
    assert noise.std((1, 2, 3)).sub(1).abs().max() < 0.01
