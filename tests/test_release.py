"""The released files: fetched, verified, converted once, whatever happens on the way."""

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_server import V1, VISION, FileServer, fails, leftovers, score

from tipsomaly import LearnedPrompts, Pipeline
from tipsomaly.models import download, hub
from tipsomaly.models.catalogue import BACKBONES


def test_a_v1_name_comes_from_the_release_and_is_converted_once(world, golden, capsys):
    pipe = Pipeline.from_pretrained(V1, prompts="mvtec")
    assert "learned on MVTec AD (CC BY-NC-SA 4.0, not for commercial use)" in capsys.readouterr().err
    assert score(pipe, golden) == score(golden.pipe, golden)
    assert pipe.prompts.metadata["backbone"] == V1
    assert pipe.prompts.metadata["source_sha256"] == BACKBONES[V1].prompts["mvtec"].sha256
    sources = json.loads((world.cache / "models" / V1 / "source.json").read_text())
    assert {s["url"].rsplit("/", 1)[1]: s["sha256"] for s in sources} == {
        Path(path).name: hashlib.sha256(content).hexdigest()
        for path, content in world.bucket.files.items()
        if "checkpoints" in path
    }
    assert not (world.cache / "downloads" / V1).exists()
    before = len(world.bucket.requests), len(world.hub.requests)
    assert score(Pipeline.from_pretrained(V1), golden) == score(golden.pipe, golden)  # the released set is the default
    assert (len(world.bucket.requests), len(world.hub.requests)) == before


@pytest.mark.parametrize("times", [1, 3])
def test_a_cut_download_goes_on_where_it_ended(world, golden, times):
    world.bucket.fail(VISION, "cut", times)
    Pipeline.from_pretrained(V1)
    ranges = world.bucket.asked(VISION)
    assert ranges[0] is None
    assert len(ranges) == times + 1
    size = len(golden.vision_npz.read_bytes())
    assert ranges[1] == f"bytes={size // 2}-"


def test_a_server_that_is_gone_half_way_is_one_line_and_the_next_run_resumes(world, golden, monkeypatch):
    world.bucket.fail(VISION, "cut", 1)
    world.bucket.fail(VISION, 503, method="GET")
    fails(V1, "503")
    partial = next((world.cache / "downloads" / V1).glob("*.partial"))
    half = len(golden.vision_npz.read_bytes()) // 2
    assert partial.stat().st_size == half
    world.bucket.faults.clear()
    assert score(Pipeline.from_pretrained(V1), golden) == score(golden.pipe, golden)
    assert world.bucket.asked(VISION)[-1] == f"bytes={half}-"


def test_a_connection_that_never_brings_anything_ends(world, monkeypatch):
    monkeypatch.setattr(FileServer, "send_file", lambda self, request, *_: request.wfile.close())
    fails(V1, "cannot be reached")
    monkeypatch.undo()


def test_a_changed_file_is_not_joined_to_the_old_half(world, golden):
    world.bucket.fail(VISION, "cut", 1)
    world.bucket.fail(VISION, 503, download.ATTEMPTS, method="GET")
    fails(V1, "503")
    path = next(path for path in world.bucket.files if path.endswith(VISION))
    arrays = dict(np.load(golden.vision_npz))
    np.savez(world.folder / "new.npz", **{**arrays, "norm.bias": arrays["norm.bias"] + 1})
    world.bucket.files[path] = (world.folder / "new.npz").read_bytes()
    pipe = Pipeline.from_pretrained(V1)
    assert torch.equal(pipe.tips.vision_encoder.norm.bias, torch.from_numpy(arrays["norm.bias"] + 1))


@pytest.mark.parametrize(
    ("kind", "message"), [("longer", "its size is"), ("flip", "its md5 is"), (404, "404"), (401, "401"), (403, "403")]
)
def test_a_wrong_file_is_refused_and_the_next_run_works(world, golden, kind, message):
    world.bucket.fail(VISION, kind)
    fails(V1, message)
    assert not [name for name in leftovers(world) if name.startswith("models") or "vision" in name]
    world.bucket.faults.clear()
    assert score(Pipeline.from_pretrained(V1), golden) == score(golden.pipe, golden)


def test_released_prompts_of_another_hash_are_refused(world, golden):
    right = world.bucket.files["/released.pth"]
    world.bucket.files["/released.pth"] = right + b"0"
    fails(V1, "its sha256 is", prompts="mvtec")
    world.bucket.files["/released.pth"] = right
    Pipeline.from_pretrained(V1, prompts="mvtec")


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_bucket_is_asked_again(world, golden, status):
    world.bucket.fail("", status, 2)
    Pipeline.from_pretrained(V1)


def test_a_release_that_cannot_be_converted_is_not_kept(world, golden):
    path = next(path for path in world.bucket.files if path.endswith(VISION))
    right = world.bucket.files[path]
    world.bucket.files[path] = right[:5000]
    fails(V1, "cannot be converted")
    assert leftovers(world) == [f"prompts/{V1}/mvtec.safetensors"]  # which was fetched first, and is right
    world.bucket.files[path] = right
    assert score(Pipeline.from_pretrained(V1), golden) == score(golden.pipe, golden)


def test_a_conversion_that_was_killed_is_done_again(world, golden):
    staging = world.cache / "models" / f".{V1}.killed.partial"
    staging.mkdir(parents=True)
    (staging / "config.json").write_text("half")
    assert hub.where_cached(V1) is None
    assert score(Pipeline.from_pretrained(V1), golden) == score(golden.pipe, golden)
    assert hub.where_cached(V1) == "converted"
    assert not staging.exists()


def test_disk_space_is_looked_at_first(world, golden, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    fails(
        V1,
        r"\d MB are needed and 0 MB are free",
        prompts=LearnedPrompts.load(golden.folder / "prompts" / "tiny.safetensors"),
    )
    assert world.bucket.asked(".npz") == []
    monkeypatch.undo()


def test_a_full_disk_is_one_line_and_the_next_run_works(world, golden):
    folder = world.cache / "downloads" / V1
    folder.mkdir(parents=True)
    source = next(s for s in BACKBONES[V1].sources if s.file_name == VISION)
    partial = download._head(source).partial(folder)
    partial.symlink_to("/dev/full")
    fails(V1, "No space left")
    partial.unlink()
    assert score(Pipeline.from_pretrained(V1), golden) == score(golden.pipe, golden)


def test_a_cache_that_cannot_be_written_is_one_line(world, golden, monkeypatch):
    (world.folder / "file").write_text("")
    monkeypatch.setenv("TIPSOMALY_CACHE", str(world.folder / "file" / "cache"))
    fails(V1, "TIPSOMALY_CACHE", prompts=LearnedPrompts.load(golden.folder / "prompts" / "tiny.safetensors"))
    monkeypatch.setenv("TIPSOMALY_CACHE", str(world.folder / "cache"))
    Pipeline.from_pretrained(V1)
    assert (world.folder / "cache" / "models" / V1).is_dir()


LOAD = """
import sys
from tipsomaly.models import hub
print(hub.resolve(sys.argv[1]).path)
"""


def test_of_two_processes_one_downloads_and_one_waits(world):
    event = threading.Event()
    world.bucket.fail(VISION, "slow", 1, event=event)
    command = [sys.executable, "-c", LOAD, V1]
    first, second = (subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab")
    waiting = threading.Timer(200, event.set)  # should neither say that it waits, the test fails below, not hangs
    waiting.start()
    said = {}
    readers = [threading.Thread(target=lambda p=p: said.update({p: p.stderr.readline()})) for p in (first, second)]
    for reader in readers:
        reader.daemon = True
        reader.start()
    while not any("waiting" in line for line in said.values()) and not event.is_set():
        event.wait(0.05)
    event.set()
    waiting.cancel()
    out = [process.communicate(timeout=200)[0].strip() for process in (first, second)]
    assert out == [str(world.cache / "models" / V1)] * 2
    assert len(world.bucket.asked(VISION)) == 1
    assert any("waiting for another process" in line for line in said.values())
