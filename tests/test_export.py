"""An exported folder says what the pipeline says: in onnxruntime, in OpenVINO, and in its script without torch."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tipsomaly import ModelError, Pipeline
from tipsomaly.cli import app
from tipsomaly.detection.calibration import Calibration
from tipsomaly.errors import OptionError
from tipsomaly.models.sessions import open_session
from tipsomaly.prompts.dapo import Dapo

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
if find_spec("openvino") is None:  # imported here it would send statistics
    pytest.skip("no openvino", allow_module_level=True)
from tipsomaly.detection import export as exporting  # noqa: E402
from tipsomaly.detection import graph  # noqa: E402

PICTURES = 12
"""The hostile sizes and two of the random ones."""


@pytest.fixture(scope="module", autouse=True)
def traced_once(golden):
    """All exports here are of one tower at one size, and tracing it takes seconds."""
    traced, trace = [], torch.onnx.export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.onnx, "export", lambda *a, **k: traced[0] if traced else traced.append(trace(*a, **k)) or traced[0]
        )
        yield


@pytest.fixture(scope="module")
def calibration(golden):
    return Calibration(0.9, 0.4, "nut", 0.01, 100, golden.pipe.settings())


@pytest.fixture(scope="module")
def folders(golden, calibration, tmp_path_factory):
    """An export for each engine: of two classes, and of one with a calibration."""
    root = tmp_path_factory.mktemp("exports")
    exporting.export(golden.pipe, root / "onnx", "onnx", ["nut", "wide_belt"], pictures=PICTURES)
    calibrated = golden.pipe.with_options(calibration=calibration)
    exporting.export(calibrated, root / "openvino", "openvino", ["nut"], pictures=PICTURES)
    return {"onnx": root / "onnx", "openvino": root / "openvino"}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((90, 50), 80).convert("RGB").save(path)
    return path


def test_the_graph_resizes_to_the_bit_as_pillow():
    model = onnx.inliner.inline_local_functions(graph.resize.to_model_proto())
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    session = onnxruntime.InferenceSession(model.SerializeToString())
    random = np.random.default_rng(0)
    for width, height in [*exporting.SIZES, (336, 336), (50, 49), (6, 601), (5, 500)]:
        for rows, columns in ((56, 56), (28, 70)):
            pixels = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
            inputs = {"images": pixels, "rows": np.array([rows]), "columns": np.array([columns])}
            expected = [Image.fromarray(p).resize((columns, rows), Image.Resampling.BILINEAR) for p in pixels]
            found = session.run(None, inputs)[0].transpose(0, 2, 3, 1)
            assert np.array_equal(found, np.stack([np.asarray(image) for image in expected]))


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_the_record_holds_what_was_compared(folders, golden, form):
    record = json.loads((folders[form] / "export.json").read_text())
    assert record["parity"]["pictures"] == PICTURES
    assert max(record["parity"]["largest_difference"].values()) < 1e-4
    assert record["parity"]["rank_correlation"] == pytest.approx(1)
    assert record["settings"] == golden.pipe.settings()


def test_the_graph_holds_the_record_too(folders):
    record = json.loads((folders["onnx"] / "export.json").read_text())
    record.pop("digest")
    [prop] = onnx.load(folders["onnx"] / "model.onnx").metadata_props
    assert (prop.key, json.loads(prop.value)) == ("tipsomaly", record)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_from_pretrained_runs_it(folders, golden, picture, form):
    pipe = Pipeline.from_pretrained(folders[form])
    sources = [picture, *golden.images, np.zeros((1, 1, 3), np.uint8)]
    for found, expected in zip(pipe(sources, "nut", 3), golden.pipe(sources, "nut"), strict=True):
        assert found.score == pytest.approx(expected.score, abs=1e-4)
        assert found.strategies == pytest.approx(expected.strategies, abs=1e-4)
        assert np.abs(found.anomaly_map - expected.anomaly_map).max() < 1e-4
        assert np.abs(found.spatial_token - expected.spatial_token).max() < 1e-4
    outcomes = list(pipe.stream([picture, "no.png", picture], "nut", batch_size=2, errors="yield"))
    assert [type(outcome).__name__ for outcome in outcomes] == ["Result", "ImageError", "Result"]


def test_a_batch_is_the_pictures_one_by_one(folders):
    random = np.random.default_rng(2)
    pixels, index = random.integers(0, 256, (3, 40, 61, 3), dtype=np.uint8), np.array([1, 0, 1])
    session = open_session(folders["onnx"] / "model.onnx", "onnx")
    outputs = ("score", "patch_map", "anomaly_map")
    batch = session.run(outputs, {"images": pixels, "class_index": index})
    assert batch["anomaly_map"].shape == (3, 40, 61)
    for i in range(3):
        one = session.run(outputs, {"images": pixels[i : i + 1], "class_index": index[i : i + 1]})
        for name in outputs:
            assert np.allclose(one[name][0], batch[name][i], atol=1e-5)


def test_a_calibration_gives_the_graph_a_verdict(folders, golden, calibration, picture):
    pixels = np.asarray(Image.open(picture))
    session = open_session(folders["openvino"] / "model.xml", "openvino")
    found = session.run(("is_anomalous", "mask"), {"images": pixels[None], "class_index": np.array([0])})
    expected = golden.pipe.with_options(calibration=calibration)(picture, "nut")
    assert bool(found["is_anomalous"][0]) == expected.is_anomalous
    assert np.array_equal(found["mask"][0], expected.mask(0.4))
    assert Pipeline.from_pretrained(folders["openvino"])(picture, "nut").is_anomalous == expected.is_anomalous


def test_openvino_sends_no_statistics(folders, picture):
    Pipeline.from_pretrained(folders["openvino"])(picture, "nut")
    assert sys.modules["openvino_telemetry"] is None


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_the_script_needs_neither_torch_nor_the_package(folders, golden, picture, form):
    code = "import sys, runpy; sys.modules |= {'torch': None, 'tipsomaly': None}; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [folders[form] / "run.py", picture, "--class-name", "nut", "--maps", picture.parent / "maps"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected, line = golden.pipe(picture, "nut"), json.loads(done.stdout)
    assert line["score"] == pytest.approx(expected.score, abs=1e-4)
    assert ("is_anomalous" in line) == (form == "openvino")
    assert np.abs(np.load(picture.parent / "maps" / "picture_map.npy") - expected.anomaly_map).max() < 1e-4


def test_what_does_not_fit_an_export_is_one_line(folders, tmp_path):
    pipe = Pipeline.from_pretrained(folders["onnx"])
    with pytest.raises(ModelError, match="this export is for 'nut', 'wide belt', not 'felt'"):
        pipe.stream(["x.png"], "felt")
    with pytest.raises(OptionError, match="this export has mode decoupled"):
        Pipeline.from_pretrained(folders["onnx"], mode="fixed")
    with pytest.raises(OptionError, match="image_size"):
        Pipeline.from_pretrained(folders["onnx"], image_size=28)
    damaged = shutil.copytree(folders["onnx"], tmp_path / "damaged")
    with (damaged / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="not the file that was exported"):
        Pipeline.from_pretrained(damaged)
    record = json.loads((folders["onnx"] / "export.json").read_text())
    for change in ({"class_names": [1]}, {"format": "x"}, {"version": 9}, {"calibration": {"a": 1}}, {"settings": {}}):
        (damaged / "export.json").write_text(json.dumps(record | change))
        with pytest.raises(ModelError, match="export.json: "):
            Pipeline.from_pretrained(damaged)
    shutil.copyfile(folders["onnx"] / "model.onnx", damaged / "model.onnx")
    (damaged / "export.json").write_text(json.dumps(record | {"class_names": ["wide belt", "nut"]}))
    with pytest.raises(ModelError, match="what it holds is not what export.json says"):
        Pipeline.from_pretrained(damaged)


def test_what_cannot_be_exported_is_one_line(golden, calibration, tmp_path):
    calibrated = golden.pipe.with_options(calibration=calibration)
    for pipe, arguments, message in (
        (golden.pipe, {"form": "coreml"}, "unknown format"),
        (golden.pipe, {"precision": "bf16"}, "for the format openvino"),
        (golden.pipe, {"precision": "int8"}, "int8 is refused"),
        (golden.pipe.with_options(reference=golden.images), {}, "no normal pictures"),
        (golden.pipe.with_options(tile=56), {}, "no tiles"),
        (calibrated, {"class_names": ["felt"]}, "for the class 'nut' alone"),
    ):
        with pytest.raises(OptionError, match=message):
            exporting.export(pipe, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_kinds_of_defects_are_exported_and_large_weights_beside_the_graph(golden, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "LARGEST_FILE", 1000)
    prompts = Dapo.start(golden.config, temperature=0.07, kinds=["scratch", "hole", "stain"])
    pipe = golden.pipe.with_options(prompts=prompts, mode=prompts.MODE, top=0.05)
    record = exporting.export(pipe, tmp_path / "out", pictures=2)
    assert record["parity"]["largest_difference"]["local_score"] < 1e-4  # of the graph's own mean
    found, expected = Pipeline.from_pretrained(tmp_path / "out")(picture), pipe(picture)
    assert found.kinds == pytest.approx(expected.kinds, abs=1e-3)  # they are kept in float16
    assert found.score == pytest.approx(expected.score, abs=1e-4)
    assert expected.local_score < expected.patch_map.max()
    assert found.record().keys() == expected.record().keys()
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > (tmp_path / "out" / "model.onnx").stat().st_size / 4


def test_an_export_that_disagrees_leaves_nothing_behind(golden, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "resampling", lambda *sides: torch.ones(sides[1], sides[0]))
    with pytest.raises(ModelError, match="differs from the pipeline by"):
        exporting.export(golden.pipe, tmp_path / "out", pictures=2)
    assert list(tmp_path.iterdir()) == []


def said_score(output: str) -> float:
    """The score that `detect` prints."""
    return float(re.search(r"([\d.]+) = global", output)[1])


def test_the_command(golden, picture, tmp_path):
    arguments = ["export", tmp_path / "out", "--model", golden.folder, "--class-name", "nut", "--parity", 2]
    arguments += ["--image-size", golden.case["inference_size"]]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "scores and maps within" in done.output
    detect = ["detect", str(picture), "--model", str(tmp_path / "out"), "--class-name", "nut"]
    done = CliRunner().invoke(app, detect)
    assert done.exit_code == 0, done.output
    assert said_score(done.output) == pytest.approx(golden.pipe(picture, "nut").score, abs=2e-4)  # four digits are said
    for arguments, message in (
        ([*detect, "--domain", "medical"], "this export has domain industrial, not medical"),
        ([*detect, "--engine", "ray", "--output", str(tmp_path / "rows")], "leave out --engine ray"),
        (["compare", *detect[1:]], "give the model itself"),
    ):
        done = CliRunner().invoke(app, arguments)
        assert message in f"{done.exception} {done.output}"


def test_auto_takes_an_engine_that_agrees_and_says_which(golden, picture):
    detect = ["detect", str(picture), "--model", str(golden.folder), "--class-name", "nut", "--engine", "auto"]
    detect += ["--image-size", str(golden.case["inference_size"])]
    done = CliRunner().invoke(app, detect)
    assert done.exit_code == 0, done.output
    for said in ("engine: ", "torch ", "onnxruntime ", "openvino "):
        assert said in done.output
    assert said_score(done.output) == pytest.approx(golden.pipe(picture, "nut").score, abs=2e-4)
    done = CliRunner().invoke(app, [*detect, "--tile", "56"])
    assert "engine: torch: an export takes whole pictures" in done.output
