from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from tipsomaly import ModelError
from tipsomaly.data.images import fitted_size
from tipsomaly.detection.tiling import Tiles, Tiling
from tipsomaly.detection.views import Viewer


@pytest.fixture
def wide(tmp_path):
    """A picture of 150 x 90 with a bright spot in one corner."""
    pixels = np.random.default_rng(0).normal(120, 20, (90, 150)).clip(0, 255).astype(np.uint8)
    pixels[70:80, 120:135] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


@pytest.mark.parametrize("length", [57, 64, 65, 100, 129, 1000])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
def test_tiles_cover_a_side_and_overlap_at_least_as_asked(length, overlap):
    spans = Tiling(64, overlap).spans(length)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert {stop - start for start, stop in spans} == {min(length, 64)}
    for (_, stop), (start, _) in pairwise(spans):
        assert stop - start >= 64 * overlap
    fewer = len(spans) - 1
    assert fewer == 0 or fewer * 64 - (fewer - 1) * 64 * overlap < length  # no more of them than are needed


def test_a_tile_as_large_as_the_picture_changes_nothing(golden, wide):
    whole = golden.pipe(wide)
    for tile in (150, 151, 4000):
        tiled = golden.pipe.with_options(tile=tile)(wide)
        assert tiled.tiles is None
        assert tiled.score == whole.score
        assert np.array_equal(tiled.anomaly_map, whole.anomaly_map)


def test_one_row_of_tiles_is_each_tile_alone_where_no_other_is(golden, wide):
    tiled = golden.pipe.with_options(tile=90, overlap=0.25)(wide)
    assert tiled.tiles.patch_maps.shape == (1, 2, 11, 11)
    picture = Image.open(wide)
    for box, columns in (((0, 0, 90, 90), slice(0, 60)), ((60, 0, 150, 90), slice(90, 150))):
        alone = golden.pipe(picture.crop(box))
        x = box[0]
        expected = alone.anomaly_map[:, columns.start - x : columns.stop - x]
        np.testing.assert_allclose(tiled.anomaly_map[:, columns], expected, atol=1e-5)


def test_the_score_is_the_whole_pictures_global_and_the_tiles_largest_patch(golden, wide):
    whole, tiled = golden.pipe(wide), golden.pipe.with_options(tile=60)(wide)
    assert tiled.global_score == pytest.approx(whole.global_score, abs=1e-5)
    np.testing.assert_allclose(tiled.patch_map, whole.patch_map, atol=1e-5)
    assert tiled.local_score == tiled.tiles.patch_maps.max()
    assert tiled.score == tiled.global_score + tiled.local_score
    averaged, values = golden.pipe.with_options(tile=60, top=0.1)(wide), np.sort(tiled.tiles.patch_maps.ravel())
    assert averaged.local_score == pytest.approx(values[-(len(values) // 10) :].mean(), abs=1e-5)
    for mode, result in golden.pipe.with_options(tile=60).compare(wide).items():
        alone = golden.pipe.with_options(tile=60, mode=mode)(wide)
        assert result.score == pytest.approx(alone.score, abs=1e-5)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
def test_maps_of_one_value_blend_to_that_value(overlap):
    tiling = Tiling(56, overlap)
    shape = len(tiling.spans(203)), len(tiling.spans(130))
    tiles = Tiles(np.full((*shape, 4, 4), 0.3, np.float32), tiling, (56, 56))
    np.testing.assert_allclose(tiles.anomaly_map((203, 130), sigma=4), 0.3, atol=1e-6)


def seams(pipe, overlap: float) -> tuple[float, float]:
    """How much a step between neighbouring columns differs from the steps beside it, at most: where a tile starts or
    stops, and anywhere else."""
    result = pipe.with_options(tile=112, overlap=overlap)(np.full((112, 336), 90, np.uint8))
    steps = np.diff(result.anomaly_map, axis=1)
    sudden = np.abs(steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2).max(axis=0)
    edges = {edge for span in result.tiles.tiling.spans(336) for edge in span}
    borders = np.isin(np.arange(2, 335), list(edges))
    return sudden[borders].max(), sudden[~borders].max()


def test_a_constant_picture_shows_no_seams(golden):
    at_borders, elsewhere = seams(golden.pipe, 0.25)
    assert at_borders <= elsewhere
    assert seams(golden.pipe, 0)[0] > 100 * at_borders  # tiles side by side do show them


def test_tiles_of_all_pictures_fill_the_batches_and_little_is_held(golden, tmp_path, monkeypatch):
    paths = []
    for i in range(6):
        paths.append(tmp_path / f"{i}.png")
        Image.effect_noise((200, 140), 50).save(paths[-1])
    pipe = golden.pipe.with_options(tile=60, image_size=56)  # 3 rows of 5 tiles, and the whole
    read, cut, encoded, held = [], [], [], []
    original = {name: getattr(Viewer, name) for name in ("read", "cut")} | {"encode": pipe.engine.encode_layers}

    def encode(pixels, *arguments):
        encoded.append(len(pixels))
        held.append(len(cut) - sum(encoded))
        return original["encode"](pixels, *arguments)

    monkeypatch.setattr(Viewer, "read", lambda self, path: read.append(path) or original["read"](self, path))
    monkeypatch.setattr(Viewer, "cut", lambda self, place: cut.append(place) or original["cut"](self, place))
    monkeypatch.setattr(pipe.engine, "encode_layers", encode)
    results = pipe.stream(paths, batch_size=5)
    first = next(results)
    assert len(read) <= 4  # of six
    rest = list(results)
    assert encoded == [5] * 19 + [1]  # 6 x 16 views
    assert max(held) <= 2 * 5
    for path, result in zip(paths, [first, *rest], strict=True):
        alone = golden.pipe.with_options(tile=60, image_size=56)(path)
        np.testing.assert_allclose(result.tiles.patch_maps, alone.tiles.patch_maps, atol=1e-5)


@pytest.mark.parametrize(
    "width, height, expected",
    [(600, 600, (37, 37)), (400, 300, (32, 43)), (300, 400, (43, 32)), (1600, 100, (9, 148)), (10**6, 1, (1, 1369))],
)
def test_a_kept_aspect_ratio_is_in_whole_patches_and_as_many_as_of_a_square(width, height, expected):
    rows, columns = expected
    assert fitted_size(width, height, (518, 518), 14) == (14 * rows, 14 * columns)


def test_keeping_the_aspect_ratio(golden, wide, tmp_path):
    Image.open(wide).resize((90, 90)).save(tmp_path / "square.png")
    keeping = golden.pipe.with_options(keep_aspect=True)
    square, long = keeping([tmp_path / "square.png", wide])  # of two shapes in one batch
    assert square.score == pytest.approx(golden.pipe(tmp_path / "square.png").score, abs=1e-5)
    assert long.patch_map.shape == (9, 14)
    assert long.anomaly_map.shape == (90, 150)
    resized = golden.pipe.with_options(image_size=(9 * 14, 14 * 14))(wide)
    np.testing.assert_allclose(long.anomaly_map, resized.anomaly_map, atol=1e-5)
    tiled = keeping.with_options(tile=90, overlap=0)(wide)
    assert tiled.patch_map.shape == (9, 14)
    assert tiled.tiles.patch_maps.shape == (1, 2, 11, 11)


def test_what_a_picture_is_cut_into_is_part_of_the_settings(golden):
    plain = golden.pipe.settings()
    assert golden.pipe.with_options(tile=60).settings() != plain
    assert golden.pipe.with_options(keep_aspect=True).settings() != plain
    assert golden.pipe.with_options(tile=60).with_options(sigma=1).settings()["tiling"] == [60, 0.25]
    for options in ({"tile": 60}, {"keep_aspect": True}):
        with pytest.raises(ModelError, match="squashed"):
            next(golden.pipe.with_options(**options).pixels([torch.zeros(20, 20).numpy()]))
