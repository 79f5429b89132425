"""Measure nano on pictures it has never seen: `python -m hub.nano.measure --photographs DIR --tiles DIR --solar-cells`.

Prints Markdown tables: the drawn families kept out of training; if they are there, the photographs kept out of training
with composed defects, magnetic tiles (photographs in MVTec AD's layout) and the solar cells of
`pip install elpv-dataset`. Beside nano's three kinds of prompts stand the other methods that it has sets of and two
classical baselines, on the same pictures.
Tiles and solar cells are for measuring only: nothing is chosen on them.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter
from tqdm import tqdm

from tipsomaly import Pipeline
from tipsomaly.data.images import ImageSource, load_image
from tipsomaly.data.layouts import read_dataset
from tipsomaly.data.masks import load_mask
from tipsomaly.detection import visualization
from tipsomaly.studies.metrics import PixelMetrics, image_metrics

from .photographs import Photographs
from .render import FIRST_SEED, HELD_OUT, render

BASELINES = ("blur difference", "Mahalanobis")
SIDE = 224  # of the baselines' pictures


class Picture(NamedTuple):
    """`mask` (H, W) is None in a good picture, and where there are no masks."""

    image: ImageSource
    class_name: str
    defect: str
    mask: np.ndarray | None


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


class Scored(NamedTuple):
    """For each method the image score and, if wanted, the anomaly map of one picture; and each part of the scores."""

    picture: Picture
    scores: dict[str, float]
    maps: dict[str, np.ndarray]
    parts: dict[str, float]


def score(pipe: Pipeline, pictures: Sequence[Picture], maps: bool = True) -> list[Scored]:
    scored = []
    for picture in tqdm(pictures, unit="picture", disable=None):
        compared = pipe.compare(picture.image, picture.class_name)
        outcomes = {mode: (r.score, r.anomaly_map) for mode, r in compared.items()}
        fixed, learned = compared["fixed"], compared["learned"]
        parts = {
            "spatial token, fixed": fixed.global_score,
            "spatial token, learned": learned.global_score,
            "largest patch, fixed": fixed.local_score,
            "largest patch, learned": learned.local_score,
        }
        outcomes |= baseline_maps(load_image(picture.image).image)
        kept = {method: m.astype(np.float32) for method, (_, m) in outcomes.items()} if maps else {}
        scored.append(Scored(picture, {method: value for method, (value, _) in outcomes.items()}, kept, parts))
    return scored


def metrics(scored: Sequence[Scored], method: str) -> list[float]:
    """Image AUROC; with maps also pixel AUROC and AUPRO."""
    labels = np.array([one.picture.defect != "good" for one in scored])
    found = dict(image_metrics(np.array([one.scores[method] for one in scored]), labels))
    wanted = ["image_auroc"]
    if scored[0].maps:
        pixels = PixelMetrics()
        for one in scored:
            pixels.update(one.maps[method], one.picture.mask)
        found |= pixels.compute()
        wanted += ["pixel_auroc", "aupro"]
    return [value for name in wanted if (value := found[name]) is not None]


def table(title: str, groups: dict[str, list[Scored]], mean: bool = False) -> str:
    """A Markdown table: one row a group of pictures, image AUROC / pixel AUROC / AUPRO for each method."""
    methods = list(next(iter(groups.values()))[0].scores)
    lines = [f"### {title}", "", "| | pictures | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    rows = [[metrics(members, method) for method in methods] for members in groups.values()]
    counts = [len(members) for members in groups.values()]
    names = list(groups)
    if mean:
        names, counts = [*names, "**mean**"], [*counts, sum(counts)]
        rows.append(np.mean(rows, axis=0).tolist())
    for name, count, values in zip(names, counts, rows, strict=True):
        cells = [" / ".join(f"{value:.3f}" for value in method) for method in values]
        lines.append(f"| {name} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def scores_table(sets: dict[str, list[Scored]]) -> str:
    """What a single score says: decoupled scores of good and of defective pictures, of 2."""
    columns = [
        f"{kind}: {what}" for kind in ("good", "defective") for what in ("median", "95th percentile", "above 1.0")
    ]
    lines = ["### Scores (decoupled)", "", "| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, scored in sets.items():
        cells = []
        for good in (True, False):
            values = np.array([o.scores["decoupled"] for o in scored if (o.picture.defect == "good") == good])
            cells += [f"{np.median(values):.2f}", f"{np.quantile(values, 0.95):.2f}", f"{(values > 1).mean():.0%}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parts_table(sets: dict[str, dict[str, list[Scored]]]) -> str:
    """What each part of an image score tells by itself: image AUROC / standard deviation over the pictures, means over
    the groups of a set."""
    columns = list(next(iter(next(iter(sets.values())).values()))[0].parts)
    lines = ["### Parts of the image score", "", "| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, groups in sets.items():
        cells = []
        for part in columns:
            told = []
            for members in groups.values():
                values = np.array([one.parts[part] for one in members])
                labels = np.array([one.picture.defect != "good" for one in members])
                told.append((image_metrics(values, labels)["image_auroc"] or np.nan, values.std()))
            cells.append("{:.3f} / {:.2f}".format(*np.mean(told, axis=0)))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by(scored: Sequence[Scored], key: str) -> dict[str, list[Scored]]:
    names = sorted({getattr(one.picture, key) for one in scored})
    return {name: [one for one in scored if getattr(one.picture, key) == name] for name in names}


def read(folder: Path, class_name: str | None = None) -> list[Picture]:
    """The pictures of a data set in MVTec AD's layout."""
    return [
        Picture(s.image, class_name or s.class_name, s.defect or "good", load_mask(s) if s.label else None)
        for s in read_dataset(folder, "mvtec")
    ]


def photographs(folder: Path, count: int, size: int, seed: int) -> list[Picture]:
    """Photographs kept out of training: crops with a composed defect, and the same crops without it."""
    source = Photographs(folder, held_out=True)
    found = []
    for number in range(-(-count // 32)):
        batch = source.draw_batch(FIRST_SEED + 1_000_000 * seed + number, 32, size, groups=8)
        names = np.repeat(batch.family, 4)
        for name, image, mask, kind in zip(names, batch.images, batch.masks, batch.kind, strict=True):
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            bad = bool(kind >= 0)
            found.append(Picture(pixels, name, "composed" if bad else "good", mask[0].numpy() > 0.5 if bad else None))
    return found


def solar_cells(kind: str) -> list[Picture]:
    """The certainly defective and the certainly functional cells of mono- or polycrystalline silicon."""
    from elpv_dataset.utils import load_dataset

    images, probabilities, kinds = load_dataset()
    chosen = [i for i, p in enumerate(probabilities) if p in (0.0, 1.0) and kinds[i] == kind]
    return [Picture(images[i], "solar cell", "defective" if probabilities[i] else "good", None) for i in chosen]


def figure(pipe: Pipeline, pictures: Sequence[Picture], out: Path, columns: int = 7) -> None:
    """The best and the worst localized defects: pictures outlined in red and their anomaly maps, in four rows."""
    ranked = []
    for picture in pictures:
        if picture.mask is not None:
            result, mask = pipe(picture.image, picture.class_name), picture.mask
            pixels = PixelMetrics()
            pixels.update(result.anomaly_map, mask)
            ranked.append((pixels.compute()["pixel_auroc"] or 0.0, result, mask))
    ranked.sort(key=lambda item: -item[0])
    rows = []
    for chosen in (ranked[:: max(1, len(ranked) // (4 * columns))][:columns], ranked[-columns:]):
        rows.append([visualization.contours(r.image, mask, (255, 30, 30)) for _, r, mask in chosen])
        rows.append([visualization.heatmap(r.anomaly_map) for _, r, _ in chosen])
    side = 120
    sheet = Image.new("RGB", (columns * side, 4 * side))
    for y, row_of_pictures in enumerate(rows):
        for x, shown in enumerate(row_of_pictures):
            sheet.paste(shown.resize((side, side)), (x * side, y * side))
    sheet.save(out, quality=85)


def milliseconds(pipe: Pipeline) -> float:
    """Time of one picture on one thread."""
    picture, threads = np.zeros((300, 300, 3), np.uint8), torch.get_num_threads()
    torch.set_num_threads(1)
    pipe(picture)
    started = time.perf_counter()
    for _ in range(20):
        pipe(picture)
    torch.set_num_threads(threads)
    return (time.perf_counter() - started) / 20 * 1000


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--image-size", type=int, help="input side in pixels; default: the model's")
    parser.add_argument("--pictures", type=int, default=64, help="drawn pictures of each family, a multiple of 16")
    parser.add_argument("--size", type=int, default=448, help="side in pixels of drawn pictures and photographs")
    parser.add_argument("--seed", type=int, default=2, help="another seed than the one that sizes are chosen on")
    parser.add_argument("--figure", type=Path, help="draw the best and the worst localized defects to this file")
    parser.add_argument("--photographs", type=Path, help="folder of photographs; those kept out of training are used")
    parser.add_argument("--tiles", type=Path, help="magnetic tiles in MVTec AD's layout")
    parser.add_argument("--solar-cells", action="store_true", help="needs `pip install elpv-dataset`")
    args = parser.parse_args()
    pipe = Pipeline.from_pretrained(args.model, image_size=args.image_size)
    sets: dict[str, list[Scored]] = {}
    with tempfile.TemporaryDirectory() as folder:
        render(Path(folder), list(HELD_OUT), args.pictures, args.size, args.seed)
        pictures = read(Path(folder))
        sets["drawn families"] = score(pipe, pictures)
    print(table("Drawn families kept out of training", by(sets["drawn families"], "class_name"), mean=True), flush=True)
    if args.photographs:
        pictures = photographs(args.photographs, 4 * args.pictures, args.size, args.seed)
        sets["photographs"] = score(pipe, pictures)
        print(table("Photographs kept out of training, composed defects", {"all": sets["photographs"]}), flush=True)
    if args.figure:
        figure(pipe, pictures, args.figure)
    if args.tiles:
        sets["magnetic tiles"] = scored = score(pipe, read(args.tiles, "tile"))
        kinds = by(scored, "defect")
        good = kinds.pop("good")
        groups = {kind: [*good, *members] for kind, members in kinds.items()}
        print(table("Magnetic tiles, photographs", {**groups, "**all**": scored}), flush=True)
    if args.solar_cells:
        cells = {f"{kind} cells": score(pipe, solar_cells(kind), maps=False) for kind in ("mono", "poly")}
        print(table("Solar cells, photographs by electroluminescence (image AUROC)", cells), flush=True)
        sets |= cells
    print(scores_table(sets))
    drawn = by(sets.pop("drawn families"), "class_name")
    print(parts_table({"drawn families": drawn, **{name: {"all": scored} for name, scored in sets.items()}}))
    print(f"{milliseconds(pipe):.0f} ms a picture at {pipe.image_size[0]} px, one at a time, one thread")
