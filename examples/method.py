"""Draw the figure of the method from a picture, with nano: `python examples/method.py [PICTURE CLASS OUT.png]`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch

from tipsomaly import Pipeline
from tipsomaly.detection.visualization import COLOURS

HERE = Path(__file__).parent


def draw(picture: str | Path, class_name: str, out: str | Path) -> None:
    pipe = Pipeline.from_pretrained()
    result = pipe(picture, class_name)
    states = pipe.domain.sentences(class_name)
    normal, abnormal = states[0][4], states[1][0]
    figure = plt.figure(figsize=(12, 5.6))
    panels = (
        (0.01, result.image, "picture"),
        (0.44, result.patch_map, "probability p_a of each patch token"),
        (0.76, result.anomaly_map, "anomaly map: upsampled, smoothed"),
    )
    for left, pixels, title in panels:
        axes = figure.add_axes((left, 0.33, 0.22, 0.47))
        axes.imshow(pixels, cmap=COLOURS, vmin=0, vmax=1, interpolation="nearest")
        axes.set_xlabel(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    fixed = {"boxstyle": "round,pad=0.5", "facecolor": "#eef2ff", "edgecolor": "#6366f1"}
    learned = {**fixed, "facecolor": "#fff7ed", "edgecolor": "#d97706"}
    plain = {**fixed, "facecolor": "white", "edgecolor": "#64748b"}
    texts = (
        (0.33, 0.565, "frozen TIPS\nvision tower", plain),
        (0.55, 0.925, "learned prompts, for the patches\n8 vectors + sentences about \u201cobject\u201d", learned),
        (0.12, 0.09, f"fixed prompts, for the image\n\u201c{normal}\u201d\n\u201c{abnormal}\u201d", fixed),
        (0.36, 0.09, f"p_a(spatial token)\n{result.global_score:.2f}", fixed),
        (0.55, 0.09, f"largest patch probability\n{result.local_score:.2f}", learned),
        (0.76, 0.09, f"image score\n{result.score:.2f} of 2", plain),
        (0.445, 0.09, "+", None),
        (0.665, 0.09, "=", None),
    )
    for x, y, text, style in texts:
        figure.text(x, y, text, ha="center", va="center", fontsize=9.5 if style else 18, bbox=style)
    arrows = (
        ((0.235, 0.565), (0.275, 0.565)),
        ((0.385, 0.565), (0.438, 0.565)),
        ((0.665, 0.565), (0.755, 0.565)),
        ((0.55, 0.87), (0.55, 0.81)),
        ((0.55, 0.27), (0.55, 0.155)),
        ((0.345, 0.49), (0.36, 0.155)),
        ((0.255, 0.09), (0.292, 0.09)),
    )
    for start, end in arrows:
        figure.add_artist(FancyArrowPatch(start, end, mutation_scale=12, arrowstyle="-|>", color="#475569", lw=1.3))
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    given = sys.argv[1:] or [HERE / "pictures" / "concrete-defect.jpg", "concrete", HERE / "method.png"]
    draw(*given)
