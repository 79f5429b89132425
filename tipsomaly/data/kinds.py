"""The kinds of defects: what the folders and labels of a data set are called in words that serve others, too."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tipsomaly.data.samples import Sample
from tipsomaly.names import clean_kind


class Table(NamedTuple):
    """A data set: its classes, and for each kind of defect what it is called there."""

    classes: frozenset[str]
    kinds: Mapping[str, tuple[str, ...]]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MVTEC = Table(
    _names(
        "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper"
    ),
    {
        "bent": ("bent", "bent_lead", "bent_wire", "manipulated_front"),
        "broken": ("broken", "broken_large", "broken_small", "broken_teeth"),
        "color": ("color",),
        "combined": ("combined",),
        "contamination": ("contamination", "metal_contamination"),
        "crack": ("crack",),
        "cut": ("cut", "cut_inner_insulation", "cut_lead", "cut_outer_insulation"),
        "fabric": ("fabric", "fabric_border", "fabric_interior"),
        "faulty imprint": ("faulty_imprint", "print"),
        "glue": ("glue", "glue_strip"),
        "hole": ("hole",),
        "missing": ("missing", "missing_cable", "missing_wire"),
        "poke": ("poke", "poke_insulation"),
        "rough": ("rough",),
        "scratch": ("scratch", "scratch_head", "scratch_neck"),
        "squeeze": ("squeeze", "squeezed_teeth"),
        "thread": ("thread", "thread_side", "thread_top"),
        "liquid": ("liquid", "oil"),
        "misplaced": ("misplaced", "cable_swap", "flip", "fold", "split_teeth"),
        "damaged": ("damaged_case", "defective", "gray_stroke", "pill_type"),
    },
)
"""MVTec AD by the names of its folders."""

VISA = Table(
    _names("candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum"),
    {
        "damage": ("damage", "damaged corner of packaging"),
        "scratch": ("scratch", "scratches", "small scratches"),
        "breakage": (
            "breakage down the middle",
            "middle breakage",
            "corner and edge breakage",
            "corner or edge breakage",
        ),
        "burnt": ("burnt",),
        "weird wick": ("weird candle wick",),
        "stuck": ("stuck together", "fryum stuck together"),
        "crack": ("small cracks",),
        "wrong place": ("wrong place",),
        "particle": ("foreign particals on candle",),
        "bubble": ("bubble",),
        "melded": ("wax melded out of the candle",),
        "hole": ("small holes",),
        "melt": ("melt",),
        "bent": ("bent",),
        "spot": (
            "different colour spot",
            "different color spot",
            "same colour spot",
            "similar colour spot",
            "color spot similar to the object",
        ),
        "extra": ("extra", "extra wax in candle"),
        "chip": ("chip around edge and corner", "small chip around edge"),
        "missing": ("missing", "corner missing", "chunk of wax missing", "chunk of gum missing"),
    },
)
"""VisA by the labels of its image_anno.csv."""

MPDD = Table(
    _names("bracket_black bracket_brown bracket_white connector metal_plate tubes"),
    {
        "hole": ("hole",),
        "scratch": ("scratches",),
        "bent": ("bend_and_parts_mismatch",),
        "mismatch": ("parts_mismatch",),
        "defective painting": ("defective_painting",),
        "rust": ("major_rust", "total_rust"),
        "flattening": ("flattening",),
    },
)
"""MPDD by the names of its folders."""

_KIND = {
    (class_name, name): kind
    for table in (MVTEC, VISA, MPDD)
    for class_name in table.classes
    for kind, names in table.kinds.items()
    for name in names
}


def kinds(sample: Sample) -> tuple[str, ...]:
    """The kinds of a picture's defects: those of the tables above for their data sets, for any other the words of its
    folder. None for a normal picture; several for one that VisA gives several labels, separated by commas."""
    if not sample.label:
        return ()
    labels = sample.defect.split(",") if sample.class_name in VISA.classes else [sample.defect]
    labels = [label.strip() for label in labels]
    known = (_KIND.get((sample.class_name, label)) for label in labels)
    return tuple(found or clean_kind(label) for found, label in zip(known, labels, strict=True))


def kind(sample: Sample) -> str:
    """The kind of a picture's defect, the first of several; "" for a normal picture."""
    return (*kinds(sample), "")[0]


def all_kinds(samples: Iterable[Sample]) -> tuple[str, ...]:
    """The kinds that occur in a data set, in alphabetical order."""
    return tuple(sorted({found for sample in samples for found in kinds(sample)}))


def of_one_kind(samples: Iterable[Sample]) -> list[Sample]:
    """Without pictures that have several labels: one mask cannot say which of its pixels have which kind."""
    return [sample for sample in samples if len(kinds(sample)) < 2]
