"""How well the kinds of defects are told apart: one against the rest, as the multi-type task of the literature."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tipsomaly.data.kinds import kinds
from tipsomaly.data.samples import Sample, by_class
from tipsomaly.errors import OptionError
from tipsomaly.files import write_atomically
from tipsomaly.studies import figures
from tipsomaly.studies.evaluation import ClassResult, Evaluation
from tipsomaly.studies.metrics import Metrics, dataset_mean, image_metrics
from tipsomaly.studies.tables import table

NORMAL = "normal"
COLUMNS = ("auroc", "ap", "f1")


@dataclass(frozen=True)
class ClassKinds:
    """Of one class: metrics of each kind against the rest, "normal" among them, and who was taken for what."""

    kinds: Mapping[str, Metrics]
    """By kind COLUMNS, shares of 1: AUROC and AP of its probability at the most abnormal patch, F1 of the most probable
    kind there; None for a kind that no picture has."""
    confusion: Mapping[str, Mapping[str, int]]
    """Pictures by their kind and by the most probable one."""
    named: float | None
    """Share of the defective pictures of which the most probable kind of defect is their own."""
    chance: float | None
    """The same for always naming the commonest kind."""
    left_out: int
    """Defective pictures of several kinds, or of one that was not asked for."""


@dataclass(frozen=True)
class KindEvaluation:
    """Of a data set, by class."""

    classes: Mapping[str, ClassKinds]

    def mean(self) -> Metrics:
        """COLUMNS: the mean over the kinds of a class, then over classes."""
        by_name = {name: dataset_mean(found.kinds)[0] for name, found in self.classes.items()}
        return dataset_mean(by_name)[0]

    def markdown(self) -> str:
        """A table of percentages, a kind a row."""
        rows = [
            [f"{name}: {kind}", *map(metrics.get, COLUMNS)]
            for name, found in self.classes.items()
            for kind, metrics in found.kinds.items()
        ]
        rows.append(["**mean**", *map(self.mean().get, COLUMNS)])
        text = f"Kinds of defects, one against the rest; in percent.\n\n{table(['kind', *COLUMNS], rows)}\n"
        for name, found in self.classes.items():
            if found.named is not None:
                text += f"{name}: {found.named:.1%} of the defective pictures are given their kind"
                text += f" (the commonest kind: {found.chance:.1%})"
                text += f"; {found.left_out} pictures left out.\n" if found.left_out else ".\n"
        return text

    def save(self, folder: Path) -> None:
        """Write kinds.md, kinds.json and confusion.png."""
        write_atomically(folder / "kinds.md", self.markdown())
        content = {"mean": self.mean(), "classes": {name: asdict(found) for name, found in self.classes.items()}}
        write_atomically(folder / "kinds.json", json.dumps(content, indent=1) + "\n")
        names = [NORMAL, *sorted({k for found in self.classes.values() for k in found.confusion} - {NORMAL})]
        total: Counter[tuple[str, str]] = Counter()
        for found in self.classes.values():
            for truth, row in found.confusion.items():
                total.update({(truth, guess): count for guess, count in row.items()})
        counts = np.array([[total[truth, guess] for guess in names] for truth in names])
        write_atomically(folder / "confusion.png", figures.confusion(names, counts))


def evaluate_kinds(evaluation: Evaluation, samples: Sequence[Sample]) -> KindEvaluation:
    """Tell how well the pictures' kinds were named. Raises OptionError for prompts that know no kinds."""
    groups = by_class(samples)
    return KindEvaluation({r.class_name: _of_class(r, groups[r.class_name]) for r in evaluation.classes})


def _of_class(result: ClassResult, samples: Sequence[Sample]) -> ClassKinds:
    truths, probabilities, left_out = [], [], 0
    for picture, sample in zip(result.pictures, samples, strict=True):
        if picture.kinds is None:
            raise OptionError("these prompts know no kinds of defects: take a set of the method dapo")
        own = kinds(sample) or (NORMAL,)
        if len(own) > 1 or own[0] not in (NORMAL, *picture.kinds):
            left_out += 1
            continue
        truths.append(own[0])
        probabilities.append({NORMAL: 1 - sum(picture.kinds.values()), **picture.kinds})
    names = list(probabilities[0]) if probabilities else [NORMAL]
    values = np.array([[p[name] for name in names] for p in probabilities]).reshape(-1, len(names))
    guesses = [names[i] for i in values.argmax(1)]
    metrics = {name: _one_against_the_rest(name, truths, guesses, values[:, i]) for i, name in enumerate(names)}
    confusion = {t: dict(Counter(g for g, own in zip(guesses, truths, strict=True) if own == t)) for t in names}
    defective = [(own, value) for own, value in zip(truths, values, strict=True) if own != NORMAL]
    named = [own == names[1 + int(value[1:].argmax())] for own, value in defective]
    commonest = Counter(own for own, _ in defective).most_common(1)
    chance = commonest[0][1] / len(defective) if commonest else None
    return ClassKinds(metrics, confusion, float(np.mean(named)) if named else None, chance, left_out)


def _one_against_the_rest(name: str, truths: list[str], guesses: list[str], values: np.ndarray) -> Metrics:
    labels = np.array([truth == name for truth in truths], int)
    if not labels.any():
        return dict.fromkeys(COLUMNS)
    found = image_metrics(values, labels)
    hits = sum(guess == name == truth for guess, truth in zip(guesses, truths, strict=True))
    f1 = 2 * hits / (int(labels.sum()) + guesses.count(name))
    return {"auroc": found["image_auroc"], "ap": found["image_ap"], "f1": f1}
