"""What the paper prints, read from paper.json beside this file, and which data it is of (table 3)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tipsomaly.data.samples import Sample
from tipsomaly.names import clean_class_name
from tipsomaly.studies.metrics import Metrics

_CONTENT: Mapping[str, Any] = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))

SOURCE: str = _CONTENT["source"]
MODEL: str = _CONTENT["model"]
"""The backbone of all tables but 8 and 9."""
NOTES: Mapping[str, str] = _CONTENT["notes"]
"""What to know when a table is compared with ours, by its number."""
DATA_SETS: Mapping[str, Mapping[str, Any]] = _CONTENT["data_sets"]
"""Table 3, in the order of table 1: domain, categories, pictures of the test split."""
OURS = "Tipsomaly"
"""The paper's own method among the rows of table 1."""
NOT_OURS = "paper, not measured here"

_COLUMNS = {
    "image": ("image_auroc", "image_ap", "image_f1max"),
    "pixel": ("pixel_auroc", "aupro_200", "pixel_f1max"),
}


@dataclass(frozen=True)
class Paper:
    """What the paper reports for a data set: decoupled prompts, S5, means over its classes."""

    name: str
    metrics: Mapping[str, float | None]
    """In [0, 1]. The AUPRO is what the released code computes, our `aupro_200`."""


def published(table: str, data_set: str) -> dict[str, Metrics]:
    """The rows of a table ("1" to "9") for a data set of DATA_SETS or an average of table 1: metrics in [0, 1] by the
    row's name; nothing if the table has no such data set."""
    rows = _CONTENT["tables"][table].get(data_set, {})
    return {
        row: {
            metric: round(number / 100, 6)
            for level, numbers in levels.items()
            for metric, number in zip(_COLUMNS[level], numbers, strict=False)
        }
        for row, levels in rows.items()
    }


def paper_data_set(samples: Sequence[Sample]) -> str | None:
    """The name of the paper's data set that these samples are, by the counts of table 3; one of a single class must
    also be called by one of its words, as a hundred pictures of each kind are found elsewhere, too."""
    classes = {sample.class_name for sample in samples}
    anomalous = sum(sample.label for sample in samples)
    counts = (len(classes), len(samples) - anomalous, anomalous)
    words = {clean_class_name(name).lower() for name in classes}
    for name, known in DATA_SETS.items():
        if counts == tuple(known[key] for key in ("categories", "normal", "anomalous")):
            return name if words <= set(known.get("words", words)) else None
    return None


def paper_results(samples: Sequence[Sample]) -> Paper | None:
    """The paper's numbers for a data set, if it is one of the paper's, with all of its pictures."""
    name = paper_data_set(samples)
    return Paper(name, published("1", name)[OURS]) if name else None


def trained_on(data_set: str | None) -> str:
    """The released prompts that the paper tests a data set with: never those that were trained on it."""
    return "visa" if data_set == "MVTec AD" else "mvtec"
