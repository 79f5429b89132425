"""The published numbers agree with each other as the paper's tables do, and stand where people read them."""

import re
from pathlib import Path

import pytest

from tipsomaly.data.samples import Sample
from tipsomaly.studies.paper import DATA_SETS, OURS, paper_data_set, paper_results, published, trained_on

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["MVTec AD", "VisA"])
def test_the_default_rows_of_all_tables_are_the_same(name):
    first = published("1", name)[OURS]
    tables = {number: published(number, name) for number in ("2a", "2b", "2c", "7", "8")}
    for row in (tables["2a"]["decoupled"], tables["2c"]["S5"], tables["7"]["block 24 of 24"]):
        assert row.items() <= first.items()
    assert tables["8"]["tips-l14-hr"] == first
    assert tables["2b"]["local"] == tables["2a"]["learned"]
    images = ("image_auroc", "image_ap")
    assert [tables["2a"]["fixed"][m] for m in images] == [first[m] for m in images]


def test_s2_is_better_than_s5_on_mvtec_and_worse_on_visa():
    mvtec, visa = (published("2c", name) for name in ("MVTec AD", "VisA"))
    assert mvtec["S2"]["image_auroc"] > mvtec["S5"]["image_auroc"] == 0.934
    assert visa["S2"]["image_auroc"] < visa["S5"]["image_auroc"] == 0.877


def test_averages_are_means_of_their_columns_but_for_the_papers_own_slips():
    off = {}
    for domain in ("industrial", "medical"):
        columns = [published("1", name) for name, known in DATA_SETS.items() if known["domain"] == domain]
        for method, metrics in published("1", f"Average ({domain})").items():
            for metric, average in metrics.items():
                values = [rows[method][metric] for rows in columns if metric in rows[method]]
                if abs(average - sum(values) / len(values)) > 0.00051:
                    off[domain, method, metric] = average
    assert off == {
        ("industrial", "VAND", "image_auroc"): 0.816,
        ("industrial", "AnomalyCLIP", "image_f1max"): 0.872,
        ("industrial", "AdaCLIP", "aupro_200"): 0.501,
    }


def samples(normal: int, anomalous: int, *classes: str) -> list[Sample]:
    path = Path("a.png")
    labels = [0] * normal + [1] * anomalous
    return [Sample(path, None, classes[i % len(classes)], "x", label) for i, label in enumerate(labels)]


def test_counts_decide_whether_a_data_set_is_the_papers():
    assert paper_data_set(samples(181, 74, "electrical commutators")) == "SDD"
    assert paper_data_set(samples(347, 52, "electrical commutators")) is None  # KolektorSDD as it is distributed
    assert paper_data_set(samples(451, 290, "01", "02", "03")) == "BTAD"
    assert paper_data_set(samples(451, 290, "01", "02")) is None
    assert paper_data_set(samples(100, 100, "HeadCT")) == "HeadCT"
    assert paper_data_set(samples(100, 100, "bottle")) is None
    assert paper_results(samples(98, 155, "brain_mri")).metrics["image_auroc"] == 0.924
    assert len({tuple(d[k] for k in ("categories", "normal", "anomalous")) for d in DATA_SETS.values()}) == 14


def test_prompts_are_never_tested_on_what_they_were_trained_on():
    assert {name: trained_on(name) for name in DATA_SETS if trained_on(name) != "mvtec"} == {"MVTec AD": "visa"}


def test_reproduce_has_a_command_and_the_numbers_of_every_data_set():
    text = (ROOT / "examples" / "REPRODUCE.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ([\w -]+?) \| `(tipsomaly evaluate .*?)` \| (\S+) \| (\S+) \| (\S+) \|$", text, re.MULTILINE
    )
    assert [row[0] for row in rows] == list(DATA_SETS)
    for name, command, *printed in rows:
        metrics = published("1", name)[OURS]
        expected = [metrics.get(m) for m in ("image_auroc", "pixel_auroc", "aupro_200")]
        assert printed == ["-" if value is None else f"{100 * value:.1f}" for value in expected]
        assert f"--prompts {trained_on(name)} " in command + " "
