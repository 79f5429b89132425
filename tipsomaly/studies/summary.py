"""Several data sets and several backbones beside what the paper prints of them: tables 1 and 8."""

from collections.abc import Mapping

from tipsomaly.data.words import domain
from tipsomaly.studies.evaluation import Evaluation
from tipsomaly.studies.metrics import Metrics, dataset_mean
from tipsomaly.studies.paper import DATA_SETS, NOTES, published
from tipsomaly.studies.tables import METRICS, table

Rows = list[list[str | float | None]]


def table_1(evaluations: Mapping[str, Evaluation]) -> str:
    """Markdown of table 1 (section 3.1) for evaluations by data set: each one's mean over its classes, the averages of
    the industrial and of the medical ones over data sets, and the paper's rows of all methods. The paper's averages
    stand only beside ours of the same data sets."""
    rows: Rows = []
    for kind in ("industrial", "medical"):
        chosen = {name: e for name, e in evaluations.items() if _domain(e) == kind}
        for name, evaluation in chosen.items():
            rows.append(_row(name, evaluation.mean()))
            if evaluation.paper:
                rows += _published("1", evaluation.paper.name, f"{name}, paper: ")
        if chosen:
            count = f"{len(chosen)} data set{'s' * (len(chosen) > 1)}"
            average = dataset_mean({name: e.mean() for name, e in chosen.items()})[0]
            rows.append(_row(f"**average, {kind}, {count}**", average))
        if {e.paper and e.paper.name for e in chosen.values()} == {
            n for n, d in DATA_SETS.items() if d["domain"] == kind
        }:
            rows += _published("1", f"Average ({kind})", f"average, {kind}, paper: ")
    return f"## Table 1: data sets\n\n{table(['data set', *METRICS], rows)}\n{NOTES['1']}\n"


def table_8(evaluations: Mapping[str, Mapping[str, Evaluation]]) -> str:
    """Markdown of table 8 (section 7.4.1) for evaluations by backbone, then data set: a table a data set."""
    text = "## Table 8: backbones\n"
    for name in next(iter(evaluations.values())):
        rows: Rows = [_row(model, by_name[name].mean()) for model, by_name in evaluations.items()]
        paper = next(iter(evaluations.values()))[name].paper
        if paper:
            rows += _published("8", paper.name, "paper: ")
        text += f"\n### {name}\n\n{table(['backbone', *METRICS], rows)}"
    return f"{text}\n{NOTES['8']}\n"


def _row(label: str, metrics: Metrics) -> list[str | float | None]:
    return [label, *map(metrics.get, METRICS)]


def _published(number: str, data_set: str, label: str) -> Rows:
    return [
        [label + row, *(metrics.get(name, "-") for name in METRICS)]
        for row, metrics in published(number, data_set).items()
    ]


def _domain(evaluation: Evaluation) -> str:
    if evaluation.paper:
        return DATA_SETS[evaluation.paper.name]["domain"]
    return domain(evaluation.classes[0].class_name)
