"""Models, prompts and the Space are published whole, with a card."""

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hub_server import V1, score
from huggingface_hub import ModelCard, SpaceCard
from packaging.requirements import Requirement

from tipsomaly import ModelError, Pipeline
from tipsomaly.data.layouts import read_dataset
from tipsomaly.models import hub
from tipsomaly.models.convert import convert
from tipsomaly.prompts.cops import Cops
from tipsomaly.prompts.methods import METHODS
from tipsomaly.studies.evaluation import evaluate

ROOT = Path(__file__).parent.parent


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
    script = runpy.run_path(str(ROOT / "hub" / "publish.py"))
    monkeypatch.setattr(sys, "argv", ["publish.py", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", sys.path[:])
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
    assert "`mvtec` on MVTec AD (CC BY-NC-SA 4.0, not for commercial use)" in card
    data = ModelCard(card).data
    assert data.license == ["apache-2.0", "cc-by-4.0", "mit"]
    assert (data.library_name, data.pipeline_tag) == ("tipsomaly", "image-segmentation")
    assert data.eval_results is None  # the paper's numbers are not ours
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


def test_publishing_prompts_alone_with_a_card_of_their_own(world, golden, drawn, monkeypatch, tmp_path):
    file, results = tmp_path / "mine.safetensors", tmp_path / "results"
    about = {"backbone": "tipsv2-b14", "trained_on": "a | b", "data_set": "VisA"}
    prompts = Cops.start(golden.config, temperature=0.1, metadata=about)
    prompts.save(file)
    steps = [{"epoch": epoch, "step": step, "total": epoch + step} for epoch in (1, 2) for step in (1, 2)]
    file.with_suffix(".log.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    samples = [s for s in read_dataset(drawn, "mvtec") if s.class_name == "felt"][::3]
    found = evaluate(golden.pipe.with_options(prompts=prompts, image_size=28), samples, output=results)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    arguments = ("--org", "acme", "--build", world.folder / "build", file, "--licence", "mit")
    arguments = (*arguments, "--measured", results / "results.md")
    publish_with(monkeypatch, *arguments)
    published = world.hub.repositories["acme/mine"]
    assert {"README.md", "prompts/mine.safetensors", "prompts/mine.log.jsonl"} <= set(published)
    card = published["README.md"].decode()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert "CoPS" in card
    assert "| trained_on | a \\| b |" in card
    assert "3.5000" in card  # of the last epoch
    assert found.markdown().strip() in card
    assert "learned on pictures under CC BY 4.0." in card
    assert "$" not in card
    data = ModelCard(card).data
    assert (data.license, data.datasets) == ("mit", ["Voxel51/VisA"])
    assert (data.base_model, data.base_model_relation) == ("google/tipsv2-b14", "adapter")
    assert {"cops", "anomaly-detection"} <= {*data.tags}
    assert data.model_name == "mine"
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    mean = found.mean()
    assert len(values) == 7
    assert values["image AUROC"] == pytest.approx(mean["image_auroc"], abs=1e-4)
    assert values["AUPRO"] == pytest.approx(mean["aupro"], abs=1e-4)
    assert "felt" in data.eval_results[0].dataset_name
    pipe = Pipeline.from_pretrained(golden.folder, prompts="acme/mine:mine")
    assert pipe.prompts.NAME == "cops"
    for method in METHODS.values():
        method.start(golden.config, temperature=0.1, seed=0, metadata={}).save(file)
        publish_with(monkeypatch, "--dry-run", *arguments[:5])
        assert f"- {method.NAME}\n" in (world.folder / "build" / "mine" / "README.md").read_text()
    with pytest.raises(SystemExit, match="results.json was not measured with the prompts of .*mine"):  # but of CoPS
        publish_with(monkeypatch, *arguments)
    (tmp_path / "no.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="no.safetensors"):
        publish_with(monkeypatch, *arguments[:4], tmp_path / "no.safetensors")


def test_publishing_nano_with_what_was_measured(world, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    publish_with(monkeypatch, "--org", "acme", "--build", world.folder / "build", "nano")
    nano = world.hub.repositories["acme/nano"]
    assert nano["model.safetensors"] == (hub.BUNDLED["nano"] / "model.safetensors").read_bytes()
    card, own = ModelCard(nano["README.md"].decode()), (hub.BUNDLED["nano"] / "README.md").read_text(encoding="utf-8")
    assert card.text.strip() == ModelCard(own).text.strip()
    assert (card.data.license, card.data.model_name) == ("mit", "nano")
    drawn = [result for result in card.data.eval_results if result.dataset_name.startswith("Drawn families")]
    row = next(line for line in own.splitlines() if line.startswith("| **mean** |"))
    assert " / ".join(f"{result.metric_value:.3f}" for result in drawn) == row.split(" | ")[4]
    assert [result.metric_name for result in drawn] == ["image AUROC", "pixel AUROC", "AUPRO"]


def test_the_space_is_uploaded_whole_and_starts_from_its_folder_alone(world, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    world.hub.repositories["spaces/acme/tipsomaly"] = {"left.py": b"of an older version"}
    publish_with(monkeypatch, "--org", "acme", "--build", world.folder / "build", "--space")
    space = world.hub.repositories["spaces/acme/tipsomaly"]
    assert world.hub.created[0]["sdk"] == "gradio"
    assert {name.split("/")[0] for name in space} == {
        *("app.py", "requirements.txt", "README.md", "LICENSE", "tipsomaly", "examples"),
        *("hub", ".github", "pyproject.toml"),  # of which only what the README and its guides link to
    }
    assert "hub/publish.py" not in space
    assert not [name for name in space if "__pycache__" in name or name.endswith(".pyc")]
    readme = space["README.md"].decode()
    for page in ("README.md", *(name for name in space if name.startswith("hub/site/pages/"))):
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", space[page].decode())
        assert {os.path.normpath(Path(page).parent / link).replace(os.sep, "/") for link in links} <= set(space), page
    front = SpaceCard(readme).data
    assert (front.sdk, front.app_file) == ("gradio", "app.py")
    assert Requirement(f"gradio=={front.sdk_version}")
    wanted = [line.partition("#")[0].strip() for line in space["requirements.txt"].decode().splitlines()]
    requirements = [Requirement(line) for line in wanted if line]
    assert all(r.specifier.contains(metadata.version(r.name).partition("+")[0]) for r in requirements)

    folder = world.folder / "build" / "space"
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(space)
    code = (
        "import app, tipsomaly; app.build(app.Space()); print(tipsomaly.__file__, len(app.Examples(app.EXAMPLES).all))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    file, examples = done.stdout.split()
    assert Path(file).parent == (folder / "tipsomaly").resolve()
    assert int(examples) >= 5


def test_the_page_has_the_table_of_today(monkeypatch, capsys, tmp_path):
    page, text = tmp_path / "hub.md", (ROOT / "hub" / "site" / "pages" / "hub.md").read_text(encoding="utf-8")
    page.write_text(re.sub(r"(?m)^\| `tips.*\n", "", text), encoding="utf-8")
    publish_with(monkeypatch, "--table", page)
    assert page.read_text(encoding="utf-8") == text, "run: python hub/publish.py --table hub/site/pages/hub.md"
    publish_with(monkeypatch, "--table")
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    models = {row[0]: row for row in rows}
    assert models["`tips-l14-hr`"][1:5] == ["304 + 184", "2.0 GB", "518", "14"]
    assert models["`tips-g14-hr`"][-2:] == ["92.9 / 90.6 / 77.1", "82.0 / 95.3 / 82.0"]  # table 8
    assert models["`mvtec`"][3:5] == ["MVTec AD", "CC BY-NC-SA 4.0, not for commercial use"]
    assert models["`mvtec`"][-2:] == ["-", "87.7 / 95.9 / 88.2"]
    assert "the paper's claims, not measured here" in printed
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the marks"):
        publish_with(monkeypatch, "--table", page)
