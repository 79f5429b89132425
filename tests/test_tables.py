"""Several data sets and models in one command, with averages over data sets and the paper's rows beside."""

import shutil
from dataclasses import replace

import pytest
from PIL import Image
from typer.testing import CliRunner

from tipsomaly.cli import app
from tipsomaly.data.layouts import read_dataset
from tipsomaly.studies.evaluation import evaluate
from tipsomaly.studies.gallery import HEIGHT, save_gallery
from tipsomaly.studies.paper import DATA_SETS, Paper, published
from tipsomaly.studies.summary import table_1, table_8
from tipsomaly.studies.tables import METRICS


@pytest.fixture(scope="module")
def pipe(golden):
    return golden.pipe.with_options(image_size=56)


@pytest.fixture(scope="module")
def evaluation(pipe, drawn):
    return evaluate(pipe, read_dataset(drawn, classes=["felt"]))


def cells(text: str, label: str) -> list[str]:
    """The cells of the one row of that label."""
    [line] = [line for line in text.splitlines() if line.split("|")[1:2] and line.split("|")[1].strip() == label]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def as_paper(evaluation, name):
    """Our numbers as if they were of the paper's data set."""
    return replace(evaluation, paper=Paper(name, {}))


def test_the_commands_tables_are_those_of_evaluations_of_their_own(golden, drawn, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(golden.folder, other)
    (other / "prompts" / "tiny.safetensors").rename(other / "prompts" / "mvtec.safetensors")
    (other / "prompts" / "broken.safetensors").touch()  # the first by name, not the one to take
    roots = [drawn / "felt", drawn / "metal_nut"]
    options = ["--image-size", "56", "--output", tmp_path / "out", "--model", golden.folder, "--model", other]
    done = CliRunner().invoke(app, ["tables", *map(str, [*roots, *options])])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "tables.md").read_text()
    assert text in done.output
    pipe = golden.pipe.with_options(image_size=56)
    means = {root.name: evaluate(pipe, read_dataset(root)).mean() for root in roots}
    first, second, third = text.split("\n## ")[1:]
    for table in (first, second):
        assert cells(table, "felt") == [f"{100 * means['felt'][m]:.1f}" for m in METRICS]
        expected = [f"{50 * sum(mean[m] for mean in means.values()):.1f}" for m in METRICS]
        assert cells(table, "**average, industrial, 2 data sets**") == expected
        assert "paper:" not in table
    nuts = third.split("### metal_nut")[1]
    assert cells(nuts, "model") == cells(nuts, "other") == [f"{100 * means['metal_nut'][m]:.1f}" for m in METRICS]
    assert (tmp_path / "out" / "other" / "felt" / "results.json").is_file()


def test_the_papers_averages_stand_beside_the_papers_data_sets_only(evaluation):
    medical = {name: as_paper(evaluation, name) for name, known in DATA_SETS.items() if known["domain"] == "medical"}
    text = table_1({"VisA": as_paper(evaluation, "VisA"), **medical})
    assert cells(text, "average, medical, paper: Tipsomaly") == [
        "92.8",
        "92.7",
        "87.1",
        "87.2",
        "-",
        "54.8",
        "-",
        "71.4",
    ]
    assert cells(text, "VisA, paper: AdaCLIP") == ["85.8", "79.0", "83.1", "95.5", "-", "37.7", "-", "72.9"]
    assert "average, industrial, paper" not in text
    assert text.index("| VisA ") < text.index("average, industrial, 1 data set") < text.index("| ISIC ")


def test_table_8_has_the_papers_backbones(evaluation):
    text = table_8({"a": {"MVTec AD": as_paper(evaluation, "MVTec AD")}})
    assert cells(text, "paper: tips-g14-lr")[:3] == ["89.3", "96.1", "91.8"]
    assert len(published("8", "VisA")) == 5


def test_galleries_show_defective_pictures_with_their_truth(pipe, drawn, tmp_path):
    paths = save_gallery(pipe, read_dataset(drawn), tmp_path, 2)
    assert [path.name for path in paths] == ["felt.png", "metal_nut.png"]
    sheet = Image.open(paths[0])
    assert sheet.size == (2 * round(70 * HEIGHT / 60) + 8, 2 * HEIGHT + 8)
    assert any(g > 150 and r < 80 and b < 80 for _, (r, g, b) in sheet.crop((0, 0, 200, HEIGHT)).getcolors(10**6))
