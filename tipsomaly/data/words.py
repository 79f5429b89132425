"""What the classes of a data set are called in the fixed sentences, and which sentences these are."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tipsomaly.data.samples import Sample
from tipsomaly.errors import DatasetError
from tipsomaly.names import clean_class_name

MEDICAL = frozenset(
    ("brain", "brain mri", "br35h", "clinicdb", "colon", "colondb", "headct", "isic", "skin", "thyroid", "tn3k")
)
"""Classes of the seven medical data sets, as they are called here and in the `meta.json` of AdaCLIP and Tipsomaly, and
plain words for the same."""


def call(samples: Iterable[Sample], words: Mapping[str, str]) -> list[Sample]:
    """The samples with words for the fixed sentences by class. Raises DatasetError for a class that none is of."""
    samples = list(samples)
    names = {sample.class_name for sample in samples}
    if unknown := sorted(words.keys() - names):
        raise DatasetError(f"words for {', '.join(unknown)}, but the classes are {', '.join(sorted(names))}")
    return [replace(sample, words=words.get(sample.class_name)) for sample in samples]


def domain(class_name: str) -> str:
    """The prompts for a class: "medical" for those of the medical data sets, "industrial" for any other."""
    return "medical" if clean_class_name(class_name).lower() in MEDICAL else "industrial"
