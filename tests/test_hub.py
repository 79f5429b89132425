"""Names to files, against servers on loopback. The clients are the real ones; what fails is the network or the disk."""

import hashlib
import json
import runpy
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import FileServer, HubServer
from test_tips import SHAPES, make_config, random_model
from typer.testing import CliRunner

from tipsomaly import LearnedPrompts, ModelError, Pipeline
from tipsomaly.cli import app
from tipsomaly.models import download, hub
from tipsomaly.models.catalogue import BACKBONES, Prompts
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.convert import convert
from tipsomaly.models.folder import ModelFolder, write_configs
from tipsomaly.models.tips import Tips
from tipsomaly.prompts.cops import Cops
from tipsomaly.prompts.methods import METHODS

V1 = "tips-l14-hr"
V2 = "tipsv2-b14"
VISION = "tips_oss_l14_highres_distilled_vision.npz"


@pytest.fixture
def world(golden, tmp_path, monkeypatch):
    """A Hub with nothing on it, a bucket with a release of the golden case under the name of TIPS-L/14-HR, and caches
    of this test's own."""
    stand_in, bucket = HubServer(), FileServer()
    base = "/v1_0/checkpoints/pytorch/tips_oss_l14_highres_distilled"
    bucket.files = {
        f"{base}_vision.npz": golden.vision_npz.read_bytes(),
        f"{base}_text.npz": golden.text_npz.read_bytes(),
        "/v1_0/checkpoints/tokenizer.model": golden.tokenizer.read_bytes(),
        "/released.pth": golden.prompts_pth.read_bytes(),
    }
    released = hashlib.sha256(bucket.files["/released.pth"]).hexdigest()
    for name in BACKBONES[V1].prompts:
        monkeypatch.setitem(BACKBONES[V1].prompts, name, Prompts("MVTec AD", "released.pth", released))
    environment = {
        "HF_ENDPOINT": stand_in.url,
        "HF_HOME": str(tmp_path / "hf"),
        "TIPSOMALY_BUCKET_URL": bucket.url,
        "TIPSOMALY_PROMPTS_URL": bucket.url,
        "TIPSOMALY_ORG": "acme",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TIPSOMALY_CACHE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    # The client reads its environment when it is imported, which another test may have caused.
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    cache = tmp_path / "hf" / "tipsomaly"
    yield SimpleNamespace(hub=stand_in, bucket=bucket, cache=cache, folder=tmp_path, constants=constants)
    stand_in.close()
    bucket.close()


def publish(world, golden, repository="acme/" + V1) -> dict[str, bytes]:
    """Put the golden model folder on the Hub, with files that nobody should fetch."""
    paths = [path for path in golden.folder.rglob("*") if path.is_file()]
    files = {path.relative_to(golden.folder).as_posix(): path.read_bytes() for path in paths}
    files |= {"README.md": b"# A card", "modeling_tips.py": b"raise SystemExit('ran')", "pytorch_model.bin": b"pickle"}
    world.hub.repositories[repository] = files
    return files


def score(pipe: Pipeline, golden) -> tuple:
    result = pipe.with_options(image_size=golden.case["inference_size"])(golden.images[0], "nut")
    return result.score, result.anomaly_map.tobytes()


def fails(name: str, match: str, **options) -> None:
    """Loading fails with one clear line."""
    with pytest.raises(ModelError, match=match) as caught:
        Pipeline.from_pretrained(name, **options)
    assert "\n" not in str(caught.value)


def leftovers(world) -> list[str]:
    """What is in our cache beside locks."""
    return sorted(
        p.relative_to(world.cache).as_posix() for p in world.cache.rglob("*") if p.suffix != ".lock" and p.is_file()
    )


# The release


def test_a_v1_name_comes_from_the_release_and_is_converted_once(world, golden):
    pipe = Pipeline.from_pretrained(V1, prompts="mvtec")
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


# The Hub


def test_our_repository_comes_first_and_only_the_files_we_need(world, golden):
    files = publish(world, golden)
    pipe = Pipeline.from_pretrained(V1, prompts="tiny")
    assert score(pipe, golden) == score(golden.pipe, golden)
    fetched = {path.split("/", 5)[-1] for method, path, _ in world.hub.requests if "/resolve/" in path}
    assert fetched == set(files) - {"README.md", "modeling_tips.py", "pytorch_model.bin"}
    assert world.bucket.requests == []
    assert hub.where_cached(V1) == "Hub"


def test_org_name_and_revision(world, golden):
    publish(world, golden, "someone/model")
    commit = world.hub.commit("someone/model")
    for name, revision in (("someone/model", None), ("someone/model", commit), (f"someone/model@{commit}", None)):
        assert score(Pipeline.from_pretrained(name, revision=revision), golden) == score(golden.pipe, golden)
    fails("someone/model@nope", "no revision 'nope'")
    fails("someone/other", "no model 'someone/other'")
    fails(f"{V1}@{commit}", "no revisions")
    fails("nano@main", "no revisions")


def test_a_v2_name_falls_back_to_googles_repository(world, golden, monkeypatch):
    """As Google published it: no preprocessor, no prompts, a flat config.json with code to run."""
    files = publish(world, golden, f"google/{V2}")
    for name in [name for name in files if name.startswith(("prompts/", "preprocessor", "tokenizer_config"))]:
        del files[name]
    native = json.loads(files["config.json"])
    files["config.json"] = json.dumps(
        {
            "model_type": "tipsv2",
            "auto_map": {"AutoModel": "modeling_tips.TIPSv2Model"},
            "img_size": golden.case["native_size"],
            "vision_fn": "vit_base",
            "embed_dim": golden.case["dim"],
            "text_num_heads": golden.case["heads"],
            "temperature": native["temperature_init_value"],
        }
    ).encode()
    pipe = Pipeline.from_pretrained(V2, mode="fixed")
    assert pipe.tips.config.vision == golden.config.vision
    assert pipe.image_size == (golden.case["native_size"],) * 2
    expected = golden.pipe.with_options(mode="fixed")
    assert score(pipe, golden) == score(expected, golden)
    monkeypatch.setattr(world.constants, "HF_HUB_OFFLINE", True)
    assert score(Pipeline.from_pretrained(V2, mode="fixed"), golden) == score(expected, golden)
    monkeypatch.setattr(world.constants, "HF_HUB_OFFLINE", False)
    native["auto_map"] = {"AutoModel": "modeling_tips.TIPSv2Model"}  # as it may be today
    files["config.json"] = json.dumps(native).encode()
    assert score(Pipeline.from_pretrained(V2, mode="fixed"), golden) == score(expected, golden)


def test_prompts_that_do_not_fit_are_known_before_weights_are_fetched(world, golden):
    files = publish(world, golden, f"google/{V2}")
    files["prompts/other.safetensors"] = files.pop("prompts/tiny.safetensors")
    publish(world, golden, "someone/bare").pop("prompts/tiny.safetensors")
    other = LearnedPrompts(golden.pipe.prompts.normal, golden.pipe.prompts.abnormal, metadata={"backbone": V1})
    other.save(world.folder / "other.safetensors")
    fails("someone/bare", r"^the mode 'decoupled' needs learned prompts and bare has none: .*`tipsomaly train`")
    fails("tips-s14-hr", r"needs learned prompts and tips-s14-hr has none: .*`tipsomaly train`")
    fails("tips-s14-hr", r"'mvtec' .mvtec was released for tips-l14-hr.: tips-s14-hr has none", prompts="mvtec")
    fails(V2, r"'visa' .visa was released for tips-l14-hr.: tipsv2-b14 has other", prompts="visa")
    fails(V2, f"trained on {V1}, the model is {V2}", prompts=world.folder / "other.safetensors")
    assert world.bucket.requests == []
    assert world.hub.asked("model.safetensors") == []
    assert hub.where_cached(V2) is None
    del files["prompts/other.safetensors"]
    fails(V2, "tipsv2-b14 has none")
    Pipeline.from_pretrained(V2, mode="fixed")
    assert len(world.hub.asked("model.safetensors")) == 1


def test_nowhere_at_all(world):
    fails(V2, "no model 'google/tipsv2-b14'", mode="fixed")


@pytest.mark.parametrize("kind", ["cut", 429, 503])
def test_hub_trouble_that_passes(world, golden, kind, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    publish(world, golden)
    world.hub.fail("model.safetensors" if kind == "cut" else "", kind, 2)
    assert score(Pipeline.from_pretrained("acme/" + V1), golden) == score(golden.pipe, golden)


@pytest.mark.parametrize(
    ("part", "kind", "message"),
    [
        ("model.safetensors", "cut", "acme/tips-l14-hr is not in the cache"),
        ("model.safetensors", "longer", "size"),
        ("model.safetensors", "flip", "sha256 of model.safetensors"),
        ("/api/", 503, "503"),
        ("/api/", 429, "429"),
        ("/api/", 401, "401"),
        ("/api/", 404, "acme/tips-l14-hr"),
        ("model.safetensors", 403, "403"),
    ],
)
def test_hub_trouble_that_stays_is_one_line_and_the_next_run_works(world, golden, monkeypatch, part, kind, message):
    monkeypatch.setattr("time.sleep", lambda _: None)
    publish(world, golden)
    world.hub.fail(part, kind)
    fails("acme/" + V1, message)
    world.hub.faults.clear()
    assert score(Pipeline.from_pretrained("acme/" + V1), golden) == score(golden.pipe, golden)


def test_offline_with_and_without_a_cached_copy(world, golden, monkeypatch):
    publish(world, golden)
    monkeypatch.setattr(world.constants, "HF_HUB_OFFLINE", True)
    fails(V1, "HF_HUB_OFFLINE", prompts=golden.pipe.prompts)
    fails("acme/" + V1, "HF_HUB_OFFLINE")
    assert world.bucket.requests == []
    monkeypatch.setattr(world.constants, "HF_HUB_OFFLINE", False)
    Pipeline.from_pretrained(V1)
    monkeypatch.setattr(world.constants, "HF_HUB_OFFLINE", True)
    asked = len(world.hub.requests)
    assert score(Pipeline.from_pretrained(V1), golden) == score(golden.pipe, golden)
    assert len(world.hub.requests) == asked


def test_without_a_network(world, golden, monkeypatch):
    """Servers that are not there: with a cached copy all is well, without one it is one line."""
    publish(world, golden, "acme/tips-s14-hr")
    Pipeline.from_pretrained("tips-s14-hr")
    Pipeline.from_pretrained(V1)
    world.hub.close()
    world.bucket.close()
    assert score(Pipeline.from_pretrained("tips-s14-hr"), golden) == score(golden.pipe, golden)
    assert score(Pipeline.from_pretrained(V1), golden) == score(golden.pipe, golden)
    fails("tips-b14-hr", "cannot be reached", mode="fixed")
    fails("acme/other", "cannot be used")


def test_hf_download_gives_a_folder_that_both_libraries_open(world, golden):
    from transformers import Tipsv2Model

    publish(world, golden)
    command = [str(Path(sys.executable).parent / "hf"), "download", "acme/" + V1, "--local-dir", "model"]
    done = subprocess.run(command, cwd=world.folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    folder = world.folder / "model"
    assert score(Pipeline.from_pretrained(folder), golden) == score(golden.pipe, golden)
    oracle = Tipsv2Model.from_pretrained(folder).eval()
    pixels = torch.rand(1, 3, 56, 84)
    with torch.inference_mode():
        states = oracle.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(golden.pipe.encode(pixels).spatial, states[:, 1], atol=1e-5, rtol=1e-4)


# Names and prompts


def test_unknown_names_list_the_near_ones(world):
    fails("tips-l14", "did you mean .*tips-l14-hr")
    fails("xyz", "there are nano, tips-s14-hr")
    fails("./no/such/folder", "no such folder")
    assert world.hub.requests == []


def test_prompts_by_name_path_and_hub_id(world, golden):
    tiny = (golden.folder / "prompts" / "tiny.safetensors").read_bytes()
    world.hub.repositories |= {
        "acme/one": {"prompts/tiny.safetensors": tiny, "x.bin": b"x"},
        "acme/two": {"prompts/a.safetensors": tiny, "prompts/b.safetensors": tiny},
        "acme/none": {"README.md": b"x"},
    }
    for prompts in ("tiny", golden.folder / "prompts" / "tiny.safetensors", "acme/one", "acme/two:b",
                    "acme/two:prompts/b.safetensors", "acme/one:tiny@main"):  # fmt: skip
        pipe = Pipeline.from_pretrained(golden.folder, prompts=prompts)
        assert torch.equal(pipe.prompts.normal, golden.pipe.prompts.normal)
    for prompts, message in (("acme/two", "a, b; say which"), ("acme/none", "no prompts"), ("acme/one:c", "no c"),
                             ("acme/three", "no model"), ("mvtek", "model has tiny")):  # fmt: skip
        fails(golden.folder, message, prompts=prompts)


def test_prompts_of_another_backbone_are_refused_with_both_named(world, golden):
    publish(world, golden, "acme/tipsv2-l14")
    learned = golden.pipe.prompts
    other = LearnedPrompts(learned.normal, learned.abnormal, metadata={"backbone": V1})
    fails("tipsv2-l14", "trained on tips-l14-hr, the model is tipsv2-l14", prompts=other)
    wide = LearnedPrompts(torch.zeros(8, 6), torch.zeros(8, 6), metadata={"backbone": "tips-s14-hr"})
    fails(golden.folder, "6 wide .made for tips-s14-hr., the model is", prompts=wide)


def test_the_catalogue_says_what_the_towers_are():
    assert len(BACKBONES) == 10
    for backbone in BACKBONES.values():
        vision_depth, text_depth = backbone.depths
        large = backbone.width == 1152
        mlp = 4304 if large else 4 * backbone.width
        heads = 16 if large else backbone.width // 64
        with torch.device("meta"):
            towers = Tips(
                TipsConfig(
                    VisionConfig(backbone.width, vision_depth, heads, backbone.image_size,
                                 mlp_ratio=mlp / backbone.width, swiglu=backbone.width == 1536),
                    TextConfig(backbone.width, text_depth, heads, mlp),
                    temperature=0.01,
                )
            )  # fmt: skip
        counts = [sum(p.numel() for p in t.parameters()) for t in (towers.vision_encoder, towers.text_encoder)]
        assert [round(count / 1e6) for count in counts] == list(backbone.parameters), backbone.name
        assert [len(source.url.split("//")) for source in backbone.sources] == [2, 2, 2]


def test_the_models_command_lists_names_and_what_is_cached(world, golden):
    publish(world, golden, "acme/tips-s14-hr")
    hub.resolve("tips-s14-hr")
    hub.resolve(V1)
    output = CliRunner().invoke(app, ["models"]).output
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line}
    assert {"nano", *BACKBONES} <= set(rows)
    assert [rows[name][-1] for name in ("nano", "tips-s14-hr", V1, V2)] == ["bundled", "Hub", "converted", "-"]
    assert "mvtec, visa" in output


def test_a_first_score_imports_no_client_no_plotting_and_no_compiler():
    unwanted = ("huggingface_hub", "gradio", "matplotlib", "typer", "scipy", "torch._dynamo", "ray")
    score = "tipsomaly.Pipeline.from_pretrained()(numpy.zeros((20, 20), 'uint8')).score"
    code = f"import sys, numpy, tipsomaly; {score}; print([m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "[]", done.stderr


# Writing


def test_push_to_hub_and_back_changes_no_bit(world, golden, monkeypatch):
    with pytest.raises(ModelError, match="settings/tokens"):
        golden.pipe.push_to_hub("acme/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    golden.pipe.push_to_hub("acme/mine", private=True)
    assert world.hub.created[0].get("visibility", world.hub.created[0].get("private")) in ("private", True)
    assert score(Pipeline.from_pretrained("acme/mine"), golden) == score(golden.pipe, golden)
    world.hub.fail("/api/repos/create", 403)
    with pytest.raises(ModelError, match=r"^acme/mine: the upload failed: .*403") as caught:
        golden.pipe.push_to_hub("acme/mine")
    assert "\n" not in str(caught.value)


def publish_with(monkeypatch, *arguments: object) -> None:
    """`python hub/publish.py ...` in this process, where the stand-ins are."""
    script = runpy.run_path(str(Path(__file__).parent.parent / "hub" / "publish.py"))
    monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, arguments)])
    script["main"]()


def test_publishing_lists_and_then_uploads_a_folder_with_its_card(world, golden, monkeypatch, capsys):
    arguments = ("--org", "acme", "--build", world.folder / "build", V1)
    publish_with(monkeypatch, "--dry-run", *arguments)
    listed = dict(
        reversed(line.split()) for line in capsys.readouterr().out.splitlines() if ".safe" in line or ".md" in line
    )
    assert set(listed) == {"README.md", "model.safetensors", "prompts/mvtec.safetensors", "prompts/visa.safetensors"}
    assert world.hub.created == []
    folder = world.folder / "build" / V1
    card = (folder / "README.md").read_text()
    for path, content in world.bucket.files.items():
        assert hashlib.sha256(content).hexdigest() in card, path
    convert(golden.vision_npz, golden.text_npz, golden.tokenizer, world.folder / "again")  # as the card says
    assert hashlib.sha256((world.folder / "again" / "model.safetensors").read_bytes()).hexdigest() in card
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines()]
    assert ["HeadCT", "92.7"] in [row[:2] for row in rows]
    assert "$" not in card
    assert score(Pipeline.from_pretrained(folder), golden) == score(golden.pipe, golden)

    with pytest.raises(SystemExit, match="settings/tokens"):
        publish_with(monkeypatch, *arguments)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    publish_with(monkeypatch, *arguments)
    assert {
        name: f"{len(content):,}" for name, content in world.hub.repositories[f"acme/{V1}"].items()
    }.items() >= listed.items()
    monkeypatch.setattr(hub, "cache_folder", lambda: world.folder / "fresh")
    assert score(Pipeline.from_pretrained(V1, prompts="visa"), golden) == score(golden.pipe, golden)


def test_publishing_prompts_alone_with_a_card_of_their_own(world, golden, monkeypatch, tmp_path):
    file, measured = tmp_path / "mine.safetensors", tmp_path / "results.md"
    Cops.start(golden.config, temperature=0.1, metadata={"backbone": "tiny", "trained_on": "a | b"}).save(file)
    steps = [{"epoch": epoch, "step": step, "total": epoch + step} for epoch in (1, 2) for step in (1, 2)]
    file.with_suffix(".log.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    measured.write_text("| class | 12.3 |")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    arguments = ("--org", "acme", "--build", world.folder / "build", file, "--licence", "mit", "--measured", measured)
    publish_with(monkeypatch, *arguments)
    published = world.hub.repositories["acme/mine"]
    assert {"README.md", "prompts/mine.safetensors", "prompts/mine.log.jsonl"} <= set(published)
    card = published["README.md"].decode()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert "license: mit" in card
    assert "CoPS" in card
    assert "| trained_on | a \\| b |" in card
    assert "3.5000" in card  # of the last epoch
    assert "| class | 12.3 |" in card
    assert "$" not in card
    pipe = Pipeline.from_pretrained(golden.folder, prompts="acme/mine:mine")
    assert pipe.prompts.NAME == "cops"
    for method in METHODS.values():
        method.start(golden.config, temperature=0.1, seed=0, metadata={}).save(file)
        publish_with(monkeypatch, "--dry-run", *arguments[:5])
        assert f"- {method.NAME}\n" in (world.folder / "build" / "mine" / "README.md").read_text()
    (tmp_path / "no.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="no.safetensors"):
        publish_with(monkeypatch, *arguments[:4], tmp_path / "no.safetensors")


def test_publishing_nano_and_the_space(world, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    publish_with(monkeypatch, "--org", "acme", "--build", world.folder / "build", "nano", "space")
    nano = world.hub.repositories["acme/nano"]
    assert nano["model.safetensors"] == (hub.BUNDLED["nano"] / "model.safetensors").read_bytes()
    space = world.hub.repositories["spaces/acme/tipsomaly"]
    assert {
        "app.py",
        "requirements.txt",
        "README.md",
        "tipsomaly/detection/pipeline.py",
        "tipsomaly/nano/config.json",
    } <= set(space)
    assert not [name for name in space if "__pycache__" in name or name.startswith((".", "tests/", "hub/"))]
    assert world.hub.created[1]["sdk"] == "gradio"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("original", [True, False])
def test_what_transformers_saves_opens_here(golden, tmp_path, shape, original):
    from transformers import Tipsv2Model

    model = random_model(make_config(shape))
    write_configs(tmp_path / "ours", model.config, (model.config.vision.image_size,) * 2)
    from safetensors.torch import save_file

    save_file(model.state_dict(), tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    theirs = Tipsv2Model.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        theirs.temperature.fill_(0.02)  # as if it had been trained on
    size = "5GB" if original else "100KB"
    theirs.save_pretrained(tmp_path / "theirs", save_original_format=original, max_shard_size=size)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() != original
    again = ModelFolder(tmp_path / "theirs").read_tips(torch.device("cpu"), torch.float32)
    assert again.config.temperature == pytest.approx(0.02)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_tokenizer_is_transformers_too(golden):
    pytest.importorskip("google.protobuf")
    from transformers import AutoTokenizer

    sentences = ["a photo of a Damaged nut.", "two  spaces"]
    ids = AutoTokenizer.from_pretrained(golden.folder)(sentences, padding="max_length", truncation=True)["input_ids"]
    assert ids == golden.pipe.tokenizer(sentences)[0].tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_conversion_to_half_precision_rounds(golden, tmp_path, dtype, tolerance):
    from safetensors.torch import load_file

    convert(golden.vision_npz, golden.text_npz, golden.tokenizer, tmp_path, dtype=dtype)
    exact, rough = (load_file(folder / "model.safetensors") for folder in (golden.folder, tmp_path))
    for name, value in exact.items():
        assert rough[name].dtype == getattr(torch, dtype)
        assert torch.equal(rough[name], value.to(rough[name].dtype)), name
        torch.testing.assert_close(rough[name].float(), value, rtol=tolerance, atol=1e-6)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * (golden.folder / "model.safetensors").stat().st_size


def test_numbers_that_a_dtype_cannot_hold_are_refused(golden, tmp_path):
    arrays = dict(np.load(golden.vision_npz))
    np.savez(tmp_path / "v.npz", **{**arrays, "norm.bias": arrays["norm.bias"] + 1e6})
    with pytest.raises(ModelError, match=r"'norm\.bias' has values that float16 cannot hold"):
        convert(tmp_path / "v.npz", golden.text_npz, golden.tokenizer, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_hub_that_accepts_and_never_answers(world, golden, monkeypatch, capsys):
    """With a whole copy in the cache it is used and said; without one it is one line. Neither waits for ever."""
    publish(world, golden)
    Pipeline.from_pretrained("acme/" + V1)
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    monkeypatch.setattr(world.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert score(Pipeline.from_pretrained("acme/" + V1), golden) == score(golden.pipe, golden)
    assert "the copy in the cache is used" in capsys.readouterr().err
    fails("acme/other", "is not in the cache")
    silent.close()


@pytest.mark.parametrize("name", ["tokenizer.model", "prompts/tiny.safetensors", "config.json"])
def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(world, golden, name):
    publish(world, golden)
    path = hub.resolve("acme/" + V1).path / name
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert (hub.resolve("acme/" + V1).path / name).read_bytes() == content


def test_names_of_the_catalogue_ask_no_organisation_by_default(world, golden, monkeypatch):
    publish(world, golden)
    monkeypatch.delenv("TIPSOMALY_ORG")
    Pipeline.from_pretrained(V1)
    assert world.hub.requests == []
