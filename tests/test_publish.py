"""Models, prompts and the Space are published whole, with a card."""

import hashlib
import json
import runpy
import sys
from pathlib import Path

import pytest
from hub_server import V1, score

from tipsomaly import ModelError, Pipeline
from tipsomaly.models import hub
from tipsomaly.models.convert import convert
from tipsomaly.prompts.cops import Cops
from tipsomaly.prompts.methods import METHODS


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
