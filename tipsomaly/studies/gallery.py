"""Pictures of a data set with their maps, by category, as in figures 4 to 8 (section 7.4.6)."""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import Sample, by_class
from tipsomaly.detection import visualization
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.files import whole_file

HEIGHT = 224
"""Of each picture in a gallery, in pixels."""
GREEN = (0, 255, 0)
"""The outline of the ground truth, as in the paper's figures."""


def drawn(pipeline: Pipeline, sample: Sample) -> list[Image.Image]:
    """The picture and its overlay, both with the ground truth outlined where there is a mask."""
    result = pipeline(sample.image, sample.called)
    pictures = [result.image, result.overlay()]
    if sample.mask is None:
        return pictures
    return [visualization.contours(picture, load_mask(sample), GREEN) for picture in pictures]


def save_gallery(pipeline: Pipeline, samples: Sequence[Sample], folder: Path, count: int) -> list[Path]:
    """Draw `count` defective pictures of each class, spread evenly over them in their order, whatever their scores are:
    CLASS.png, the pictures above their overlays. A class without defects has none."""
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for class_name, group in by_class([sample for sample in samples if sample.label]).items():
        chosen = [group[i * len(group) // min(count, len(group))] for i in range(min(count, len(group)))]
        columns = [drawn(pipeline, sample) for sample in chosen]
        rows = [visualization.side_by_side(list(row), height=HEIGHT) for row in zip(*columns, strict=True)]
        sheet = Image.new("RGB", (rows[0].width, 2 * HEIGHT + 8), "white")
        for i, row in enumerate(rows):
            sheet.paste(row, (0, i * (HEIGHT + 8)))
        slug = re.sub(r"[^\w-]+", "_", class_name)[:80]
        paths.append(folder / f"{slug}.png")
        with whole_file(paths[-1]) as file:
            sheet.save(file, "PNG")
    return paths
