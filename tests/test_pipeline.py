import copy
import json
import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from full_disk import files_of_at_most
from PIL import Image

from tipsomaly import ImageError, LearnedPrompts, ModelError, Pipeline, PromptEnsemble
from tipsomaly.errors import OptionError
from tipsomaly.models.folder import ModelFolder


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for i, size in enumerate([(30, 20), (64, 64), (17, 90), (200, 100), (50, 50)]):
        paths.append(tmp_path / f"{i}.png")
        Image.effect_noise(size, 30 + 10 * i).save(paths[-1])
    return paths


def new_pipe(golden):
    return Pipeline(golden.pipe.tips, golden.pipe.tokenizer, golden.pipe.prompts, image_size=golden.pipe.image_size)


def test_a_result_has_the_size_of_its_picture(golden, pictures):
    for path in pictures:
        result = golden.pipe(path, "nut")
        width, height = Image.open(path).size
        assert (result.width, result.height) == (width, height)
        assert result.anomaly_map.shape == (height, width)
        assert result.anomaly_map.dtype == result.patch_map.dtype == np.float32
        assert result.patch_map.shape == (11, 11)
        assert 0 <= result.anomaly_map.min() <= result.anomaly_map.max() <= 1
        assert result.score == result.global_score + result.local_score
        assert result.overlay().size == (width, height)


def test_a_list_gives_a_list_in_order_equal_to_one_by_one(golden, pictures):
    single = [golden.pipe(path, "nut") for path in pictures]
    for together in (golden.pipe(pictures, "nut", batch_size=2), list(golden.pipe.stream(iter(pictures), "nut"))):
        for one, other in zip(single, together, strict=True):
            assert other.source == one.source
            assert other.score == pytest.approx(one.score, abs=1e-5)
            np.testing.assert_allclose(other.patch_map, one.patch_map, atol=1e-5)


def test_every_kind_of_source_gives_the_same_result(golden, pictures):
    path = pictures[3]
    image = Image.open(path).convert("RGB")
    for source in (str(path), path.read_bytes(), image, np.asarray(image)):
        assert golden.pipe(source, "nut").score == golden.pipe(path, "nut").score


def test_rectangular_input(golden, pictures):
    result = golden.pipe.with_options(image_size=(56, 112))(pictures[3])
    assert result.patch_map.shape == (4, 8)
    assert result.anomaly_map.shape == (100, 200)


def test_a_broken_picture_loses_nothing_already_computed(golden, pictures):
    sources = [*pictures[:3], b"junk", *pictures[3:]]
    seen = []
    with pytest.raises(ImageError, match="not a picture"):
        seen.extend(golden.pipe.stream(sources, batch_size=8))
    outcomes = list(golden.pipe.stream(sources, batch_size=2, errors="yield"))
    assert [isinstance(o, ImageError) for o in outcomes] == [False, False, False, True, False, False]
    for result, outcome in zip(golden.pipe(pictures), outcomes[:3] + outcomes[4:], strict=True):
        assert outcome.score == pytest.approx(result.score, abs=1e-5)
    it = golden.pipe.stream(sources, batch_size=8)
    assert [next(it).source for _ in range(3)] == pictures[:3]


def test_a_stream_reads_only_a_little_ahead(golden, pictures):
    read = []

    def endless():
        while True:
            read.append(pictures[0])
            yield pictures[0]

    stream = golden.pipe.stream(endless(), batch_size=2)
    for _ in range(6):
        next(stream)
    assert len(read) <= 6 + 3 * 2
    stream.close()


def test_maps_made_with_the_batch_are_those_made_when_asked_for(golden, pictures):
    for one, other in zip(golden.pipe(pictures), golden.pipe.stream(pictures, maps=True), strict=True):
        assert "anomaly_map" in vars(other)
        np.testing.assert_allclose(other.anomaly_map, one.anomaly_map, atol=1e-6)


def test_a_compiled_tower_scores_the_same(golden, pictures):
    pipe = Pipeline.from_pretrained(golden.folder)
    expected = [result.score for result in pipe(pictures)]
    with pytest.raises(ModelError, match="cannot be compiled"):
        pipe.compile(backend="no such backend")
    np.testing.assert_allclose([result.score for result in pipe(pictures)], expected, atol=1e-6)
    assert pipe.compile(2, backend="eager") > 0
    np.testing.assert_allclose([r.score for r in pipe(pictures, batch_size=2)], expected, atol=1e-5)
    assert pipe.tips.state_dict().keys() == golden.pipe.tips.state_dict().keys()


def test_compare_is_the_ablation(golden, pictures):
    own = PromptEnsemble(normal=["clean {}"], abnormal=["dirty {}"])
    results = golden.pipe.compare(pictures[0], "nut", own=own)
    assert list(results) == ["fixed", "learned", "decoupled", "own"]
    for mode in ("fixed", "learned", "decoupled"):
        alone = golden.pipe.with_options(mode=mode)(pictures[0], "nut")
        assert results[mode].score == pytest.approx(alone.score, abs=1e-5)
    assert results["decoupled"].global_score == results["fixed"].global_score
    assert results["decoupled"].local_score == results["learned"].local_score
    assert results["own"].score != results["fixed"].score


def test_similarities_are_those_of_the_sentences_that_make_the_global_score(golden, pictures):
    result = golden.pipe(pictures[3], "metal_nut")
    prototypes = golden.pipe.prototypes("metal_nut")[0].numpy()
    sentences = golden.pipe.domain.sentences("metal nut")
    for similarities, texts, prototype in zip(golden.pipe.similarities(result), sentences, prototypes, strict=True):
        assert sorted(similarities) == sorted(texts)
        assert list(similarities.values()) == sorted(similarities.values(), reverse=True)
        assert np.sign(np.mean(list(similarities.values()))) == np.sign(result.spatial_token @ prototype)
    normal, abnormal = prototypes @ result.spatial_token / golden.pipe.tips.config.temperature
    assert 1 / (1 + np.exp(normal - abnormal)) == pytest.approx(result.global_score, abs=1e-4)


def test_regions_masks_and_saved_files(golden, pictures, tmp_path):
    result = golden.pipe(pictures[3])
    peak = float(result.anomaly_map.max())
    regions = result.regions(peak * 0.9)
    mask = result.mask(peak * 0.9)
    assert sum(region.area for region in regions) == mask.sum() > 0
    assert regions[0].peak == peak
    left, top, right, bottom = regions[0].box
    y, x = np.unravel_index(result.anomaly_map.argmax(), result.anomaly_map.shape)
    assert left <= x < right
    assert top <= y < bottom
    assert result.regions(1.1) == []
    with pytest.raises(OptionError, match="without a calibration there is no threshold"):
        result.regions()
    calibrated = replace(result, pixel_threshold=peak * 0.9)
    assert calibrated.regions() == regions
    assert np.array_equal(calibrated.mask(), mask)
    paths = result.save(tmp_path / "out")
    np.testing.assert_array_equal(np.load(paths["map"]), result.anomaly_map)
    assert paths["overlay"].name == "3_overlay.png"
    assert Image.open(paths["overlay"]).size == (200, 100)


def test_threads_get_what_they_would_get_alone(golden, pictures):
    names = ["nut", "bolt", "pill", "cable", "tile"]
    alone = {(p, n): golden.pipe(p, n).score for p in pictures for n in names}
    fresh = new_pipe(golden)  # with an empty prototype cache
    barrier = threading.Barrier(5)

    def work(name):
        barrier.wait()
        return {(p, name): fresh(p, name).score for p in pictures}

    with ThreadPoolExecutor(5) as pool:
        for scores in pool.map(work, names):
            for key, score in scores.items():
                assert score == pytest.approx(alone[key], abs=1e-5)


def test_options_of_a_copy_leave_the_original_alone(golden, pictures):
    before = golden.pipe(pictures[0]).score
    other = golden.pipe.with_options(domain="medical", image_size=56, mode="fixed")
    assert other(pictures[0]).score != before
    assert other.tips is golden.pipe.tips
    assert golden.pipe(pictures[0]).score == before


def test_prototypes_are_computed_once_for_each_class(golden, monkeypatch):
    calls = []
    import tipsomaly.detection.detector as module

    original = module.prototypes
    monkeypatch.setattr(module, "prototypes", lambda *args: calls.append(1) or original(*args))
    pipe = new_pipe(golden)
    for name in ("metal_nut", "metal nut", "bolt", "metal-nut"):
        pipe.prototypes(name)
        pipe.with_options(image_size=56).prototypes(name)
    assert len(calls) == 2  # and not four times two
    assert pipe.prototypes("bolt")[1] is pipe.prototypes("metal nut")[1]  # the learned pair is of no class
    pipe.with_options(domain="medical").prototypes("bolt")
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same_scores(golden, pictures, dtype):
    exact = Pipeline.from_pretrained(golden.folder, dtype="float32").with_options()(pictures)
    rough = Pipeline.from_pretrained(golden.folder, dtype=dtype)(pictures)
    for a, b in zip(exact, rough, strict=True):
        # The golden temperature of 0.0042 and random weights magnify rounding: this bounds blunders, not accuracy.
        assert abs(a.global_score - b.global_score) < 0.2


def test_save_pretrained_round_trip_changes_no_bit(golden, pictures, tmp_path):
    golden.pipe.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model")
    assert again.image_size == golden.pipe.image_size
    assert again.prompts.metadata == golden.pipe.prompts.metadata
    for path in pictures:
        one, other = golden.pipe(path, "nut"), again(path, "nut")
        assert one.score == other.score
        assert np.array_equal(one.anomaly_map, other.anomaly_map)


def test_a_prompt_sets_name_is_no_path(golden, tmp_path):
    for name in ("../../escaped", str(tmp_path / "escaped"), ".hidden", ""):
        learned = LearnedPrompts(golden.pipe.prompts.normal, golden.pipe.prompts.abnormal, metadata={"name": name})
        golden.pipe.with_options(prompts=learned).save_pretrained(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.rglob("*.safetensors") if path.name != "model.safetensors"] == [
        "default.safetensors"
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "no-such-model"}, "no model 'no-such-model'"),
        ({"prompts": "visa"}, "no prompt set or file 'visa' .visa was released for tips-l14-hr.: model has tiny"),
        ({"image_size": 100}, "multiple of 14, not 100: try 98"),
        ({"device": "warp"}, "device 'warp'"),
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
        ({"domain": "culinary"}, "unknown domain 'culinary'"),
        ({"mode": "magic"}, "unknown mode 'magic'"),
        ({"sigma": -1}, "sigma"),
        ({"sigma": math.nan}, "sigma"),
        ({"tile": 20}, "a tile must be at least 56 pixels"),
        ({"tile": 100, "overlap": 1}, "overlap of tiles must be from 0 to 0.75"),
    ],
)
def test_options_that_cannot_be_used(golden, options, message):
    with pytest.raises(ModelError, match=message):
        Pipeline.from_pretrained(**{"model": golden.folder, **options})


def test_a_folder_that_is_no_model(tmp_path, golden):
    import shutil

    with pytest.raises(ModelError, match="not a model folder: it has no config.json"):
        Pipeline.from_pretrained(tmp_path)
    broken = shutil.copytree(golden.folder, tmp_path / "broken")
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        Pipeline.from_pretrained(broken)
    (broken / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1")
    shutil.copy(golden.folder / "model.safetensors", broken)
    with pytest.raises(ModelError, match=r"tokenizer.model: not a SentencePiece model"):
        Pipeline.from_pretrained(broken)
    for size in (448, None, {"height": "448", "width": 448}):
        (broken / "preprocessor_config.json").write_text(json.dumps({"size": size}))
        with pytest.raises(ModelError, match="size must give height and width"):
            ModelFolder(broken).read_image_size(golden.pipe.tips.config)
    config = json.loads((broken / "config.json").read_text())
    config["vision_config"]["patch_size"] = 0
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="config.json"):
        Pipeline.from_pretrained(broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        Pipeline.from_pretrained(broken)


def test_without_learned_prompts_maps_need_an_explicit_wish(golden, pictures, tmp_path):
    import shutil

    bare = shutil.copytree(golden.folder, tmp_path / "bare", ignore=shutil.ignore_patterns("prompts"))
    with pytest.raises(ModelError, match="needs learned prompts"):
        Pipeline.from_pretrained(bare)
    pipe = Pipeline.from_pretrained(bare, mode="fixed")
    assert pipe(pictures[0]).mode == "fixed"
    with pytest.raises(ModelError, match="comparison needs learned prompts"):
        pipe.compare(pictures[0])


def test_prompts_of_another_width_are_refused_with_both_named(golden):
    from tipsomaly import LearnedPrompts

    other = LearnedPrompts(torch.zeros(8, 1024), torch.ones(8, 1024), metadata={"backbone": "tips-l14-hr"})
    with pytest.raises(ModelError, match=r"1024 wide \(made for tips-l14-hr\), the model is 128"):
        Pipeline.from_pretrained(golden.folder, prompts=other)


def test_a_word_that_the_model_does_not_know_is_noted_and_counts_as_object(golden, pictures, tmp_path):
    folder = tmp_path / "small"
    golden.pipe.save_pretrained(folder)
    (folder / "words.txt").write_text("object\nmetal\nnut\n")
    pipe = Pipeline.from_pretrained(folder, image_size=golden.pipe.image_size)
    assert pipe(pictures[0], "Metal_nut").note is None
    found = pipe(pictures[0], "metal schraube")
    assert found.note == found.record()["note"] == "small does not know the word schraube: taken for 'object'"
    assert found.score == pipe(pictures[0]).score != pipe(pictures[0], "metal nut").score
    assert {r.note for r in pipe.compare(pictures[0], "metal schraube").values()} == {found.note}
    torch.testing.assert_close(pipe.prototypes("schraube"), golden.pipe.prototypes("object"))
    pipe.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "words.txt").read_text().split() == ["metal", "nut", "object"]


def test_a_pipeline_can_be_pickled(golden, pictures):
    again = pickle.loads(pickle.dumps(golden.pipe))
    assert again(pictures[0], "nut").score == golden.pipe(pictures[0], "nut").score
    assert again.settings() == golden.pipe.settings()


def test_what_was_read_before_its_source_fails_is_handed_out(golden, pictures):
    def failing():
        yield from pictures[:3]
        raise OSError("the camera is gone")

    for options in ({}, {"tile": 60}):
        seen = []
        with pytest.raises(OSError, match="the camera is gone"):
            seen.extend(golden.pipe.with_options(**options).stream(failing(), batch_size=2))
        assert [result.source for result in seen] == pictures[:3]


def test_scores_that_are_not_finite_are_errors(golden, pictures):
    pipe = copy.deepcopy(golden.pipe)
    with torch.no_grad():
        pipe.tips.vision_encoder.cls_token[0, 0, 0] = math.inf
    for tile in (None, 60):
        outcomes = list(pipe.with_options(tile=tile).stream([*pictures, b"junk"], errors="yield", maps=True))
        assert len(outcomes) == 6
        assert [str(outcome) for outcome in outcomes[:5]] == [
            f"{path}: its scores are not finite; a dtype of float32 helps where float16 is too narrow"
            for path in pictures
        ]


def test_a_batch_size_is_kept_to(golden, pictures, monkeypatch):
    pipe = golden.pipe.with_options(tile=60)
    seen, encode = [], type(pipe.engine).encode_layers
    monkeypatch.setattr(
        type(pipe.engine),
        "encode_layers",
        lambda self, pixels, *more: seen.append(len(pixels)) or encode(self, pixels, *more),
    )
    pipe(pictures[3], batch_size=3)  # 200 x 100: the whole and 5 x 2 tiles
    assert seen == [3, 3, 3, 2]
    for size in (0, -1, 2.5):
        with pytest.raises(OptionError, match="at least 1"):
            pipe(pictures[3], batch_size=size)
        with pytest.raises(OptionError, match="at least 1"):
            next(golden.pipe.pixels(pictures, size))


def test_an_overlap_goes_with_its_tiles(golden):
    pipe = golden.pipe.with_options(tile=100, overlap=0.5)
    assert pipe.with_options(tile=200).options.overlap == 0.5
    assert pipe.with_options(tile=None).options.overlap is None
    with pytest.raises(OptionError, match="give their side"):
        golden.pipe.with_options(overlap=0.5)


def test_a_comparison_finds_the_prompts_of_a_fixed_pipeline(golden, pictures):
    fixed = Pipeline.from_pretrained(golden.folder, mode="fixed", image_size=golden.pipe.image_size)
    results = fixed.compare(pictures[0], "nut")
    assert results["decoupled"].score == pytest.approx(golden.pipe(pictures[0], "nut").score, abs=1e-5)


def test_a_full_disk_leaves_no_half_model(golden, tmp_path):
    for out in (tmp_path / "model", golden_copy := tmp_path / "there"):
        if out is golden_copy:
            golden.pipe.save_pretrained(out)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with files_of_at_most(20_000), pytest.raises(OSError) as caught:
            golden.pipe.with_options(image_size=56).save_pretrained(out)
        assert caught.value.filename == str(out)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_other_prompts_are_chosen_by_name():
    pipe = Pipeline.from_pretrained(image_size=112)
    direct = pipe.with_options(prompts="direct")
    assert (direct.method_name, direct.mode) == ("direct", direct.prompts.MODE)
    with pytest.raises(ModelError, match="no prompt set or file 'nothing'"):
        pipe.with_options(prompts="nothing")
    with pytest.raises(ModelError, match="give the prompts themselves"):
        Pipeline(pipe.tips, pipe.tokenizer, pipe.prompts).with_options(prompts="direct")
