"""Random pictures with masks, on disk, for the benchmarks."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from tipsomaly.data.samples import Sample


def write_pictures(folder: Path, count: int, size: int = 512) -> list[Sample]:
    """`count` JPEG pictures of one class, every second with a rectangular defect and its mask."""
    samples = []
    for i in range(count):
        random = np.random.default_rng(i)
        mask = np.zeros((size, size), bool)
        if i % 2:
            y, x, height, width = random.integers(size // 8, size // 3, 4)
            mask[y : y + height, x : x + width] = True
        noise = Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8))
        pixels = np.where(mask[..., None], 255 - 16 * (i % 5), np.asarray(noise.filter(ImageFilter.GaussianBlur(3))))
        image, mask_path = folder / f"{i:04}.jpg", folder / f"{i:04}_mask.png"
        Image.fromarray(pixels.astype(np.uint8)).save(image, quality=92)
        Image.fromarray(mask).save(mask_path)
        samples.append(Sample(image, mask_path if i % 2 else None, "plate", "hole" if i % 2 else "good", i % 2))
    return samples
