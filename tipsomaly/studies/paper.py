"""What the paper reports, and which data that is of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tipsomaly.data.samples import Sample

_MVTEC = "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood zipper"
_VISA = "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum"


PAPER_SOURCE = "https://www.wizwand.com/paper/6982d2baa8b01e76cc8e969f"
PAPER_QUOTATION = "https://github.com/Parsagh05/backbone_eval"


@dataclass(frozen=True)
class Paper:
    """What the paper reports for a data set with TIPS-L/14-HR: means over its classes."""

    name: str
    metrics: Mapping[str, float]
    """Those that are known here, in [0, 1], from the listing of arXiv 2602.03594 at PAPER_SOURCE; those of MVTec AD but
    for the image AUROC from a quotation of the paper in docs/provenance_note.md of PAPER_QUOTATION. The AUPRO is
    what the authors' code computes, our `aupro_200`."""
    layout: str | None = None
    """A layout that no other data of as many classes has; otherwise the names of the classes tell."""
    classes: int | frozenset[str] = 0


_MVTEC_METRICS = {
    **{"image_auroc": 0.934, "image_ap": 0.961, "image_f1max": 0.929},
    **{"pixel_auroc": 0.909, "pixel_f1max": 0.438, "aupro_200": 0.840},
}
PAPER = (
    Paper("MVTec AD", _MVTEC_METRICS, classes=frozenset(_MVTEC.split())),
    Paper("VisA", {"image_auroc": 0.877, "pixel_auroc": 0.959}, classes=frozenset(_VISA.split())),
    Paper("BTAD", {"image_auroc": 0.950}, "btad", 3),
    Paper("DAGM", {"image_auroc": 0.997}, "dagm", 10),
    Paper("DTD-Synthetic", {"image_auroc": 0.994, "pixel_auroc": 0.993}, "dtd", 12),
    Paper("HeadCT", {"image_auroc": 0.927}, "headct", 1),
    Paper("KSDD", {"image_auroc": 0.978, "pixel_auroc": 0.995}, "sdd", 1),
)


def paper_results(samples: Sequence[Sample], layout: str | None = None) -> Paper | None:
    """The paper's numbers for a data set, if all its classes are here and its numbers are known."""
    classes = frozenset(sample.class_name for sample in samples)
    return next((p for p in PAPER if classes == p.classes or (p.layout, p.classes) == (layout, len(classes))), None)
