"""The worst mistakes of an evaluation, drawn."""

import re
from collections.abc import Sequence
from pathlib import Path

from tipsomaly.data.samples import Sample
from tipsomaly.detection import visualization
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.files import whole_file
from tipsomaly.studies.evaluation import Evaluation
from tipsomaly.studies.gallery import drawn


def save_worst(
    pipeline: Pipeline, evaluation: Evaluation, samples: Sequence[Sample], folder: Path, count: int
) -> list[Path]:
    """Draw the `count` worst mistakes of three kinds: normal pictures that score highest, defective ones that score
    lowest, and defects that stand out least from the rest of their map. Each is the picture beside its overlay, both
    with the mask's outline, as KIND-RANK-CLASS-DEFECT-NAME.png."""
    known = {str(sample.image): sample for sample in samples}
    scored = [(r.class_name, p, p.score(evaluation.strategy)) for r in evaluation.classes for p in r.pictures]
    placed = [(x, x[1].localization) for x in scored if x[1].localization is not None]
    kinds = {
        "normal": sorted((x for x in scored if not x[1].label), key=lambda x: -x[2]),
        "missed": sorted((x for x in scored if x[1].label), key=lambda x: x[2]),
        "misplaced": [x for x, _ in sorted(placed, key=lambda pair: pair[1])],
    }
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for old in (path for kind in kinds for path in folder.glob(f"{kind}-*.png")):
        old.unlink()
    for kind, ranked in kinds.items():
        for rank, (class_name, picture, _) in enumerate(ranked[:count], 1):
            sample = known[picture.image]
            pictures = drawn(pipeline, sample)
            slug = "-".join(re.sub(r"\W+", "_", part)[:40] for part in (class_name, sample.defect, sample.image.stem))
            paths.append(folder / f"{kind}-{rank}-{slug}.png")
            with whole_file(paths[-1]) as file:
                visualization.side_by_side(pictures, height=min(pictures[0].height, 512)).save(file, "PNG")
    return paths
