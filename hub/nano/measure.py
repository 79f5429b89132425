"""Measure nano on pictures it has never seen: `python -m hub.nano.measure --tiles DATA/magnetic_tile`.

Prints Markdown tables: the drawn families kept out of training, and if they are there magnetic tiles (photographs, a
folder in MVTec AD's layout) and the solar cells of `pip install elpv-dataset`. Beside nano's three kinds of prompts
stand two classical baselines on the same pictures. The photographs are for measuring only: nothing is chosen on them.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter
from tqdm import tqdm

from tipsomaly import Pipeline
from tipsomaly.data.images import ImageSource, load_image
from tipsomaly.data.layouts import read_dataset
from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import Sample
from tipsomaly.detection import visualization
from tipsomaly.studies.metrics import PixelMetrics, image_metrics

BASELINES = ("blur difference", "Mahalanobis")
SIDE = 224  # of the baselines' pictures


def blur_difference(grey: np.ndarray) -> np.ndarray:
    """|image - Gaussian blur|, smoothed a little."""
    return gaussian_filter(np.abs(grey - gaussian_filter(grey, 8)), 4)


def mahalanobis(grey: np.ndarray) -> np.ndarray:
    """How far the local statistics of a place are from those of the whole picture: mean, deviation and two gradients
    in windows of 14 pixels."""
    dy, dx = np.gradient(grey)
    mean = uniform_filter(grey, 14)
    deviation = np.sqrt(np.maximum(uniform_filter(grey**2, 14) - mean**2, 0))
    features = np.stack([mean, deviation, uniform_filter(np.abs(dx), 14), uniform_filter(np.abs(dy), 14)], -1)
    flat = features.reshape(-1, 4)
    centred = flat - flat.mean(0)
    inverse = np.linalg.inv(np.cov(centred.T) + 1e-8 * np.eye(4))
    distance = np.sqrt(np.einsum("ij,jk,ik->i", centred, inverse, centred)).reshape(grey.shape)
    return gaussian_filter(distance, 4)


def baseline_maps(image: Image.Image) -> dict[str, tuple[float, np.ndarray]]:
    """The largest value and the map of each baseline, scaled by a constant into [0, 1]."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64) / 255
    maps = {"blur difference": blur_difference(grey), "Mahalanobis": mahalanobis(grey) / 50}
    resized = {
        name: np.clip(
            np.asarray(Image.fromarray(m.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)), 0, 1
        )
        for name, m in maps.items()
    }
    return {name: (float(maps[name].max()), resized[name]) for name in maps}


def score(pipe: Pipeline, images: Iterable[ImageSource], class_names: Iterable[str], maps: bool = True) -> list[dict]:
    """For each picture and method the image score and, if wanted, the anomaly map."""
    scored = []
    for image, class_name in tqdm(list(zip(images, class_names, strict=True)), unit="picture", disable=None):
        outcomes = {mode: (r.score, r.anomaly_map) for mode, r in pipe.compare(image, class_name).items()}
        outcomes |= baseline_maps(load_image(image).image)
        scored.append(
            {method: (value, m.astype(np.float32) if maps else None) for method, (value, m) in outcomes.items()}
        )
    return scored


def aurocs(samples: list[Sample], scored: list[dict], method: str) -> tuple[float, float]:
    """Pixel and image AUROC; NaN for pixels without maps."""
    labels = np.array([sample.label for sample in samples])
    image = image_metrics(np.array([outcome[method][0] for outcome in scored]), labels)["image_auroc"]
    if scored[0][method][1] is None:
        return float("nan"), image
    pixels = PixelMetrics()
    for sample, outcome in zip(samples, scored, strict=True):
        pixels.update(outcome[method][1], load_mask(sample) if sample.label else None)
    return pixels.compute()["pixel_auroc"], image


def table(
    title: str, groups: dict[str, list[int]], samples: list[Sample], scored: list[dict], mean: bool = False
) -> str:
    """A Markdown table: one row a group of pictures, pixel / image AUROC for each method."""
    methods = list(scored[0])
    lines = [f"### {title}", "", "| | pictures | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    rows = []
    for name, members in groups.items():
        chosen = [samples[i] for i in members], [scored[i] for i in members]
        rows.append([aurocs(*chosen, method) for method in methods])
        lines.append(row(name, len(members), rows[-1]))
    if mean:
        lines.append(row("**mean**", len(samples), np.mean(rows, axis=0)))
    return "\n".join(lines) + "\n"


def row(name: str, count: int, values: Iterable[tuple[float, float]]) -> str:
    cells = [f"{image:.3f}" if np.isnan(pixel) else f"{pixel:.3f} / {image:.3f}" for pixel, image in values]
    return f"| {name} | {count} | " + " | ".join(cells) + " |"


def drawn(pipe: Pipeline, folder: Path) -> str:
    samples = read_dataset(folder, "mvtec")
    scored = score(pipe, [s.image for s in samples], [s.class_name for s in samples])
    names = sorted({s.class_name for s in samples})
    groups = {name: [i for i, s in enumerate(samples) if s.class_name == name] for name in names}
    return table("Drawn families kept out of training (pixel / image AUROC)", groups, samples, scored, mean=True)


def figure(pipe: Pipeline, folder: Path, out: Path, columns: int = 7) -> None:
    """The best and the worst localized defects: pictures outlined in red and their anomaly maps, in four rows."""
    ranked = []
    for sample in read_dataset(folder, "mvtec"):
        if sample.label:
            result, mask = pipe(sample.image, sample.class_name), load_mask(sample)
            pixels = PixelMetrics()
            pixels.update(result.anomaly_map, mask)
            ranked.append((pixels.compute()["pixel_auroc"], result, mask))
    ranked.sort(key=lambda item: -item[0])
    rows = []
    for chosen in (ranked[:: max(1, len(ranked) // (4 * columns))][:columns], ranked[-columns:]):
        rows.append([visualization.contours(r.image, mask, (255, 30, 30)) for _, r, mask in chosen])
        rows.append([visualization.heatmap(r.anomaly_map) for _, r, _ in chosen])
    side = 120
    sheet = Image.new("RGB", (columns * side, 4 * side))
    for y, row_of_pictures in enumerate(rows):
        for x, picture in enumerate(row_of_pictures):
            sheet.paste(picture.resize((side, side)), (x * side, y * side))
    sheet.save(out, quality=85)


def tiles(pipe: Pipeline, folder: Path) -> str:
    samples = read_dataset(folder, "mvtec")
    scored = score(pipe, [s.image for s in samples], ["tile"] * len(samples))
    kinds = sorted({s.defect for s in samples} - {"good"})

    def members(wanted: set[str]) -> list[int]:
        return [i for i, s in enumerate(samples) if s.defect in wanted | {"good"}]

    groups = {kind: members({kind}) for kind in kinds}
    groups |= {"all but uneven": members(set(kinds) - {"uneven"}), "**all**": members(set(kinds))}
    return table("Magnetic tiles, photographs (pixel / image AUROC)", groups, samples, scored)


def solar_cells(pipe: Pipeline) -> str:
    from elpv_dataset.utils import load_dataset

    images, probabilities, kinds = load_dataset()
    clear = [i for i, p in enumerate(probabilities) if p in (0.0, 1.0)]
    samples = [Sample(Path(), None, "solar cell", "", int(probabilities[i])) for i in clear]
    scored = score(pipe, [images[i] for i in clear], ["solar cell"] * len(clear), maps=False)
    groups = {kind: [j for j, i in enumerate(clear) if kinds[i] == kind] for kind in sorted(set(kinds))}
    groups["**all**"] = list(range(len(clear)))
    return table("Solar cells, photographs (image AUROC)", groups, samples, scored)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--image-size", type=int, help="input side in pixels; default: the model's")
    parser.add_argument("--pictures", type=int, default=64, help="drawn pictures of each family, a multiple of 16")
    parser.add_argument("--drawn-seed", type=int, default=2, help="another seed than the one that sizes are chosen on")
    parser.add_argument("--figure", type=Path, help="draw the best and the worst localized defects to this file")
    parser.add_argument("--tiles", type=Path, help="magnetic tiles in MVTec AD's layout")
    parser.add_argument("--solar-cells", action="store_true", help="needs `pip install elpv-dataset`")
    args = parser.parse_args()
    pipe = Pipeline.from_pretrained(args.model, image_size=args.image_size)
    from .render import HELD_OUT, render

    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder), list(HELD_OUT), args.pictures, 224, args.drawn_seed)
        print(drawn(pipe, Path(folder)))
        if args.figure:
            figure(pipe, Path(folder), args.figure)
    if args.tiles:
        print(tiles(pipe, args.tiles))
    if args.solar_cells:
        print(solar_cells(pipe))
    picture = np.zeros((300, 300, 3), np.uint8)
    pipe(picture)
    started = time.perf_counter()
    for _ in range(20):
        pipe(picture)
    milliseconds = (time.perf_counter() - started) / 20 * 1000
    print(
        f"{milliseconds:.0f} ms a picture at {pipe.image_size[0]} px, one at a time, {torch.get_num_threads()} threads"
    )
