"""The command as a user runs it: a few times in a process of its own, else in this one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from full_disk import files_of_at_most
from PIL import Image
from safetensors.torch import load_file, save_file

from tipsomaly.detection.formats import Stems
from tipsomaly.detection.records import open_records, read_records
from tipsomaly.errors import FetchError
from tipsomaly.files import only_writer


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


def test_json_globs_and_single_files(here, golden, folder):
    done = here("detect", folder / "*.png", folder / "b.JPG", "no.png", "--model", golden.folder, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["a.png", "broken.png", "b.JPG", "no.png"]
    assert lines[3]["error"] == "no.png: no such file"
    assert done.returncode == 1
    assert here("detect", folder / "a.png", "--model", golden.folder).returncode == 0


def test_tiles_have_maps_of_the_pictures_size(here, golden, tmp_path):
    Image.effect_noise((150, 90), 50).save(tmp_path / "wide.png")
    options = ["--tile", 64, "--overlap", 0.5, "--keep-aspect", "--output", tmp_path / "out"]
    done = here("detect", tmp_path / "wide.png", "--model", golden.folder, *options)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out" / "wide_map.npy").shape == (90, 150)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detect"], "Missing argument"),
        (["detect", ""], "an empty name"),
        (["detect", "x.png", "--output", ""], "an empty name"),
        (["detect", "x.png", "--output", "scores.json"], "scores.json is a file's name"),
        (["detect", "x.png", "--engine", "ray", "--overwrite"], "not for --engine ray"),
        (["calibrate", "x.png", "--output", "c.json"], "c.json is a file's name"),
        (["train", "x", "--output", "p.v1"], "must end in .safetensors, not in .v1"),
        (["detect", "x.png", "--domain", "culinary"], "culinary"),
        (["detect", "x.png", "--batch-size", "0"], "batch-size"),
        (["detect", "x.png", "--model", "nope"], "no model 'nope'"),
        (["detect", "x.png", "--image-size", "100"], "multiple of 14"),
        (["detect", "x.png", "--tile", "20"], "tile"),
        (["detect", "x.png", "--sigma", "1000"], "sigma must be"),
        (["detect", "x.png", "--prompts", "nope"], "no prompt set or file 'nope'"),
        (["detect", "nothing-*.png"], "nothing matches"),
        (["detect", "x.png", "--class-name", " "], "class name is empty"),
        (["explode"], "explode"),
    ],
)
def test_wrong_usage_is_status_2_and_no_traceback(here, golden, arguments, message):
    if "--model" not in arguments and arguments[0] == "detect":
        arguments = [*arguments, "--model", str(golden.folder)]
    done = here(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def lines(out: Path) -> list[str]:
    return (out / "results.jsonl").read_text().splitlines()


def test_what_is_done_is_not_done_again(here, golden, folder, tmp_path):
    out = tmp_path / "out"
    command = ["detect", folder, "--model", golden.folder, "--output", out]
    assert here(*command).returncode == 1
    whole, files = lines(out), {p.name: p.stat().st_mtime_ns for p in out.glob("*.npy")}
    assert here(*command, "--json").stdout.count("\n") == 1  # the broken one is tried again
    assert sorted(lines(out)) == sorted(whole)
    # A power cut: the last record is half there, another was never whole. b.JPG's is lost, broken.png is mended.
    kept = [line for line in whole if "b.JPG" not in line]
    (out / "results.jsonl").write_text("\n".join([*kept, "{", '{"image": "x"', kept[0][:40]]))
    shutil.copy(folder / "inner" / "a.png", folder / "broken.png")
    done = here(*command)
    assert done.returncode == 0
    assert "2 of 4 pictures have results" in done.stderr
    records = {Path(r["image"]).relative_to(folder).as_posix(): r for r in read_records(out / "results.jsonl")}
    assert list(records) == ["a.png", "inner/a.png", "b.JPG", "broken.png"]
    assert [json.dumps(r) for r in records.values()][:2] == [kept[0], kept[2]]
    before = json.loads(whole[1])
    assert records["b.JPG"]["map"] == before["map"]
    assert records["b.JPG"]["score"] == pytest.approx(before["score"], abs=1e-4)
    assert len({r["map"] for r in records.values()}) == 4
    assert files["a_map.npy"] == (out / "a_map.npy").stat().st_mtime_ns
    # Overlays are no pictures to score, and another format is told of every picture.
    assert here("detect", out, *command[1:], "--format", "csv").returncode == 0
    assert len(lines(out)) == 4
    assert (out / "pictures.csv").read_text().count("\n") == 1 + 4


def test_results_of_other_settings_are_refused_or_overwritten(here, golden, folder, tmp_path):
    command = ["detect", folder / "a.png", "--model", golden.folder, "--output", tmp_path]
    assert here(*command).returncode == 0
    done = here(*command, "--sigma", 1)
    assert done.returncode == 2
    wrong = "the results there were made with sigma 4.0, not 1.0; choose another folder, or begin anew with --overwrite"
    assert done.stderr == f"error: {tmp_path}: {wrong}\n"
    before = lines(tmp_path)
    for damage in (b"", b"[]", None):
        (tmp_path / "settings.json").write_bytes(damage) if damage is not None else (
            tmp_path / "settings.json"
        ).unlink()
        done = here(*command)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert lines(tmp_path) == before
    assert here(*command, "--class-name", "nut", "--overwrite").returncode == 0
    assert len(lines(tmp_path)) == 1
    assert lines(tmp_path) != before
    with only_writer(tmp_path):
        done = here(*command, "--class-name", "nut")
    assert done.returncode == 1
    assert "another process writes there" in done.stderr


def test_what_cannot_be_read_is_said_and_stops_nothing(here, golden, folder, tmp_path, monkeypatch):
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "lost").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    (folder / "closed").mkdir()
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "a.png").read_bytes())
    scandir = os.scandir

    def refuse(path):  # tests may run as root, whom nothing is refused
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    names = [folder, "n" * 300 + ".png", "~nobody/y.png", folder / "a.png" / "x.png"]
    done = here("detect", *names, "--model", golden.folder, "--json")
    assert done.returncode == 1
    records = [json.loads(line) for line in done.stdout.splitlines()]
    errors = {Path(r["image"]).name: r["error"].partition(": ")[2] for r in records if "error" in r}
    assert len(records) - len(errors) == 4
    assert errors.pop("broken.png").startswith("damaged")
    assert errors == {
        "gone.png": "a link to nothing",
        "lost": "a link to nothing",
        "pipe.png": "not a file",
        "closed": "cannot be read (Permission denied)",
        "n" * 300 + ".png": "cannot be read (File name too long)",
        "x.png": "no such file",
        "y.png": "no such file",
    }
    assert any(r["image"].endswith("caf\\udce9.png") for r in records)
    done = here("calibrate", folder / "closed", folder / "pipe.png", "--model", golden.folder, "--output", tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {folder / 'closed'}: cannot be read (Permission denied)\n")


def test_a_full_disk_names_the_file_and_keeps_whole_records(here, golden, folder, tmp_path):
    Image.effect_noise((300, 300), 50).save(folder / "large.png")
    command = ["detect", folder / "a.png", folder / "large.png", "--model", golden.folder, "--output", tmp_path / "out"]
    with files_of_at_most(100_000):
        done = here(*command)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'out' / 'large_map.npy'}: File too large\n"
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name != ".lock") == [
        "a_map.npy",
        "a_overlay.png",
        "results.jsonl",
        "settings.json",
    ]
    (record,) = read_records(tmp_path / "out" / "results.jsonl")
    with files_of_at_most(1000), open_records(tmp_path / "out", {}, overwrite=True) as records:
        records.add(Path("x"), record | {"image": "x"})
        with pytest.raises(OSError, match="File too large") as caught:
            records.add(Path("y"), record | {"image": "y" * 1000})
    assert caught.value.filename == str(tmp_path / "out" / "results.jsonl")
    assert len(lines(tmp_path / "out")) == 1
    assert here(*command, "--overwrite").returncode == 0


def test_a_model_of_infinite_weights_is_one_line(here, golden, folder, tmp_path):
    model = shutil.copytree(golden.folder, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["vision_encoder.blocks.0.attn.proj.weight"][3, 5] = float("inf")
    save_file(tensors, model / "model.safetensors")
    done = here("detect", folder / "a.png", "--model", model)
    assert (done.returncode, done.stdout) == (2, "")
    assert "vision_encoder.blocks.0.attn.proj.weight has numbers that are not finite" in done.stderr


def test_ray_is_asked_for_when_it_is_not_there(here, tmp_path):
    code = "import sys; sys.modules['ray'] = None; from tipsomaly.cli import main; main()"
    command = [sys.executable, "-c", code, "detect", "x.png", "--engine", "ray", "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r'error: --engine ray needs \w+: pip install "ray\[data\]"\n', done.stderr)
    done = here("detect", "x.png", "--engine", "ray")
    assert done.returncode == 2
    assert done.stderr == "error: --engine ray needs --output DIR for the scores\n"


def test_an_empty_folder_is_wrong_usage(here, golden, tmp_path):
    done = here("detect", tmp_path, "--model", golden.folder)
    assert done.returncode == 2
    assert "no pictures in this folder" in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_what_was_finished(golden, tmp_path, number, status):
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
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in errors
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert 5 < len(records) < 3000
    assert all((out / r["map"]).exists() and (out / r["overlay"]).exists() for r in records)


def test_an_unwritable_output_is_one_line(here, golden, folder, tmp_path):
    (tmp_path / "file").write_text("")
    done = here("detect", folder / "a.png", "--model", golden.folder, "--output", tmp_path / "file")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


def test_compare(here, golden, folder, tmp_path):
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
    done = here(*arguments, "--json")
    scores = json.loads(done.stdout)
    assert scores["decoupled"]["S5"] == scores["decoupled"]["score"]
    assert scores["decoupled"]["global_score"] == scores["fixed"]["global_score"]
    assert (tmp_path / "out" / "a_comparison.png").exists()
    assert "decoupled" in here(*arguments).stdout
    done = here("compare", folder / "broken.png", "--model", golden.folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_convert_and_convert_prompts(here, golden, tmp_path):
    out = tmp_path / "model"
    done = here("convert", golden.vision_npz, golden.text_npz, golden.tokenizer, out, "--heads", 2)
    assert done.returncode == 0, done.stderr
    prompts = out / "prompts" / "mine.safetensors"
    done = here("convert-prompts", golden.prompts_pth, prompts, "--backbone", "tiny", "--trained-on", "nothing")
    assert done.returncode == 0, done.stderr
    assert here("detect", golden.images[0], "--model", out, "--prompts", "mine").returncode == 0
    half = tmp_path / "half"
    done = here("convert", golden.vision_npz, golden.text_npz, golden.tokenizer, half, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, out)]
    assert 0.5 * sizes[1] <= sizes[0] < 0.6 * sizes[1]
    done = here("convert", golden.text_npz, golden.text_npz, golden.tokenizer, out)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    done = here("convert-prompts", golden.tokenizer, prompts)
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_models_and_version(here):
    listed = here("models").stdout
    assert "\nnano " in listed
    assert re.search(r"\nsiglip2-large-patch16-512 +317 \+ 566 +1024 +512 +- +Apache-2.0", listed)
    assert run("--version").stdout.startswith("tipsomaly ")


def test_stems_are_unique_and_short():
    stems = Stems(["used_1"])
    paths = ["x/a.png", "y/a.jpg", "A.png", "a_2.png", "ü" * 300 + ".png", "Used_1.png", "caf\udce9.png", "\udce9.png"]
    names = [stems(Path(p)) for p in paths]
    assert len({name.lower() for name in names}) == 8
    assert names[-3:] == ["Used_1_2", "caf", "image"]  # names of files that are not UTF-8
    assert max(len(name.encode()) for name in names) <= 200


def test_what_others_write_and_what_cannot_be_fetched_is_status_1(here, golden, drawn, tmp_path, monkeypatch):
    options = ["--model", golden.folder, "--image-size", 56, "--class", "felt"]
    with only_writer(tmp_path), only_writer(tmp_path, ".p.lock"):
        for command in ("evaluate", "ablate", "train"):
            output = tmp_path / "p.safetensors" if command == "train" else tmp_path
            done = here(command, drawn, "--output", output, *options)
            assert done.returncode == 1
            assert "another process writes there" in done.stderr
    assert here("evaluate", drawn, "--output", tmp_path, *options).returncode == 0
    monkeypatch.setattr("tipsomaly.models.hub.snapshot", lambda *_: (_ for _ in ()).throw(FetchError("no network")))
    done = here("detect", "x.png", "--model", "org/model")
    assert (done.returncode, done.stderr) == (1, "error: no network\n")
