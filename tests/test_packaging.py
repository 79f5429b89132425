"""What `pip install` brings: a wheel that is whole, and works away from the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import tipsomaly

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "examples" / "pictures" / "zipper-1.jpg"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, and a folder that pip installed it to, without a network and without what is in the checkout."""
    source, out, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheel", "target"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("tipsomaly", "tests", "hub"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--quiet")
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", out, source], check=True, timeout=200)
    (wheel,) = out.iterdir()
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--no-compile", "--target", target, wheel], check=True)
    return wheel, target


def test_the_wheel_holds_the_package_and_nothing_else(installed):
    wheel, target = installed
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "tipsomaly"
    files = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.is_file()}
    assert names == {name for name in files if "__pycache__" not in name}
    (distribution,) = metadata.distributions(path=[str(target)])
    assert distribution.version == tipsomaly.__version__
    assert {f"Paper, {url}" for url in PROJECT["urls"].values() if "arxiv" in url} <= {
        *distribution.metadata.get_all("Project-URL")
    }
    extras = {"app", "mcp", "ray", "siglip2", "onnx", "openvino", "supervision", "hf", "video", "test"}
    assert extras <= {*distribution.metadata.get_all("Provides-Extra")}
    for name in extras:  # each brings something
        assert any(f'extra == "{name}"' in requirement for requirement in distribution.requires)


def test_the_installed_command_works_away_from_the_checkout(installed, tmp_path):
    (command,) = (installed[1] / "bin").glob("tipsomaly*")
    environment = {**os.environ, "PYTHONPATH": str(installed[1]), "PYTHONSAFEPATH": "1"}
    arguments = [command, "detect", PICTURE, "--class-name", "zipper", "--output", tmp_path / "out"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["score"] == pytest.approx(tipsomaly.Pipeline.from_pretrained()(PICTURE, "zipper").score)


def test_version_and_completion(here, monkeypatch):
    assert here("--version").stdout == f"tipsomaly {tipsomaly.__version__}\n"
    monkeypatch.setenv("_TIPSOMALY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "tipsomaly de")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert here().stdout.split() == ["detect"]


def test_the_public_tests_run_on_the_versions_that_the_package_names():
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    versions = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if line.startswith("Programming Language")}
    assert {*job["strategy"]["matrix"]["python"]} == versions - {"3"}
    assert min(versions - {"3"}) == PROJECT["requires-python"].removeprefix(">=")
    assert [path for path in job["env"]["PORTABLE"].split() if not (ROOT / path).is_file()] == []
    assemble = (ROOT / "examples" / "browser" / "assemble.py").read_text(encoding="utf-8")
    (runtime,) = re.findall(r'^RUNTIME = "(.*)"$', assemble, re.MULTILINE)
    assert any(runtime in step.get("run", "") for step in job["steps"])
