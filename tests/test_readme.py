"""The README stays true: its examples run, its front matter fits, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import gradio
import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "gradio_client" not in code]
COMMANDS = re.findall(r"^tipsomaly .*$", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)), re.MULTILINE)


@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_run(workplace, monkeypatch, code):
    monkeypatch.chdir(workplace)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(workplace, here, monkeypatch, command):
    monkeypatch.chdir(workplace)
    done = here(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr


def test_there_are_examples():
    assert len(PYTHON) >= 2
    assert len(COMMANDS) >= 3


def test_front_matter_is_a_space():
    front = yaml.safe_load(README.split("---")[1])
    assert front["sdk"] == "gradio"
    assert (ROOT / front["app_file"]).exists()
    assert front["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0]
    assert len(front["short_description"]) <= 60  # the Hub's limit


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
