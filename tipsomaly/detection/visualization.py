"""Stateless drawing: a map over a picture, the contours of a mask, maps side by side."""

import base64
import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = "inferno"
"""A perceptually uniform matplotlib colour map; 0 is its dark end and 1 its bright end, for every picture alike."""

CONTOUR = (0, 229, 255)
"""RGB, bright cyan: neither among the colours of the map nor common on products."""


SMALL = 320
"""The longer side in pixels of a picture in a report or a notebook."""

MAX_LABELS = 20
"""Regions whose kinds are written over a picture at most, those with the highest peaks."""


def heatmap(anomaly_map: np.ndarray) -> Image.Image:
    """(H, W) values in [0, 1] -> RGB picture on the fixed scale 0..1."""
    return Image.fromarray(_table()[np.round(np.clip(anomaly_map, 0, 1) * 255).astype(np.uint8)])


def overlay(image: Image.Image, anomaly_map: np.ndarray, opacity: float = 0.75) -> Image.Image:
    """The heatmap over a greyish picture; the picture stays visible where the map is low."""
    pixels = np.array(image.convert("RGB"))
    for top in range(0, len(pixels), 256):  # in bands: floats of a whole large picture would be gigabytes
        base, values = pixels[top : top + 256].astype(np.float32), anomaly_map[top : top + 256]
        weight = opacity * (0.25 + 0.75 * np.clip(values, 0, 1)[..., None])
        blended = base + (np.asarray(heatmap(values), np.float32) - base) * weight
        pixels[top : top + 256] = blended.round().astype(np.uint8)
    return Image.fromarray(pixels)


def contours(image: Image.Image, mask: np.ndarray, colour: tuple[int, int, int] = CONTOUR) -> Image.Image:
    """The outline of a boolean (H, W) mask drawn on the picture, about 1/200 of its side wide."""
    from scipy.ndimage import binary_erosion

    width = max(1, round(max(mask.shape) / 200))
    pixels = np.array(image.convert("RGB"))
    pixels[mask & ~binary_erosion(mask, iterations=width, border_value=1)] = colour
    return Image.fromarray(pixels)


def labelled(image: Image.Image, labels: list[tuple[tuple[int, int, int, int], str]]) -> Image.Image:
    """The picture with a text at each box (left, top, right, bottom): above it or, at the upper border, inside; about
    1/40 of the picture's side high, and wholly in the picture where it fits."""
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, round(max(picture.size) / 40)))
    for (left, top, _, _), text in labels:
        _, _, width, lower = draw.textbbox((0, 0), text, font=font)
        x = max(0, min(left, picture.width - round(width) - 4))
        y = max(0, top - round(lower) - 4)
        draw.rectangle((x, y, x + width + 3, y + lower + 3), fill="black")
        draw.text((x + 2, y + 2), text, fill=CONTOUR, font=font)
    return picture


def black_and_white(mask: np.ndarray) -> Image.Image:
    """A boolean (H, W) mask as a picture, white where it is true."""
    return Image.fromarray(mask.astype(np.uint8) * 255)


def colours(count: int) -> list[tuple[int, int, int]]:
    """RGB of the map's colours at `count` even steps from 0 to 1, for a legend."""
    steps = np.linspace(0, 255, count).round().astype(int)
    return [(int(red), int(green), int(blue)) for red, green, blue in _table()[steps]]


def jpeg(picture: Image.Image, side: int, quality: int = 80) -> bytes:
    """As a file of at most this side in pixels; the picture stays as it is."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=quality)
    return content.getvalue()


def data_uri(picture: Image.Image, side: int, quality: int = 80) -> str:
    """The same as an address that holds all of it, for HTML."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(picture, side, quality)).decode()}"


def side_by_side(pictures: list[Image.Image], height: int | None = None, gap: int = 8) -> Image.Image:
    """Pictures in a row on white, scaled to one height."""
    height = height or pictures[0].height
    scaled = [p.convert("RGB").resize((max(1, round(p.width * height / p.height)), height)) for p in pictures]
    row = Image.new("RGB", (sum(p.width for p in scaled) + gap * (len(scaled) - 1), height), "white")
    x = 0
    for picture in scaled:
        row.paste(picture, (x, 0))
        x += picture.width + gap
    return row


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps[COLOURS](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
