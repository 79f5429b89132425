"""Draw a data set in MVTec AD's layout: `python -m hub.nano.render OUT --held-out`.

OUT/<family>/test/good/NNN.png, OUT/<family>/test/<defect>/NNN.png and OUT/<family>/ground_truth/<defect>/NNN_mask.png.
The seeds are disjoint from those of training, which draws its batches from numbers of 60 bits.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .defects import DEFECTS
from .pictures import TRAINING_FAMILIES, Batch, draw_batch
from .surfaces import HELD_OUT, SURFACES

FIRST_SEED = 2**61


def render(out: Path, families: list[str], pictures: int, size: int, seed: int) -> None:
    """`pictures` of every family, half of them without a defect."""
    for number, family in enumerate(families):
        folder = out / family.replace(" ", "_")
        drawn = draw_batch(FIRST_SEED + seed * 1000 + number, pictures, size, [family], groups=max(1, pictures // 16))
        for i, (image, mask, kind) in enumerate(zip(drawn.images, drawn.masks, drawn.kind, strict=True)):
            name = "good" if kind < 0 else list(DEFECTS)[kind].replace(" ", "_")
            save(image, folder / "test" / name / f"{i:03d}.png")
            if kind >= 0:
                save(mask > 0.5, folder / "ground_truth" / name / f"{i:03d}_mask.png")


def save(picture: torch.Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture.float() * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.squeeze(pixels)).save(path, quality=88)


def contact_sheet(out: Path, batch: Batch) -> None:
    """One row of pictures a family, the defects outlined by their masks in red."""
    tint = torch.tensor([1.0, 0.1, 0.1]).view(1, 3, 1, 1)
    edge = (torch.nn.functional.max_pool2d(batch.masks, 3, 1, 1) > 0.5) & (batch.masks <= 0.5)
    rows = torch.where(edge, tint, batch.images).chunk(len(batch.family))
    save(torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1), out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the data set, or with --sheet a picture file")
    parser.add_argument("--held-out", action="store_true", help="the families that training never draws")
    parser.add_argument("--domain", choices=("industrial", "medical"), help="only families of this domain")
    parser.add_argument("--pictures", type=int, default=32, help="of every family, a multiple of 16 (with --sheet: 8)")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", action="store_true", help="draw one picture of examples instead of a data set")
    args = parser.parse_args()
    chosen = list(HELD_OUT) if args.held_out else TRAINING_FAMILIES
    chosen = [name for name in chosen if args.domain in (None, SURFACES[name].domain)]
    if args.sheet:
        seed, count = FIRST_SEED + args.seed * 1000, args.pictures * len(chosen)
        contact_sheet(args.out, draw_batch(seed, count, args.size, chosen, groups=len(chosen)))
    else:
        render(args.out, chosen, args.pictures, args.size, args.seed)
