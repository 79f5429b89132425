"""Notebooks: results show themselves; the one on nano runs, the one for Colab names what there is."""

import ast
import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from PIL import Image

from tipsomaly import Calibration, Pipeline, Result
from tipsomaly.errors import OptionError

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def code_cells(path):
    """The code of a notebook, without what only IPython understands; nothing of a run is stored in it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    return [re.sub(r"^[%!].*$", "", "".join(cell["source"]), flags=re.MULTILINE) for cell in code]


def test_the_first_steps_run_from_a_picture_to_an_export(tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names, shown = {}, []
    for code in code_cells(EXAMPLES / "first-steps.ipynb"):
        tree = ast.parse(code)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last:
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    results = [value for value in shown if isinstance(value, Result)]
    assert len(results) == 2
    assert all(isinstance(found.is_anomalous, bool) for found in names["verdicts"])
    assert "coco.json" in shown[-2]
    assert shown[-1] < 1e-4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_what_there_is(path):
    """Imports, attributes and keywords of what comes from the package."""
    kinds = {"pipe": Pipeline, "sure": Pipeline, "exported": Pipeline, "calibration": Calibration}
    kinds |= dict.fromkeys(("result", "found"), Result)
    known = {}
    for code in code_cells(path):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tipsomaly":
                module = importlib.import_module(node.module)
                known |= {alias.name: getattr(module, alias.name) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                kind = kinds.get(node.value.id) or known.get(node.value.id)
                if kind:
                    fields = get_type_hints(kind) if kind in (Result, Calibration) else {}
                    assert hasattr(kind, node.attr) or node.attr in fields or node.attr == "device", node.attr
            if isinstance(node, ast.Call):
                function = called(node.func, kinds, known)
                parameters = inspect.signature(function).parameters if function else {}
                if function and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                    assert {keyword.arg for keyword in node.keywords} <= parameters.keys(), ast.unparse(node)
    assert known


def called(function, kinds, known):
    """What of the package a call calls, if it does."""
    if isinstance(function, ast.Name):
        return Pipeline.__call__ if kinds.get(function.id) is Pipeline else known.get(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        kind = kinds.get(function.value.id) or known.get(function.value.id)
        return getattr(kind, function.attr) if kind else None
    return None


@pytest.fixture
def result(tmp_path):
    """A picture with two regions above 0.5."""
    Image.effect_noise((1200, 900), 40).convert("RGB").save(tmp_path / "a.png")
    patch_map = np.full((8, 12), 0.05, np.float32)
    patch_map[2, 3], patch_map[6, 9] = 0.95, 0.8
    return Result(0.4, 0.3, patch_map, 1200, 900, (112, 168), "<nut>", "decoupled", 1.0, source=tmp_path / "a.png")


def test_a_result_shows_itself_in_a_notebook(result):
    shown = result._repr_html_()
    assert shown.count("<img ") == 2
    assert f"{result.score:.4f}" in shown
    assert "&lt;nut&gt;" in shown and "<nut>" not in shown
    assert len(shown) < 100_000
    result.source.unlink()  # then there is the map alone
    assert result._repr_html_().count("<img ") == 1


def test_regions_are_detections_of_supervision(result):
    sv = pytest.importorskip("supervision")
    regions, found = result.regions(0.5), result.to_supervision(0.5)
    assert isinstance(found, sv.Detections)
    assert [tuple(box) for box in found.xyxy] == [region.box for region in regions]
    assert found.confidence.tolist() == pytest.approx([region.peak for region in regions])
    assert np.array_equal(found.mask.any(0), result.mask(0.5))
    assert found.area.tolist() == [region.area for region in regions]
    assert found.data["class_name"].tolist() == ["anomaly"] * 2
    assert len(found[found.confidence > regions[1].peak]) == 1
    assert len(result.to_supervision(0.99)) == 0
    with pytest.raises(OptionError, match="threshold"):
        result.to_supervision()


def test_supervision_is_asked_for_where_it_is_not_there(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(OptionError, match="pip install supervision"):
        result.to_supervision(0.5)
