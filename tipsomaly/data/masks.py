"""Mask pictures -> bool arrays: where a picture of a data set is defective."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from tipsomaly.data.images import FORMATS, MAX_PIXELS
from tipsomaly.data.samples import Sample
from tipsomaly.errors import DatasetError, one_line, printable

LARGEST_NUMBER = 31
"""A mask with no value above this numbers its defects (VisA: 1 to 9); it is no picture in black and white."""


def load_mask(sample: Sample, size: tuple[int, int] | None = None) -> np.ndarray:
    """bool (height, width): where a picture is defective, at its own size or at `size`.

    Resized as by the paper's authors: bilinearly with antialiasing, then above one half. A scratch that is much thinner
    than a pixel of `size` vanishes, where nearest neighbour would leave dots, each a region of its own to AUPRO.

    False everywhere for a normal picture. DatasetError for a mask that is missing, damaged or of another size than its
    picture.
    """
    if not sample.label:
        return np.zeros(size or _size(sample.image), dtype=bool)
    if sample.mask is None:
        raise DatasetError(f"{printable(sample.image)}: defective, but without a mask")
    check_sizes(sample.image, sample.mask)
    mask = mask_pixels(sample.mask, MAX_PIXELS)
    if size is None or mask.shape == tuple(size):
        return mask
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize((size[1], size[0]), Image.Resampling.BILINEAR)) > 127


def check_sizes(image: Path, mask: Path) -> None:
    ours, theirs = _size(mask), _size(image)
    if ours != theirs:
        sizes = f"is {ours[1]} x {ours[0]} pixels, its picture {printable(image)} is {theirs[1]} x {theirs[0]}"
        raise DatasetError(f"the mask {printable(mask)} {sizes}")


def _size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright picture, from the header alone."""
    with _opened(path, MAX_PIXELS) as image:
        width, height = image.size
        with suppress(Exception):  # a damaged EXIF block says nothing about the pixels
            if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
                width, height = height, width
    return height, width


def mask_pixels(path: Path, max_pixels: int) -> np.ndarray:
    """bool (height, width): above half of the largest value or, in a mask that numbers its defects, not 0.

    DatasetError for a file that is not a whole picture of at most `max_pixels`.
    """
    with _opened(path, max_pixels) as image:
        upright = ImageOps.exif_transpose(image)
        numbers = upright.mode == "P"  # the colours of a palette have no order
        if numbers or len(upright.getbands()) > 1:
            upright = upright.convert("RGB")  # as it is: load_image would lay what is transparent over white
        values = np.asarray(upright)
    values = values.max(axis=2) if values.ndim == 3 else values
    largest = values.max()
    return values > (0 if numbers or largest <= LARGEST_NUMBER else largest / 2)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """A picture of which only the header is read yet. Whatever goes wrong with it becomes one line."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise DatasetError(f"{printable(path)}: more than {max_pixels // 10**6} megapixels")
            yield image
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"{printable(path)}: cannot be read as a picture ({one_line(error)})") from None
