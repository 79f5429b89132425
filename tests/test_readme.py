"""The README and the other pages stay true: examples run, options exist, links lead somewhere, front matter fits."""

import ast
import inspect
import os
import re
import shlex
from pathlib import Path

import gradio
import pytest
import typer
import yaml

import tipsomaly
from tipsomaly.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for pattern in ("README.md", "hub/site/pages/*.md", "examples/*.md", ".github/*.md", "tipsomaly/nano/README.md")
    for path in sorted(ROOT.glob(pattern))
}
RUN = [name for name in PAGES if name == "README.md" or name.startswith("hub/site/")]
"""Whose examples run, where they are marked as python or sh; py and console need what is not here."""


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)```", PAGES[name], re.DOTALL | re.MULTILINE)


PYTHON = [(name, code) for name in RUN for code in blocks(name, "python") if "gradio_client" not in code]
COMMANDS = [(name, code) for name in RUN for code in blocks(name, "sh") if code.startswith("tipsomaly ")]


@pytest.mark.parametrize(("name", "code"), PYTHON, ids=[name for name, _ in PYTHON])
def test_python_examples_run(workplace, monkeypatch, name, code):
    monkeypatch.chdir(workplace)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("name", "code"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_commands_run(workplace, here, monkeypatch, name, code):
    monkeypatch.chdir(workplace)
    for line in code.splitlines():
        words = [sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in shlex.split(line)]
        done = here(*(name for names in words[1:] for name in names))
        assert done.returncode == 0, done.stderr


def test_there_are_examples():
    assert {name for name, _ in PYTHON} >= {"README.md", "hub/site/pages/first-picture.md"}
    assert {name for name, _ in COMMANDS} >= {"README.md", "hub/site/pages/first-picture.md"}


def options(command):
    """What a command takes; of a script here, what its parser names."""
    if command.endswith(".py"):
        return set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', (ROOT / command).read_text(encoding="utf-8")))
    group = typer.main.get_command(app)
    found = {option for parameter in group.params for option in parameter.opts}
    return found | {o for parameter in group.commands[command].params for o in parameter.opts} if command else found


@pytest.mark.parametrize("name", PAGES)
def test_what_commands_are_given_exists(name):
    """In examples, and in the text wherever a whole command stands there."""
    lines = "\n".join(blocks(name, "console") + blocks(name, "sh")).replace("\\\n> ", "").splitlines()
    lines += [line.replace("\n", " ") for line in re.findall(r"`((?:tipsomaly|python) [^`]*)`", PAGES[name])]
    for line in lines:
        found = re.search(
            r"(?:\btipsomaly(?: ([a-z][a-z-]*))?|\bpython ((?:app|hub|examples)\S*\.py))(?= |$)(.*)", line
        )
        if found and "pip install" not in line:
            given = set(re.findall(r"(?<= |\[)--[a-z][\w-]*", found[3].partition("  #")[0]))
            assert given <= options(found[1] or found[2] or "") | {"--help"}, line


@pytest.mark.parametrize("name", PAGES)
def test_options_in_the_text_exist(name):
    scripts = [path for pattern in ("*.py", "hub/*.py", "examples/**/*.py") for path in ROOT.glob(pattern)]
    named = [*typer.main.get_command(app).commands, *(path.relative_to(ROOT).as_posix() for path in scripts)]
    known = {"--help"}.union(*map(options, named))
    text = re.sub(r"^```.*?^```", "", PAGES[name], flags=re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(--[a-z][\w-]*)", text)) <= known


@pytest.mark.parametrize("name", RUN)
def test_python_that_is_not_run_uses_what_exists(name):
    settings = {*inspect.signature(tipsomaly.Pipeline.from_pretrained).parameters}
    for code in blocks(name, "py"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "tipsomaly":
                assert all(hasattr(tipsomaly, alias.name) or alias.name == "distributed" for alias in node.names)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained"):
                assert {keyword.arg for keyword in node.keywords} <= settings


def test_front_matter_is_a_space():
    front = yaml.safe_load(README.split("---")[1])
    assert front["sdk"] == "gradio"
    assert (ROOT / front["app_file"]).exists()
    assert front["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0]
    assert len(front["short_description"]) <= 60  # the Hub's limit


def test_the_readme_is_read_in_three_minutes():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name):
    """From where the page lies: as GitHub and a Space show it, and as the site finds it."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[name])
    there = [(ROOT / name).parent / link for link in links]
    assert [str(path) for path in there if not path.exists()] == []
    assert [os.path.normpath(path) for path in there if not path.resolve().is_relative_to(ROOT)] == []


def test_every_guide_is_reached_from_the_readme():
    assert {name for name in RUN[1:] if name not in README} == set()
