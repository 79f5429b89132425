"""Names to files, against servers on loopback. The clients are the real ones; what fails is the network or the disk."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import V1, V2, fails, publish, score
from typer.testing import CliRunner

from tipsomaly import LearnedPrompts, Pipeline
from tipsomaly.cli import app
from tipsomaly.models import hub
from tipsomaly.models.catalogue import BACKBONES
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.tips import Tips


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


def test_addresses_as_a_browser_shows_them(world, golden):
    publish(world, golden, "someone/model")
    commit = world.hub.commit("someone/model")
    folder = hub.resolve("someone/model", weights=False)
    for name in ("hf://someone/model", f"hf://someone/model@{commit}", "https://huggingface.co/someone/model",
                 "https://hf.co/someone/model/", "https://huggingface.co/someone/model?library=tipsomaly#usage",
                 f"https://huggingface.co/someone/model/tree/{commit}",
                 f"{world.hub.url}/someone/model/tree/main"):  # fmt: skip
        assert hub.resolve(name, weights=False) == folder, name
    fails("hf://someone/model@nope", "no revision 'nope'")
    fails("https://huggingface.co/someone/model/tree/refs%2Fpr%2F1", "no revision 'refs/pr/1'")
    fails("https://huggingface.co/someone/model/blob/main/config.json", "names a file, .* whole repository")
    asked = len(world.hub.requests)
    for name in ("hf://someone", "hf://datasets/someone/model", "hf://datasets/model", "https://example.com/some/model",
                 "https://huggingface.co/datasets/someone/model", "https://huggingface.co/spaces/model",
                 "https://huggingface.co/someone", "https://huggingface.co/someone/model/discussions",
                 "ftp://huggingface.co/someone/model", "http://[huggingface.co/someone/model"):  # fmt: skip
        fails(name, r"is not the address of a model on the Hub, which is hf://org/name.*/tree/revision")
    assert len(world.hub.requests) == asked
    assert [hub.short_name(name) for name in ("x/a", "hf://x/a@b", "https://hf.co/x/a/tree/b")] == ["a"] * 3


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
                    "acme/two:prompts/b.safetensors", "acme/one:tiny@main", "hf://acme/two:b",
                    "https://huggingface.co/acme/one/tree/main",
                    "https://huggingface.co/acme/two/blob/main/prompts/b.safetensors"):  # fmt: skip
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
    assert f"mvtec of {V1}: MVTec AD (CC BY-NC-SA 4.0, not for commercial use)" in output


def test_a_first_score_imports_no_client_no_plotting_and_no_compiler():
    unwanted = ("huggingface_hub", "gradio", "matplotlib", "typer", "scipy", "torch._dynamo", "ray")
    score = "tipsomaly.Pipeline.from_pretrained()(numpy.zeros((20, 20), 'uint8')).score"
    code = f"import sys, numpy, tipsomaly; {score}; print([m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "[]", done.stderr


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
