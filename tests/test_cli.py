"""The command as a user runs it: in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tipsomaly.detection.formats import Stems


def run(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tipsomaly", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.fixture
def folder(tmp_path):
    """Good pictures of one name in two folders, broken files, and things that are no pictures."""
    pictures = tmp_path / "pictures"
    (pictures / "inner").mkdir(parents=True)
    Image.effect_noise((40, 30), 50).save(pictures / "a.png")
    Image.effect_noise((30, 40), 50).convert("CMYK").save(pictures / "b.JPG")
    Image.effect_noise((20, 20), 50).save(pictures / "inner" / "a.png")
    (pictures / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    (pictures / "notes.txt").write_text("no picture")
    return pictures


def test_detect_writes_a_record_a_map_and_an_overlay_for_each_picture(golden, folder, tmp_path):
    out = tmp_path / "out"
    done = run("detect", folder, "--model", golden.folder, "--class-name", "nut", "--output", out, "--batch-size", 2)
    assert done.returncode == 1  # one of them is broken
    assert "Traceback" not in done.stderr
    assert f"error: {folder / 'broken.png'}: damaged" in done.stderr
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [Path(r["image"]).relative_to(folder).as_posix() for r in records] == [
        "a.png",
        "b.JPG",
        "broken.png",
        "inner/a.png",
    ]
    assert set(records[2]) == {"image", "error"}
    for record in (records[0], records[1], records[3]):
        assert set(record) == {"image", "score", "global_score", "local_score", "width", "height", "map", "overlay"}
        assert record["score"] == pytest.approx(record["global_score"] + record["local_score"])
        anomaly_map = np.load(out / record["map"])
        assert anomaly_map.dtype == np.float32
        assert anomaly_map.shape == (record["height"], record["width"])
        assert Image.open(out / record["overlay"]).size == (record["width"], record["height"])
    assert records[0]["map"] != records[3]["map"]
    expected = golden.pipe.with_options(image_size=112)(folder / "a.png", "nut")
    assert records[0]["score"] == pytest.approx(expected.score, abs=1e-5)


def test_json_globs_and_single_files(golden, folder):
    done = run("detect", folder / "*.png", folder / "b.JPG", "no.png", "--model", golden.folder, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.png", "broken.png", "b.JPG", "no.png"]
    assert lines[3]["error"] == "no.png: no such file"
    assert done.returncode == 1
    assert run("detect", folder / "a.png", "--model", golden.folder).returncode == 0


def test_tiles_have_maps_of_the_pictures_size(golden, tmp_path):
    Image.effect_noise((150, 90), 50).save(tmp_path / "wide.png")
    options = ["--tile", 64, "--overlap", 0.5, "--keep-aspect", "--output", tmp_path / "out"]
    done = run("detect", tmp_path / "wide.png", "--model", golden.folder, *options)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out" / "wide_map.npy").shape == (90, 150)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect"], "Missing argument"),
        (["detect", "x.png", "--domain", "culinary"], "culinary"),
        (["detect", "x.png", "--batch-size", "0"], "batch-size"),
        (["detect", "x.png", "--model", "nope"], "no model 'nope'"),
        (["detect", "x.png", "--image-size", "100"], "multiple of 14"),
        (["detect", "x.png", "--tile", "20"], "tile"),
        (["detect", "x.png", "--sigma", "1000"], "sigma must be"),
        (["detect", "x.png", "--engine", "ray", "--json"], "not for --engine ray"),
        (["detect", "x.png", "--prompts", "nope"], "no prompt set or file 'nope'"),
        (["detect", "nothing-*.png"], "nothing matches"),
        (["detect", "x.png", "--class-name", " "], "class name is empty"),
        (["explode"], "explode"),
    ],
)
def test_wrong_usage_is_status_2_and_no_traceback(golden, arguments, message):
    if "--model" not in arguments and arguments[0] == "detect":
        arguments = [*arguments, "--model", str(golden.folder)]
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_ray_is_asked_for_when_it_is_not_there(tmp_path):
    code = "import sys; sys.modules['ray'] = None; from tipsomaly.cli import main; main()"
    command = [sys.executable, "-c", code, "detect", "x.png", "--engine", "ray", "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r'error: --engine ray needs \w+: pip install "ray\[data\]"\n', done.stderr)
    done = run("detect", "x.png", "--engine", "ray")
    assert done.returncode == 2
    assert done.stderr == "error: --engine ray needs --output DIR for the scores\n"


def test_an_empty_folder_is_wrong_usage(golden, tmp_path):
    done = run("detect", tmp_path, "--model", golden.folder)
    assert done.returncode == 2
    assert "no pictures in this folder" in done.stderr


def test_an_interrupt_keeps_what_was_finished(golden, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.effect_noise((60, 60), 50).save(pictures / "0.png")
    for i in range(1, 3000):
        os.link(pictures / "0.png", pictures / f"{i}.png")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tipsomaly", "detect", pictures, "--model", golden.folder, "--output", out]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a script runs with "&"
    )
    results = out / "results.jsonl"
    deadline = time.time() + 60
    while time.time() < deadline and not (results.exists() and results.stat().st_size > 2000):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert 5 < len(records) < 3000
    assert all((out / r["map"]).exists() and (out / r["overlay"]).exists() for r in records)


def test_an_unwritable_output_is_one_line(golden, folder, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("detect", folder / "a.png", "--model", golden.folder, "--output", tmp_path / "file")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_compare(golden, folder, tmp_path):
    arguments = [
        "compare",
        folder / "a.png",
        "--model",
        golden.folder,
        "--class-name",
        "nut",
        "--output",
        tmp_path / "out",
    ]
    done = run(*arguments, "--json")
    scores = json.loads(done.stdout)
    assert scores["decoupled"]["S5"] == scores["decoupled"]["score"]
    assert scores["decoupled"]["global_score"] == scores["fixed"]["global_score"]
    assert (tmp_path / "out" / "a_comparison.png").exists()
    assert "decoupled" in run(*arguments).stdout
    done = run("compare", folder / "broken.png", "--model", golden.folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_convert_and_convert_prompts(golden, tmp_path):
    out = tmp_path / "model"
    done = run("convert", golden.vision_npz, golden.text_npz, golden.tokenizer, out, "--heads", 2)
    assert done.returncode == 0, done.stderr
    prompts = out / "prompts" / "mine.safetensors"
    done = run("convert-prompts", golden.prompts_pth, prompts, "--backbone", "tiny", "--trained-on", "nothing")
    assert done.returncode == 0, done.stderr
    assert run("detect", golden.images[0], "--model", out, "--prompts", "mine").returncode == 0
    half = tmp_path / "half"
    done = run("convert", golden.vision_npz, golden.text_npz, golden.tokenizer, half, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, out)]
    assert 0.5 * sizes[1] <= sizes[0] < 0.6 * sizes[1]
    done = run("convert", golden.text_npz, golden.text_npz, golden.tokenizer, out)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    done = run("convert-prompts", golden.tokenizer, prompts)
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_models_and_version():
    assert "\nnano " in run("models").stdout
    assert run("--version").stdout.startswith("tipsomaly ")


def test_stems_are_unique_and_short():
    stems = Stems()
    paths = ["x/a.png", "y/a.jpg", "A.png", "a_2.png", "ü" * 300 + ".png", "caf\udce9.png", "\udce9.png"]
    names = [stems(Path(p)) for p in paths]
    assert len({name.lower() for name in names}) == 7
    assert names[-2:] == ["caf", "image"]  # names of files that are not UTF-8
    assert max(len(name.encode()) for name in names) <= 200
