"""Make the bundled examples: `python -m hub.nano.examples PHOTOGRAPHS`.

Writes examples/examples.json and into examples/pictures and examples/masks: pairs of a photograph and the same one
with a defect composed on it, of strokes and blots that were placed by hand, and three drawn pairs. Seven of the eight
photographs and the drawn families are never seen by nano's training. The pairs are ones that nano tells apart: they
show how the method is used, not how often nano is right, which the measurements in its card say. Seeded: the same
photographs give the same files.
"""

import argparse
import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .canvas import Canvas, mix
from .defects import DEFECTS, apply
from .defects.drawing import about, jittered, sample
from .photo import photograph
from .photographs import is_held_out
from .render import save
from .surfaces import HELD_OUT, SURFACES

EXAMPLES = Path(__file__).parents[2] / "examples"
SIDE = 640
Points = tuple[tuple[float, float], ...]
Draw = Callable[[Canvas, Tensor], tuple[Tensor, Tensor]]  # picture -> picture with the defect, mask


def lines(*paths: Points, width: float, dark: float = 0.0, tone: tuple[float, float, float] = (0, 0, 0),
          rim: float = 0.06, bend: float = 0.006) -> Draw:  # fmt: skip
    """Jagged lines of `width` pixels that thin out: darker by the share `dark`, brighter by `tone`, with one edge lit
    by `rim` or in shadow."""

    def draw(c: Canvas, image: Tensor) -> tuple[Tensor, Tensor]:
        bent = jittered(c, bend, 1.5)
        best = torch.full_like(c.x, 9.0)
        for path in paths:
            distance, along = bent.polyline(torch.tensor([path]))
            wide = (width / c.size) * (1.1 - 0.8 * along) * (1 + 0.35 * c.fractal(1.3)).clamp(0.3)
            best = torch.minimum(best, distance - wide / 2)
        core = c.smoothstep(best, 1.5) * (0.8 + 0.3 * c.fractal(1.2)).clamp(0.3, 1)
        edge = (sample(core, c.x - 1.5 / c.size, c.y - 1.5 / c.size) - core).clamp(min=0)
        bright = core * torch.tensor(tone).view(1, 3, 1, 1)
        return image * (1 - dark * core) + bright + rim * edge, (best < 0.7 / c.size).float()

    return draw


def blot(
    *spots: tuple[float, float, float],
    colour: tuple[float, float, float],
    ring: float,
    rough: float = 0.12,
    soft: float = 6.0,
) -> Draw:
    """Something dried: spots (x, y, radius) that take light away in proportion to `colour`, darker along their rim."""

    def draw(c: Canvas, image: Tensor) -> tuple[Tensor, Tensor]:
        bumps = c.fractal(2.2, low_cut=4)
        fine = c.fractal(1.4)
        best = torch.full_like(c.x, 9.0)
        for x, y, radius in spots:
            u, v = about(c, torch.tensor([[x, y]]))
            best = torch.minimum(best, (u.square() + v.square()).sqrt() - radius * (1 + rough * bumps))
        best = best + 0.0012 * fine
        inside = c.smoothstep(best, soft)
        rim = torch.exp(-((best + 0.006) / 0.006).square()) * inside
        amount = inside * (0.75 + 0.12 * bumps + 0.1 * fine) + ring * rim
        absorbed = torch.tensor(colour).view(1, 3, 1, 1)
        return image * torch.exp(-absorbed * amount), (inside > 0.5).float()

    return draw


def tear(x: float, y: float, length: float, opening: float, angle: float, under: tuple[float, float, float]) -> Draw:
    """A slit in cloth that gapes: what lies under it in shadow, threads across it, puckered and lit edges."""

    def draw(c: Canvas, image: Tensor) -> tuple[Tensor, Tensor]:
        u, v = about(c, torch.tensor([[x, y]]), angle)
        v = v + 0.8 * u.square() / length + 0.003 * c.fractal(2.0)
        half = opening / 2 * (1 - (2 * u / length).square()).clamp(min=0).pow(0.7)
        ends = (u.abs() - length / 2).clamp(min=0)
        distance = v.abs() - half * (1 + 0.2 * c.fractal(1.8)) + 0.0015 * c.fractal(0.9) + ends
        # The cloth at the edges is drawn aside, and its folds catch the light.
        near = torch.exp(-((v.abs() - half).clamp(min=0) / (1.5 * opening)) - (1.6 * u / length).square())
        away = 0.4 * opening * torch.sign(v) * near
        cloth = sample(image, c.x + away * math.sin(angle), c.y - away * math.cos(angle))
        cloth = cloth * (1 + 0.16 * torch.sign(v) * near * torch.cos(9 * (v.abs() - half) / opening))
        inside = c.smoothstep(distance, 2.0)
        depth = 0.5 + 0.5 * ((v + half) / (2 * half + 1e-4)).clamp(0, 1)
        below = torch.tensor(under).view(1, 3, 1, 1) * depth * (1 + 0.06 * c.fractal(1.5))
        across = c.anisotropic(torch.tensor(angle + math.pi / 2 + 0.2).view(1, 1, 1, 1), 0.04 * c.size, 0.6)
        colour = (cloth * near).sum((2, 3), keepdim=True) / near.sum()
        below = mix(below, colour, 0.8 * c.smoothstep((1.7 - across) * 0.5 / c.size))
        return mix(cloth, below, inside), (distance < 0.5 / c.size).float()

    return draw


def of_kind(name: str, canvas: Canvas, image: Tensor) -> tuple[Tensor, Tensor]:
    return apply(DEFECTS[name], canvas, image, torch.ones_like(canvas.x))


@dataclass(frozen=True)
class Pair:
    """A crop of a photograph, and what is drawn on it."""

    file: str
    class_name: str
    box: tuple[int, int, int, int]  # left, top, right, bottom in the photograph
    good: str  # captions
    bad: str
    defect: str
    draw: Draw
    seed: int = 0


PAIRS = (
    Pair("ph_brown_floor_tiles.jpg", "tile", (0, 0, 640, 640), "Floor tiles", "Floor tiles with a crack", "crack",
         lines(((.27, .30), (.33, .36), (.37, .38), (.44, .46), (.52, .50), (.60, .60)),
               ((.44, .46), (.47, .40), (.53, .37)), width=8, dark=.8)),
    Pair("ph_painted_metal_shutter.jpg", "metal", (0, 0, 640, 640), "Painted metal shutter", "Metal shutter with rust",
         "corrosion", partial(of_kind, "corrosion"), seed=54),
    Pair("cl_tshirt94.jpg", "shirt", (0, 100, 400, 500), "T-shirt", "T-shirt with a coffee stain", "stain",
         blot((.40, .68, .075), (.47, .74, .045), (.33, .76, .015), (.50, .65, .012), colour=(.28, .55, .95), ring=.3,
              rough=.1, soft=4)),
    Pair("ph_rosewood_veneer1.jpg", "wood", (0, 0, 640, 640), "Rosewood veneer", "Rosewood veneer with scratches",
         "scratch", lines(((.25, .70), (.45, .52), (.72, .33)), ((.62, .47), (.48, .57), (.30, .72)),
                          ((.55, .62), (.66, .55)), width=4.5, tone=(.33, .26, .18), rim=-.06, bend=.0015)),
    Pair("ph_asphalt_06.jpg", "asphalt", (0, 0, 640, 640), "Asphalt", "Asphalt with a crack", "crack",
         lines(((.15, .55), (.28, .50), (.36, .53), (.5, .44), (.66, .47), (.85, .36)),
               ((.5, .44), (.54, .58), (.52, .66)), width=7, dark=.6)),
    Pair("cl_dress02.jpg", "fabric", (80, 120, 340, 380), "Lace dress", "Lace dress with a tear", "cut",
         tear(.50, .5, .34, .055, -.6, (.12, .10, .12))),
    Pair("ph_brushed_concrete.jpg", "concrete", (0, 0, 640, 640), "Concrete floor", "Concrete floor with an oil stain",
         "stain", blot((.58, .55, .12), (.69, .63, .06), (.47, .68, .022), (.75, .50, .018), (.44, .46, .012),
                       colour=(.6, .7, .8), ring=.15)),
    Pair("acg_bricks08.jpg", "brick wall", (0, 0, 640, 640), "Brick wall", "Brick wall with a hole", "hole",
         blot((.56, .45, .06), (.61, .49, .045), (.53, .51, .03), colour=(1.6, 1.7, 1.8), ring=.25, rough=.3, soft=2)),
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A picture of a family that nano's training never draws, with and without a defect, photographed alike."""

    family: str
    class_name: str
    good: str
    bad: str
    defect: str
    seed: int

    def make(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        image, foreground = SURFACES[self.family].draw(Canvas(1, 448, generator))
        bad, mask = apply(DEFECTS[self.defect], Canvas(1, 448, generator), image, foreground)
        canvases = (Canvas(1, 448, torch.Generator().manual_seed(self.seed)) for _ in range(2))
        (good, _), (bad, mask) = (photograph(next(canvases), picture, mask) for picture in (image, bad))
        return good, bad, mask


DRAWN = (
    Drawn("nut", "metal nut", "Hexagon nut", "Hexagon nut with rust", "corrosion", 114),
    Drawn("zipper", "zipper", "Zipper", "Zipper with bent teeth", "bent", 103),
    Drawn("skin", "skin", "Skin", "Skin with bleeding", "bleed", 105),
)


def file_name(class_name: str) -> str:
    return class_name.replace(" ", "_")


def crop(pair: Pair, path: Path) -> Tensor:
    """(1, 3, side, side): the part of the photograph, at most SIDE pixels a side."""
    with Image.open(path) as photo:
        image = photo.convert("RGB").crop(pair.box)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return pixels.permute(2, 0, 1)[None].float() / 255


def composed(pair: Pair, folder: Path, row: dict[str, str]) -> list[dict]:
    good = crop(pair, folder / row["file"])
    bad, mask = pair.draw(Canvas(1, good.shape[-1], torch.Generator().manual_seed(pair.seed)), good)
    about = {
        "domain": "medical" if row["kind"] == "medical" else "industrial",
        "source": f"https://github.com/{row['source_repo']}/blob/{row['commit']}/{row['path']}",
        "author": row["author"],
        "licence": row["licence"],
        "seen_in_training": not is_held_out(row["file"]),
    }
    names = f"{file_name(pair.class_name)}-good", f"{file_name(pair.class_name)}-defect"
    captions = pair.good, f"{pair.bad} (composed)"
    return write(pair, names, captions, (good, bad.clamp(0, 1), mask), about)


def drawn(pair: Drawn) -> list[dict]:
    own = {"source": "hub/nano", "author": "the authors of this package", "licence": "MIT"}
    domain = SURFACES[pair.family].domain
    about = {"domain": domain, **own, "seen_in_training": pair.family not in HELD_OUT}
    name = file_name(pair.class_name)
    captions = f"{pair.good} (drawn)", f"{pair.bad} (drawn)"
    return write(pair, (f"{name}-2", f"{name}-1"), captions, pair.make(), about)


def write(
    pair: Pair | Drawn,
    names: tuple[str, str],
    captions: tuple[str, str],
    made: tuple[Tensor, Tensor, Tensor],
    about: dict,
) -> list[dict]:
    """Write the good picture, the defective one and its mask; returns the entries of both pictures."""
    good, bad, mask = made
    save(good[0], EXAMPLES / "pictures" / f"{names[0]}.jpg")
    save(bad[0], EXAMPLES / "pictures" / f"{names[1]}.jpg")
    save(mask[0] > 0.5, EXAMPLES / "masks" / f"{names[1]}.png")
    alike = {"class_name": pair.class_name, **about}
    return [
        {"picture": f"pictures/{names[0]}.jpg", "mask": None, "defect": None, "caption": captions[0], **alike},
        {
            **{"picture": f"pictures/{names[1]}.jpg", "mask": f"masks/{names[1]}.png"},
            **{"defect": pair.defect, "caption": captions[1], **alike},
        },
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of photographs with a LICENSES.csv")
    args = parser.parse_args()
    with (args.photographs / "LICENSES.csv").open(newline="", encoding="utf-8") as table:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(table)}
    listed = [entry for pair in PAIRS for entry in composed(pair, args.photographs, rows[pair.file])]
    listed += [entry for pair in DRAWN for entry in drawn(pair)]
    (EXAMPLES / "examples.json").write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
