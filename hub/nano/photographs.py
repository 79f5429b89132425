"""Batches of real photographs with composed defects: crop -> defect -> camera, in the shape of pictures.draw_batch.

`python -m hub.nano.photographs FOLDER SHEET.jpg` draws a contact sheet of them. FOLDER holds JPEG files and a
LICENSES.csv with the columns `file`, `what`, `kind`, `material` and `own_marks`; no photograph is part of this project.

Half of the defects are those of the drawn surfaces (cut-and-paste is among them: CutPaste, Li et al., CVPR 2021). The
others need photographs: another one's texture under a mask of Perlin noise (DRAEM, Zavrtanik et al., ICCV 2021),
pieces that are pasted without a seam (NSA, Schlueter et al., ECCV 2022), and warped, blurred or recoloured places.
"""

import argparse
import csv
import hashlib
import math
import random
import re
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .canvas import Canvas, mix
from .defects import DEFECTS, Defect
from .defects.drawing import blobs, donor, mean_in, sample, sign, strength, turn
from .defects.registry import Draw
from .pictures import Batch, compose
from .render import FIRST_SEED, contact_sheet
from .surfaces import Surface
from .surfaces.fields import TABLE, cell_key, pick

LONGEST = 768  # pixels a side of what is kept in memory
# Cut off what only says how a thing lies or was photographed, and the numbers of series.
NOT_A_NOUN = re.compile(r",.*| (on|in|from|with|laid|or|and|over|behind) .*|^inside of|\b(surface|aerial|\d+)\b|1\b")


class Photographs:
    """The photographs of a folder, decoded once, as families of surfaces.

    A tenth of the files, by a hash of their names, is kept out: it is what there is with `held_out`, and not there
    without. Photographs with marks of their own (`own_marks` in the table) are never shown as normal surfaces; their
    texture may be part of a defect.
    """

    def __init__(self, folder: str | Path, held_out: bool = False, device: str = "cpu") -> None:
        self.device = torch.device(device)
        with (Path(folder) / "LICENSES.csv").open(newline="", encoding="utf-8") as table:
            rows = [row for row in csv.DictReader(table) if is_held_out(row["file"]) == held_out]
        if not any(not row["own_marks"] for row in rows):
            raise SystemExit(f"{folder}: no unmarked photograph {'is kept out' if held_out else 'to train on'}")
        decoded = [decode(Path(folder) / row["file"]) for row in rows]
        # One tensor for all: worker processes then share it.
        self.pixels = torch.cat([image.flatten() for image in decoded]).to(self.device)
        ends = torch.tensor([image.numel() for image in decoded]).cumsum(0).tolist()
        self.places = [(end - i.numel(), *i.shape[:2]) for end, i in zip(ends, decoded, strict=True)]
        self.files = [row["file"] for row in rows if not row["own_marks"]]
        members: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            if not row["own_marks"]:
                members.setdefault(noun(row["what"]), []).append(i)
        self.families = {name: self._family(name, rows[found[0]], found) for name, found in members.items()}
        self._counts = [len(found) for found in members.values()]
        composed: dict[str, Draw] = {
            "inclusion": partial(foreign, self),
            **{"misplaced": seamless, "rough": shaken, "melted": softened, "discolouration": recoloured},
        }
        fitted = [Defect(name, (), (), "any", draw) for name, draw in composed.items()]
        self.defects = [*DEFECTS.values(), *fitted * (len(DEFECTS) // len(fitted))]

    def _family(self, name: str, row: dict[str, str], members: list[int]) -> Surface:
        scan = row["kind"] == "texture-scan"
        materials = row["material"].split("-")
        said = [word for word in materials if word in name] or materials[:1]
        nouns = (name, *said, name.split()[-1], "surface" if scan else "object")
        domain = "medical" if row["kind"] == "medical" else "industrial"
        return Surface(name, tuple(dict.fromkeys(nouns)), domain, partial(self._draw, members, 0.25 if scan else 0.5))

    def _draw(self, members: list[int], least: float, canvas: Canvas) -> tuple[Tensor, Tensor]:
        return self.crops(members, least, canvas), torch.ones_like(canvas.x)

    def crops(self, members: list[int], least: float, canvas: Canvas) -> Tensor:
        """(n, 3, size, size) square crops of random photographs among `members`, of `least` of the short side or more,
        and of at least three quarters of the wanted pixels."""
        size, out = canvas.size, []
        choices = canvas.uniform(k=4).view(canvas.n, 4).tolist()
        for which, zoom, right, down in choices:
            start, height, width = self.places[members[int(which * len(members))]]
            short = min(height, width)
            side = min(short, max(int(short * least**zoom), size * 3 // 4))
            x, y = int(right * (width - side + 1)), int(down * (height - side + 1))
            image = self.pixels[start : start + height * width * 3].view(height, width, 3)
            crop = image[y : y + side, x : x + side].permute(2, 0, 1)[None].float() / 255
            out.append(F.interpolate(crop, size=(size, size), mode="bilinear", antialias=True, align_corners=False))
        return torch.cat(out).clamp(0, 1)

    def draw_batch(self, seed: int, n: int, size: int, groups: int = 8) -> Batch:
        """`n` pictures of `groups` different families, as pictures.draw_batch gives them: half of them are the same
        crops without the defect. Families with more photographs come more often. The same seed gives the same
        pictures."""
        rng = random.Random(seed)
        generator = torch.Generator(self.device).manual_seed(rng.getrandbits(62))
        chosen: list[str] = []
        while len(chosen) < groups:
            [name] = rng.choices(list(self.families), self._counts)
            if name not in chosen or groups > len(self.families):
                chosen.append(name)
        return compose(rng, generator, [self.families[name] for name in chosen], n, size, self.defects)


def is_held_out(file: str) -> bool:
    """Whether a file belongs to the tenth that is kept out of training: by its name alone."""
    return hashlib.sha256(Path(file).name.encode()).digest()[0] < 26


def noun(what: str) -> str:
    """What a photograph shows, shorter: "asphalt 03 surface" is "asphalt", "fork on plain ground" is "fork"."""
    return " ".join(NOT_A_NOUN.sub(" ", what).lower().split())


def decode(path: Path) -> Tensor:
    """(h, w, 3) uint8, at most LONGEST pixels a side."""
    with Image.open(path) as image:
        image.draft("RGB", (LONGEST, LONGEST))
        rgb = image.convert("RGB")
    rgb.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3)


# -- defects that need photographs -----------------------------------------------------------------------------------


def perlin(canvas: Canvas) -> Tensor:
    """Perlin's gradient noise (1985, with the fade curve of 2002): 1 to 32 cells a side along each of two turned axes.
    Zero mean, unit deviation."""
    cells = 2.0 ** canvas.integers(0, 6, 2)
    u, v = canvas.coordinates(turn(canvas))
    u, v = u * cells[:, :1] + canvas.uniform(0, TABLE), v * cells[:, 1:] + canvas.uniform(0, TABLE)
    i, j = u.floor(), v.floor()
    a, b = u - i, v - j
    heading = canvas.uniform(0, 2 * math.pi, TABLE * TABLE)

    def corner(di: int, dj: int) -> Tensor:
        direction = pick(heading, cell_key(i + di, j + dj))
        return direction.cos() * (a - di) + direction.sin() * (b - dj)

    def fade(t: Tensor) -> Tensor:
        return t**3 * (t * (6 * t - 15) + 10)

    noise = mix(mix(corner(0, 0), corner(1, 0), fade(a)), mix(corner(0, 1), corner(1, 1), fade(a)), fade(b))
    return (noise - noise.mean((2, 3), keepdim=True)) / (noise.std((2, 3), keepdim=True) + 1e-6)


def patchy(canvas: Canvas, foreground: Tensor) -> Tensor:
    """Weight of a region that Perlin noise cuts out, sharp or soft at its edge, over a part of the picture."""
    region, radius = blobs(canvas, foreground, 0.1, 0.9, most=2, rough=canvas.uniform(0.1, 0.5))
    heap = perlin(canvas) - 3 * (region / radius).clamp(min=0)
    peak = heap.amax((2, 3), keepdim=True).clamp(min=0.3)
    return torch.sigmoid((heap - peak * canvas.uniform(0.15, 0.75)) * canvas.log_uniform(4, 40))


def foreign(photographs: Photographs, canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Another photograph's texture, opaque or shining through, half of the time at the surface's brightness."""
    weight = patchy(canvas, foreground)
    body = photographs.crops(list(range(len(photographs.places))), 0.15, canvas)
    matched = body + mean_in(image, weight) - mean_in(body, weight)
    body = mix(body, matched, canvas.uniform() * canvas.chance(0.5))
    return mix(image, body, weight * canvas.uniform(0.3, 1)), weight


def seamless(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """A piece of the same or another crop, turned and scaled, whose border is made to agree with what is around it: the
    difference along the border is spread smoothly over the piece, for the membrane of Poisson blending."""
    distance, radius = blobs(canvas, foreground, 0.08, 0.6, most=3, rough=canvas.uniform(0, 0.3), boxy=0.4)
    weight = canvas.smoothstep(distance, canvas.log_uniform(0.8, 4))
    body = donor(canvas, image, other=0.5)
    ring = torch.exp(-(distance * canvas.size / 1.5).square())
    sigma = 0.5 * radius * canvas.size
    spread = canvas.blur(ring, sigma).clamp(min=0) + 1e-4
    return mix(image, body + canvas.blur((image - body) * ring, sigma) / spread, weight), weight


def shaken(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """A place where the texture is bent by noise."""
    weight = patchy(canvas, foreground)
    shift = canvas.fractal(canvas.uniform(0.5, 2.2), channels=2) * canvas.log_uniform(0.01, 0.06) * weight
    moved = sample(image, canvas.x + shift[:, :1], canvas.y + shift[:, 1:])
    return mix(image, moved, weight), weight


def softened(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """A place that is blurred, or whose fine contrast is exaggerated."""
    weight = patchy(canvas, foreground)
    blurred = canvas.blur(image, canvas.log_uniform(0.01, 0.08) * canvas.size)
    fine = torch.where(canvas.chance(0.4) > 0, canvas.uniform(1.8, 3.5), canvas.uniform(0, 0.4))
    return mix(image, blurred + (image - blurred) * fine, weight), weight


def recoloured(canvas: Canvas, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """A place of another brightness, contrast and tint whose texture stays."""
    weight = patchy(canvas, foreground)
    mean = mean_in(image, weight)
    body = mean + (image - mean) * canvas.log_uniform(0.5, 1.8) + sign(canvas, 0.55) * strength(canvas)
    return mix(image, body * (1 + 0.25 * canvas.normal(3) * canvas.chance(0.6)), weight), weight


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photographs with a LICENSES.csv")
    parser.add_argument("sheet", type=Path, help="picture file to write: one row of pictures a family")
    parser.add_argument("--held-out", action="store_true", help="the photographs that training never sees")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--columns", type=int, default=8, help="an even number; the right half has defects")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    photographs = Photographs(args.folder, args.held_out)
    drawn = photographs.draw_batch(FIRST_SEED + args.seed, args.rows * args.columns, args.size, args.rows)
    contact_sheet(args.sheet, drawn)
