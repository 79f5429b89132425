"""What each prompt method costs against Tipsomaly: a picture, and a step of training.

python examples/benchmarks/methods.py [--models nano l14] [--pictures N] [--rounds 3] [--device auto]

The methods have their published sizes and random start values; DAPO has 20 kinds of defects and no image tokens. All
look at the same tokens, so the vision tower is timed alone, and then what each method makes of its tokens; the cost of
a picture is the sum. Decoding and maps, which are the same for all, would only bring the ratios nearer to 1. A step of
training is one of 8 pictures with tokens that are kept. The fastest round of each counts, in CPU seconds on a CPU, in
seconds on a GPU. l14 has the shapes of TIPS L/14, text tower included, and random weights.
"""

import argparse
import datetime
import platform
from collections.abc import Callable

import torch
from speed import SHAPES, machine, make_pipe, timed

from tipsomaly import Pipeline
from tipsomaly.models.device import choose_device, choose_dtype
from tipsomaly.models.encoder import ImageTokens
from tipsomaly.prompts.method import PromptMethod, TrainingBatch
from tipsomaly.prompts.methods import METHODS
from tipsomaly.studies.training import Trainer

KINDS = [f"kind {i}" for i in range(1, 21)]
BATCH = 8
TEXT = (12, 4)
"""Blocks of the text towers of B/14 and L/14, and the ratio of their MLPs."""


def starts(pipe: Pipeline) -> dict[str, PromptMethod]:
    """Each method as a training of it begins."""
    own = {"dapo": {"kinds": KINDS}}
    config = pipe.tips.config
    return {
        name: method.start(config, temperature=config.temperature, seed=0, **own.get(name, {}))
        for name, method in METHODS.items()
    }


def training_batch(pipe: Pipeline) -> TrainingBatch:
    """Random tokens and masks of BATCH pictures, half of them defective."""
    (height, width), vision = pipe.image_size, pipe.tips.config.vision
    h, w = height // vision.patch_size, width // vision.patch_size
    tokens = ImageTokens(*(torch.randn(BATCH, *shape, vision.dim, device=pipe.device) for shape in ((), (), (h, w))))
    labels = torch.arange(BATCH, device=pipe.device) % 2
    masks = torch.zeros(BATCH, height, width, device=pipe.device)
    masks[1::2, height // 4 : height // 2, width // 4 : width // 2] = 1
    return TrainingBatch(tokens, masks, labels, tuple(KINDS[0] if label else "" for label in labels.tolist()))


def measure(pipe: Pipeline, name: str, pictures: int, rounds: int) -> str:
    """Print the seconds of one model and return its rows of the table."""
    on_gpu, size = pipe.device.type == "cuda", pipe.image_size

    def seconds(function: Callable[[], object]) -> float:
        def whole() -> None:
            function()
            if on_gpu:
                torch.cuda.synchronize()

        return timed(whole)[0 if on_gpu else 1]

    begun = starts(pipe)
    trained = {n: type(m).from_tensors(m.tensors(), m.settings(), m.temperature, {}) for n, m in begun.items()}
    detectors = {n: pipe.with_options(prompts=m, mode=m.MODE).detector("plate") for n, m in trained.items()}
    pixels = torch.randint(0, 256, (pictures, 3, *size), dtype=torch.uint8)
    tower: list[float] = []
    scores: dict[str, list[float]] = {n: [] for n in detectors}
    with torch.inference_mode():
        tokens = pipe.encode(pixels)
        for n in detectors:
            detectors[n].score(tokens)  # warm up
        for _ in range(rounds):
            tower.append(seconds(lambda: pipe.encode(pixels)) / pictures)
            for n, detector in detectors.items():
                scores[n].append(seconds(lambda d=detector: d.score(tokens)) / pictures)

    steps: dict[str, list[float]] = {n: [] for n in begun}
    batch = [training_batch(pipe)]
    trainers = {n: Trainer(pipe.tips, pipe.tokenizer, method) for n, method in begun.items()}
    for trainer in trainers.values():
        trainer.epoch(batch)  # warm up
    for _ in range(rounds):
        for n, trainer in trainers.items():
            steps[n].append(seconds(lambda t=trainer: t.epoch(batch)))

    encode, unit = min(tower), "ms" if on_gpu else "CPU ms"
    first = encode + min(scores["tipsomaly"])
    print(f"{name}, {size[0]} px: the vision tower {encode * 1e3:.1f} {unit} a picture")
    rows = []
    for n in begun:
        cost, step = encode + min(scores[n]), min(steps[n])
        numbers = sum(tensor.numel() for tensor in trained[n].tensors().values())
        cells = [name, n, f"{numbers:,}", f"{min(scores[n]) * 1e3:.2f}", f"{cost / first:.3f}"]
        rows.append([*cells, f"{step * 1e3:.0f}", f"{step / min(steps['tipsomaly']):.2f}"])
    together = sum(min(s) for s in scores.values())
    rows.append([name, "all, one encoding", "", f"{together * 1e3:.2f}", f"{(encode + together) / first:.3f}", "", ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=["nano", *SHAPES], default=["nano", "l14"])
    parser.add_argument("--pictures", type=int, help="scored at once; default: 2 on a CPU, 32 on a GPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    pictures = options.pictures or (32 if device.type == "cuda" else 2)
    torch.manual_seed(0)
    rows = []
    for name in options.models:
        pipe = make_pipe(name, None, device, choose_dtype("auto", device), TEXT)
        rows.append(measure(pipe, name, pictures, options.rounds))
    unit = "ms" if device.type == "cuda" else "CPU ms"
    print(f"\n{machine(device)}, {datetime.date.today()}, Python {platform.python_version()}", end=", ")
    print(f"torch {torch.__version__}; {pictures} pictures at once\n")
    header = ["model", "method", "numbers", f"scoring, {unit} a picture", "picture, ratio"]
    header += [f"step of {BATCH}, {unit}", "step, ratio"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
