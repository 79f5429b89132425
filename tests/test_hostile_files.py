"""Every file format that is read, damaged in every way: the answer is a result or one line, never another exception.

Hypothesis makes the files; `derandomize` makes a run the same each time. A failure here is a kind, not a case: mend it
where that kind of file is parsed, with `errors.explained`."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tipsomaly import Calibration, Pipeline, TipsomalyError
from tipsomaly.data.layouts import read_dataset
from tipsomaly.errors import explained, one_line, printable
from tipsomaly.models.convert import convert
from tipsomaly.models.folder import ModelFolder
from tipsomaly.prompts.find import convert_prompts, read_prompts

quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
numbers = st.integers() | st.floats() | st.sampled_from([10**9, -1, 0, 2**63, 1e308])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def answers(read: Callable[[], Any]) -> None:
    """A result, or an error of ours in one printable line."""
    try:
        read()
    except TipsomalyError as error:
        assert str(error).isprintable(), str(error)


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Cut, with bytes changed, with bytes put in."""
    size = len(content)

    def change(edits: list[tuple[int, int]]) -> bytes:
        data = bytearray(content)
        for place, byte in edits:
            data[place % size] = byte
        return bytes(data)

    edits = st.lists(st.tuples(st.integers(0, min(size, 4000) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    cut = st.integers(0, size - 1).map(lambda n: content[:n])
    longer = st.tuples(st.integers(0, size), st.binary(min_size=1, max_size=9)).map(
        lambda x: content[: x[0]] + x[1] + content[x[0] :]
    )
    return st.one_of(edits.map(change), cut, longer)


def changed(content: Any) -> st.SearchStrategy[str]:
    """JSON text with one value replaced, wherever it is, or with something else put in its place."""
    paths: list[tuple[Any, ...]] = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        paths.append(path)
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            walk(node[key], (*path, key))

    walk(content, ())

    def put(path: tuple[Any, ...], value: Any) -> str:
        if not path:
            return json.dumps(value)
        copy = json.loads(json.dumps(content))
        node = copy
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        return json.dumps(copy)

    deep = st.sampled_from(["[" * 100_000, '{"a":' * 50_000, "\x00", "", '"\\ud800"', "NaN"])
    return st.one_of(st.builds(put, st.sampled_from(paths), values), deep)


@pytest.fixture(scope="module")
def model(golden, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    golden.pipe.save_pretrained(folder)
    return folder


JSON_FILES = ["config.json", "preprocessor_config.json"]


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_of_a_model_folder(model, name):
    original = (model / name).read_bytes()

    @quick
    @given(changed(json.loads(original)).map(str.encode) | damaged(original))
    def check(content):
        (model / name).write_bytes(content)
        folder = ModelFolder(model)
        answers(lambda: folder.read_image_size(folder.read_config()))

    try:
        check()
    finally:
        (model / name).write_bytes(original)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "prompts/default.safetensors"])
def test_binary_files_of_a_model_folder(model, golden, name):
    path = model / name if (model / name).exists() else next((model / "prompts").iterdir())
    original = path.read_bytes()

    @settings(quick, max_examples=40)
    @given(damaged(original))
    def check(content):
        path.write_bytes(content)
        folder = ModelFolder(model)
        if name == "tokenizer.model":
            answers(lambda: folder.read_tokenizer(64)(["a word"]))
        elif name == "model.safetensors":
            answers(lambda: folder.read_tips(torch.device("cpu"), torch.float32))
        else:
            answers(lambda: read_prompts(folder, path))

    try:
        check()
    finally:
        path.write_bytes(original)


@quick
@given(data=st.data())
def test_npz_checkpoints(data, tmp_path_factory):
    """Archives with members that no TIPS has, of shapes that no TIPS has, and damaged ones."""
    folder = tmp_path_factory.mktemp("npz")
    kinds = st.sampled_from(
        [
            "cls_token",
            "pos_embed",
            "blocks.99999999.y",
            "blocks.0.mlp.fc1.weight",
            "../x",
            "token_embedding.weight",
            "temperature",
            "transformer.resblocks.0.mlp.c_fc.weight",
        ]
    )
    arrays = {
        name: np.zeros(
            data.draw(st.lists(st.integers(0, 3), max_size=4)), data.draw(st.sampled_from(["f4", "f8", "i8", "U3"]))
        )
        for name in data.draw(st.lists(kinds, unique=True))
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = data.draw(st.just(buffer.getvalue()) | damaged(buffer.getvalue()))
    (folder / "v.npz").write_bytes(content)
    answers(lambda: convert(folder / "v.npz", folder / "v.npz", folder / "v.npz", folder / "out"))
    assert not (folder / "out").exists()


def test_npz_members_that_are_no_arrays(tmp_path):
    for number, (name, content, method) in enumerate(
        [
            ("cls_token", b"no npy", zipfile.ZIP_STORED),
            ("cls_token.npy", b"\x93NUMPY\x09\x00\x01\x00{", zipfile.ZIP_STORED),
            (
                "cls_token.npy",
                b"\x93NUMPY\x01\x00\x76\x00"
                + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
                + b"\n",
                zipfile.ZIP_DEFLATED,
            ),
        ]
    ):
        path = tmp_path / f"{number}.npz"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr(name, content)
        with pytest.raises(TipsomalyError):
            convert(path, path, path, tmp_path / "out")
    raw = bytearray(path.read_bytes())
    for flag_at in (6, raw.rindex(b"PK\x01\x02") + 8):
        raw[flag_at] |= 1  # encrypted
    path.write_bytes(raw)
    with pytest.raises(TipsomalyError):
        convert(path, path, path, tmp_path / "out")


ODD_TENSORS = {
    "sparse": lambda: torch.eye(8).to_sparse(),
    "meta": lambda: torch.empty(8, 8, device="meta"),
    "expanded": lambda: torch.zeros(1).expand(2**40, 8),
    "complex": lambda: torch.zeros(8, 8, dtype=torch.complex64),
    "nan": lambda: torch.full((8, 8), float("nan")),
    "scalar": lambda: torch.zeros(()),
    "text": lambda: "no tensor",
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_pickled_prompts_of_odd_tensors(tmp_path, kind):
    pair = [ODD_TENSORS[kind](), ODD_TENSORS[kind]()]
    torch.save({"learnable_prompts": pair}, tmp_path / "p.pth")
    with pytest.raises(TipsomalyError):
        convert_prompts(tmp_path / "p.pth", tmp_path / "p.safetensors")
    assert not (tmp_path / "p.safetensors").exists()


def test_pickled_prompts_that_share_their_numbers_are_copied(tmp_path):
    same = torch.ones(8, 8)
    torch.save([same, same], tmp_path / "p.pth")
    prompts = convert_prompts(tmp_path / "p.pth", tmp_path / "p.safetensors")
    assert torch.equal(prompts.normal, same)
    assert prompts.normal.data_ptr() != prompts.abnormal.data_ptr()


def test_damaged_pickles(tmp_path):
    buffer = io.BytesIO()
    torch.save([torch.ones(8, 8), torch.ones(8, 8)], buffer)

    @settings(quick, max_examples=40)
    @given(damaged(buffer.getvalue()))
    def check(content):
        (tmp_path / "p.pth").write_bytes(content)
        answers(lambda: convert_prompts(tmp_path / "p.pth", tmp_path / "p.safetensors"))

    check()


def test_calibrations(golden, tmp_path):
    found = Calibration(0.5, 0.5, "nut", 0.01, 10, golden.pipe.settings())
    found.save(tmp_path / "c.json")
    original = (tmp_path / "c.json").read_text()

    @quick
    @given(changed(json.loads(original)))
    def check(content):
        (tmp_path / "c.json").write_text(content, encoding="utf-8")
        answers(lambda: golden.pipe.with_options(calibration=tmp_path / "c.json"))

    check()


def test_lists_of_data_sets(tmp_path):
    meta = {
        "test": {"nut": [{"img_path": "a.png", "mask_path": "", "cls_name": "nut", "specie_name": "", "anomaly": 0}]}
    }
    (tmp_path / "a.png").write_bytes(b"x")

    @quick
    @given(changed(meta))
    def check(content):
        (tmp_path / "meta.json").write_text(content, encoding="utf-8")
        answers(lambda: read_dataset(tmp_path, "meta"))

    check()
    (tmp_path / "split_csv").mkdir()
    table = b"object,split,label,image,mask\nnut,test,normal,a.png,\n"

    @quick
    @given(damaged(table))
    def check_table(content):
        (tmp_path / "split_csv" / "1cls.csv").write_bytes(content)
        answers(lambda: read_dataset(tmp_path, "visa"))

    check_table()


@pytest.mark.parametrize("name", ["_", "-", " _- "])
def test_class_names_without_a_word(tmp_path, name):
    (tmp_path / name / "test" / "good").mkdir(parents=True)
    (tmp_path / name / "test" / "good" / "a.png").write_bytes(b"x")
    with pytest.raises(TipsomalyError, match="no word"):
        read_dataset(tmp_path, "mvtec")


def test_numbers_beyond_all_models_are_refused_before_anything_is_built(model):
    config = json.loads((model / "config.json").read_text())
    for part, key in (
        ("vision_config", "num_hidden_layers"),
        ("text_config", "vocab_size"),
        ("vision_config", "image_size"),
    ):
        changed_config = json.loads(json.dumps(config))
        changed_config[part][key] = 10**9
        folder = model.parent / f"{key}"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(changed_config))
        with pytest.raises(TipsomalyError, match="whole number from 1 to"):
            ModelFolder(folder).read_config()


@given(st.text())
def test_messages_are_one_printable_line(text):
    assert str(TipsomalyError(text)).isprintable()
    assert printable(text).isprintable()
    assert one_line(ValueError(text)).isprintable()
    with pytest.raises(TipsomalyError) as caught, explained(text):
        raise RecursionError(text)
    assert str(caught.value).isprintable()


def test_weights_that_are_not_finite_are_refused(golden, tmp_path):
    golden.pipe.save_pretrained(tmp_path / "m")
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "m" / "model.safetensors")
    state["vision_encoder.norm.bias"][0] = float("inf")
    save_file(state, tmp_path / "m" / "model.safetensors")
    with pytest.raises(TipsomalyError, match=r"vision_encoder\.norm\.bias has numbers that are not finite"):
        Pipeline.from_pretrained(tmp_path / "m")
