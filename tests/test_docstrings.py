"""The examples in docstrings are true: what they print is what they show, from the repository's folder."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import tipsomaly

PACKAGE = Path(tipsomaly.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_show_what_they_print(workplace, monkeypatch, module):
    monkeypatch.chdir(workplace)
    failed, tried = doctest.testmod(import_module(module))
    assert tried
    assert not failed  # pytest shows what doctest says


@pytest.mark.parametrize("name", sorted(set(tipsomaly.__all__) - {"TrainingError"}))  # raised in a training alone
def test_a_public_name_has_an_example(name):
    assert ">>> " in getattr(tipsomaly, name).__doc__
