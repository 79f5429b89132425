"""A small data set in MVTec AD's layout, drawn here, for the examples that are run without one."""

from pathlib import Path

import numpy as np
from PIL import Image


def draw_dataset(root: Path, classes: tuple[str, ...], size: int = 256, count: int = 8, seed: int = 0) -> Path:
    """Per class `count` normal pictures, and as many with one scratch and a mask of it; returns `root`."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    for class_name in classes:
        colour, period = random.integers(90, 170, 3), random.uniform(8, 24)
        for i in range(2 * count):
            defect = "good" if i < count else "scratch"
            pattern = 12 * np.sin(2 * np.pi * (rows + columns) / period) + random.normal(0, 6, (size, size))
            pixels = colour + pattern[..., None]
            (y, x), angle, length = random.uniform(0.3, 0.7, 2) * size, random.uniform(0, np.pi), random.uniform(20, 60)
            along = (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle)
            across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
            mask = (np.abs(along) < length) & (np.abs(across) < 4) & (defect != "good")
            pixels[mask] += 25
            _save(root / class_name / "test" / defect / f"{i:03}.png", pixels.clip(0, 255).astype(np.uint8))
            if mask.any():
                _save(root / class_name / "ground_truth" / defect / f"{i:03}_mask.png", mask)
    return root


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
