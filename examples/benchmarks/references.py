"""What a memory of normal pictures costs at the shapes of L/14, and what a coreset loses.

python examples/benchmarks/references.py [--pictures 16] [--rounds 5] [--depth 24] [--device auto]

Tokens and weights are random: distances of random tokens cost as much as others. The tower has L/14's shapes at 518 px;
with fewer blocks (--depth) its time is scaled up to 24. What a coreset loses is measured on
tokens of nano of the example pictures, turned and flipped: for the same pictures, moved by half a patch, how many times
the nearest token of all is still there, and how far the nearest one is.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from speed import make_pipe, operations

from tipsomaly import Pipeline
from tipsomaly.data.images import pictures_in
from tipsomaly.detection.leave_one_out import TURNS, turn
from tipsomaly.detection.memory import Neighbours, Subspace, coreset, unit_tokens
from tipsomaly.detection.references import LIMIT
from tipsomaly.models.device import choose_device, choose_dtype

BLOCKS = 24
EXAMPLES = Path(__file__).parents[1] / "pictures"


def seconds(work, rounds: int, device: torch.device) -> float:
    """The fastest of some rounds; CPU seconds on a CPU, which depend less on what else runs."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time() if device.type == "cpu" else time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.process_time() if device.type == "cpu" else time.perf_counter()) - start)
    return best


@torch.inference_mode()
def cost(pictures: int, rounds: int, depth: int, device: torch.device) -> None:
    pipe = make_pipe("l14", depth, device, choose_dtype("auto", device))
    config = pipe.tips.config.vision
    patches = (pipe.image_size[0] // config.patch_size) ** 2
    tower = seconds(lambda: pipe.encode(torch.zeros(1, 3, 518, 518, dtype=torch.uint8)), rounds, device)
    tower *= BLOCKS / depth
    work = operations(config, pipe.image_size) * BLOCKS / depth
    print(f"{device}: tower {tower * 1000:.0f} ms a picture, {work / 1e9:.0f} GFLOP, {patches} patches of {config.dim}")
    tokens = F.normalize(torch.randn(pictures * patches, config.dim, device=device), dim=-1)
    picture = F.normalize(torch.randn(1, patches, config.dim, device=device), dim=-1)
    start = time.perf_counter()
    kept = tokens[coreset(tokens, LIMIT)]
    print(f"coreset of {len(kept)} from {len(tokens)} tokens: {time.perf_counter() - start:.1f} s")
    for name, memory in (("all tokens", Neighbours(tokens)), ("coreset", Neighbours(kept)), ("subspace", None)):
        memory = memory or Subspace.fit(tokens)
        took = seconds(lambda memory=memory: memory.distances(picture), rounds, device)
        size = sum(tensor.nbytes for tensor in memory) / 1e6
        flop = 2 * patches * config.dim * (len(memory.tokens) if name != "subspace" else 2 * len(memory.basis))
        print(
            f"{name:<11} {took * 1000:7.1f} ms a picture, {took / tower:6.1%} of the tower "
            f"({flop / work:.1%} of its operations), {size:.0f} MB"
        )


@torch.inference_mode()
def recall() -> None:
    pipe = Pipeline.from_pretrained(image_size=448)
    known = torch.cat(list(pipe.pixels(pictures_in(EXAMPLES))))[::2]
    moved = known.roll((7, 7), (-2, -1))
    tokens = [unit_tokens([pipe.encode(turn(known, number)).patches]).flatten(0, 2) for number in range(TURNS)]
    memory = torch.cat(tokens)
    queries = unit_tokens([pipe.encode(moved).patches])[:, 2:-2, 2:-2].flatten(0, 2)
    best, place = (queries @ memory.T).max(dim=1)
    print(f"of all {len(memory)} tokens of nano the nearest is {1 - best.mean():.3f} away")
    for share in (0.75, 0.5, 0.2, 0.1):
        kept = coreset(memory, int(share * len(memory)))
        there = torch.isin(place, kept).float().mean()
        away = 1 - (queries @ memory[kept].T).amax(dim=1).mean()
        print(f"coreset of {share:4.0%}: {there:.0%} of the nearest kept, the nearest is {away:.3f} away")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=BLOCKS, help="blocks of the tower that are timed")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    cost(args.pictures, args.rounds, args.depth, choose_device(args.device))
    recall()
