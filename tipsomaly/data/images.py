"""Pictures from anywhere to the pixels of the vision tower: decoding, orientation, size limits, resizing."""

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from tipsomaly.errors import ImageError, one_line, printable

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535
"""Pixels; as in JPEG. A map's resampling takes memory in proportion to the longer side."""


@dataclass(frozen=True, eq=False)
class Named:
    """A picture that is no file of its own, but in an archive, a data set or a video."""

    name: str
    """What records and errors call it."""
    content: "bytes | Image.Image | np.ndarray | ImageError"
    """An encoded file's bytes, pixels, or why there are none; the error names the picture."""
    more: Mapping[str, float] = field(default_factory=dict)
    """What its record says besides: of a frame its time."""


ImageSource = str | Path | bytes | Image.Image | np.ndarray | Tensor | Named
"""A path, an encoded file's bytes, a PIL image, or an array or dense tensor: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4),
of uint8, uint16, bool, or floats in [0, 1]; or one of these with a name."""


@dataclass(frozen=True)
class LoadedImage:
    """A decoded picture."""

    image: Image.Image
    """RGB, upright."""
    note: str | None = None
    """What was left out, if anything ("only the first frame is used")."""
    full_size: tuple[int, int] | None = None
    """(width, height) of the upright picture before it was reduced, if it was."""


def pictures_in(folder: Path) -> list[Path]:
    """Whatever has a picture's name in a folder and its subfolders, in order, and the folders that cannot be read."""
    found: list[Path] = []
    for root, _, names in os.walk(folder, onerror=lambda error: found.append(Path(error.filename))):
        for path in (Path(root, name) for name in names):
            lost = not path.suffix and path.is_symlink() and not os.path.exists(path)  # perhaps it was a folder
            if lost or path.suffix.lower() in SUFFIXES:
                found.append(path)
    return sorted(found)


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS, enough: int | None = None) -> LoadedImage:
    """Decode a picture to RGB: EXIF orientation applied, alpha over white, 16 bits scaled to 8. Of several frames
    the first is taken, or that which a PIL image is at. With `enough`, a file or bytes of more pixels are reduced, to a
    half of each side, a quarter ..., until they have no more: a JPEG while it is decoded, in as little memory.

    Raises ImageError for anything that is not a whole picture of at most `max_pixels` and MAX_SIDE; a larger file is
    refused before it is decoded.
    """
    if isinstance(source, str | Path):
        return _open_file(Path(source), max_pixels, enough)
    name, content = (printable(source.name), source.content) if isinstance(source, Named) else ("", source)
    if isinstance(content, ImageError):
        raise content
    if isinstance(content, bytes | bytearray | memoryview):
        if not len(content):
            raise ImageError(f"{name or 'image'}: no bytes at all")
        return _decode(io.BytesIO(content), name or "image", max_pixels, enough)
    if isinstance(content, Image.Image):
        with _explained(name or "image", max_pixels):
            loaded = _to_rgb(content, name or "image", max_pixels, content.tell())
            return replace(loaded, image=content.copy()) if loaded.image is content else loaded
    if isinstance(content, Tensor):
        return LoadedImage(_from_array(_from_tensor(content), "tensor", max_pixels))
    if isinstance(content, np.ndarray):
        return LoadedImage(_from_array(np.asarray(content), name or "array", max_pixels))
    raise ImageError(f"image: expected a path, bytes, a PIL image or an array, not {type(source).__name__}")


def source_name(source: object) -> str | None:
    """What a picture is called that is a file or has a name; None for mere pixels or bytes."""
    if isinstance(source, Named):
        return source.name
    return str(source) if isinstance(source, str | Path) else None


def to_pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """(3, height, width) uint8, squashed to `size` = (height, width) with PIL's bilinear filter, as the paper does.
    Divide by 255 for the tower: TIPS takes [0, 1] with mean 0 and deviation 1."""
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def fitted_size(width: int, height: int, size: tuple[int, int], patch: int) -> tuple[int, int]:
    """(height, width) in whole patches with the aspect ratio of a picture, to half a patch, and about as many patches
    as `size` = (height, width) has: never more than half as many again, however long the picture is."""
    patches = (size[0] // patch) * (size[1] // patch)
    rows, columns = (round((patches * ratio) ** 0.5) for ratio in (height / width, width / height))
    return min(max(rows, 1), patches) * patch, min(max(columns, 1), patches) * patch


def _open_file(path: Path, max_pixels: int, enough: int | None) -> LoadedImage:
    name = printable(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            os.scandir(path).close()  # one that cannot be read says so
            raise ImageError(f"{name}: a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device could block for ever
            raise ImageError(f"{name}: not a file")
        if status.st_size == 0:
            raise ImageError(f"{name}: the file is empty")
        with path.open("rb") as file:
            return _decode(file, name, max_pixels, enough)
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        link = "a link to nothing" if os.path.islink(path) else "no such file"
        raise ImageError(f"{name}: {link}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ImageError(f"{name}: cannot be read ({reason})") from None


def _decode(file: Any, name: str, max_pixels: int, enough: int | None) -> LoadedImage:
    with _explained(name, max_pixels):
        image = Image.open(file, formats=FORMATS)
        width, height = image.size
        _check_size(width, height, name, max_pixels)
        factor = 1
        while enough and (width // factor) * (height // factor) > enough:
            factor *= 2
        if factor == 1:
            return _to_rgb(image, name, max_pixels)
        image.draft(None, (width // factor, height // factor))  # of a JPEG fewer pixels are decoded
        loaded = _to_rgb(image, name, max_pixels, factor=factor * image.size[0] // width)
        full = width, height
        with suppress(Exception):  # as in _to_rgb
            if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
                full = height, width
        size = f"reduced from {full[0]} x {full[1]} to {loaded.image.width} x {loaded.image.height} pixels"
        return LoadedImage(loaded.image, f"{loaded.note}; {size}" if loaded.note else size, full)


@contextmanager
def _explained(name: str, max_pixels: int) -> Iterator[None]:
    """Whatever a decoder raises on a hostile file becomes one line: they raise nearly every kind of exception."""
    try:
        yield
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise ImageError(f"{name}: not a picture in a known format ({known})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {max_pixels // 10**6} megapixels") from None
    except Exception as error:
        raise ImageError(f"{name}: damaged or truncated ({one_line(error)})") from None


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if not width or not height:
        raise ImageError(f"{name}: has no pixels ({width} x {height})")
    if width * height > max_pixels:
        megapixels = f"{width * height / 1e6:.0f} megapixels, at most {max_pixels // 10**6} are taken"
        raise ImageError(f"{name}: {width} x {height} is {megapixels}")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{name}: {width} x {height} has a side of more than {MAX_SIDE} pixels")


def _to_rgb(image: Image.Image, name: str, max_pixels: int, frame: int = 0, factor: int = 1) -> LoadedImage:
    _check_size(*image.size, name, max_pixels)
    note = None
    if getattr(image, "is_animated", False):
        note = f"only frame {frame + 1} is used" if frame else "only the first frame is used"
        image.seek(frame)
    image.load()
    with suppress(Exception):  # a damaged EXIF block says nothing about the pixels
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if factor > 1:
        image = _reduced(image, factor)
    if image.mode.startswith("I") or image.mode == "F":
        return LoadedImage(_from_array(_wide_pixels(image), name, max_pixels), note)
    if image.mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return LoadedImage(image if image.mode == "RGB" else image.convert("RGB"), note)  # a copy could be 200 MB


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """The mean of each `factor` x `factor` pixels, whatever the mode."""
    if image.mode in ("1", "P", "PA"):
        image = image.convert("RGBA")
    elif image.mode.startswith("I;16"):
        image = image.convert("I")
    small = image.reduce(factor)
    small.info = image.info
    return small


def _wide_pixels(image: Image.Image) -> np.ndarray:
    """Pixels of more than 8 bits as uint16, or as floats in [0, 1]."""
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f":
        return pixels / 255 if np.nanmax(pixels) > 1 else pixels
    return np.clip(pixels, 0, 65535).astype(np.uint16)


def _from_tensor(tensor: Tensor) -> np.ndarray:
    if tensor.layout is not torch.strided:
        raise ImageError("tensor: expected a dense one, as its to_dense() gives it")
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # meta, quantized ...
        raise ImageError(f"tensor: holds no pixels that can be read ({one_line(error)})") from None


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name}: expected shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}")
    _check_size(array.shape[1], array.shape[0], name, max_pixels)
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # array / 257, rounded
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ImageError(f"{name}: holds NaN or infinity")
        if array.min() < 0 or array.max() > 1:
            raise ImageError(f"{name}: floats must be in [0, 1], these are in [{array.min():g}, {array.max():g}]")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"{name}: expected uint8, uint16, bool or float pixels, got {array.dtype}")
    image = Image.fromarray(array.squeeze(2) if array.shape[2:] == (1,) else np.ascontiguousarray(array))
    return _to_rgb(image, name, max_pixels).image
