"""Train nano on drawn pictures, and on photographs with drawn defects: `python -m hub.nano.train OUT`.

Seeded and resumable: run the same command again and it goes on from the newest state in OUT. A batch depends on the
seed and its number alone. Half of every batch is the same surfaces without the defect. Every 1,000 steps the averaged
weights are validated on families that are kept out of training.

As in TIPS, sentences meet the two global tokens alone: both against the normal and the abnormal sentence of the same
noun, the spatial token against the names of the defects, the object token against the names of the surfaces in the
batch. Patch tokens never meet a sentence: they are trained by drawn masks against a pair of free vectors (cross-entropy
and dice; the largest patch logit as the paper's local evidence for the image, which in a normal picture is the worst
false alarm). The free vectors are not kept: the paper's procedure learns prompts in their place (export.py).
"""

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tipsomaly.detection.scoring import anomaly_probability
from tipsomaly.models.tips import Tips
from tipsomaly.models.tokenizer import Tokenizer
from tipsomaly.prompts.prototypes import prototypes
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.studies.metrics import image_metrics

from .muon import Muon
from .photographs import Photographs
from .pictures import TRAINING_FAMILIES, Batch, draw_batch, patch_targets
from .render import FIRST_SEED
from .student import Student, build, deepen, multiply_in_bfloat16, whiten
from .surfaces import HELD_OUT, SURFACES
from .teacher import Teacher
from .words import Sentences, train_tokenizer

GROUPS = 8
# Side in pixels -> pictures in a batch, so that every step costs about the same; and how often each is drawn.
BATCH = {112: 64, 168: 32, 224: 16, 336: 8, 448: 4}


class Schedule(NamedTuple):
    early: tuple[float, ...]
    """How often each size is drawn until the learning rate falls."""
    late: tuple[float, ...]
    """How often from then on."""
    decay: float
    """The last share of the steps, over which the learning rate falls to zero."""
    photographed: tuple[float, float]
    """Share of the batches whose surfaces are photographs, if there are any: early, late."""
    peak: float
    """Of the highest learning rates."""


SCHEDULES = {
    "stretch": Schedule((0.3, 0.2, 0.25, 0.15, 0.1), (0.1, 0.15, 0.3, 0.25, 0.2), 0.35, (0.4, 0.5), 1.0),
    # Sizes at which photographs are seen: long, for blocks that are new; for those surfaces above all; and short, in
    # smaller steps, to end with.
    "deeper": Schedule((0.1, 0.15, 0.25, 0.25, 0.25), (0.0, 0.1, 0.2, 0.35, 0.35), 0.8, (0.5, 0.5), 0.6),
    "photographs": Schedule((0.05, 0.1, 0.25, 0.3, 0.3), (0.0, 0.1, 0.2, 0.35, 0.35), 0.8, (0.7, 0.7), 0.6),
    "last": Schedule((0.05, 0.15, 0.25, 0.25, 0.3), (0.0, 0.1, 0.2, 0.35, 0.35), 0.8, (0.5, 0.5), 0.5),
}
VALIDATE_EVERY, VALIDATION_SIZE, VALIDATION_PICTURES = 1000, 336, 32  # steps, side in pixels, of each family
WHITENED = 8  # batches of 64 drawn pictures that the first filters are made from
GOOD = 2.0  # how much more often a picture is good than a batch has it: a doubtful one scores less than half
PEAK_MUON, PEAK_ADAM, WEIGHT_DECAY, AVERAGING = 3e-3, 2e-3, 0.01, 0.999


class Batches(Dataset):
    """Batch number i of a run, drawn wherever it is asked for."""

    def __init__(
        self, seed: int, steps: int, first: int, device: str, photographs: Photographs | None, schedule: Schedule
    ) -> None:
        self.seed, self.steps, self.first, self.device, self.photographs = seed, steps, first, device, photographs
        self.schedule = schedule

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, i: int) -> Batch:
        step = self.first + i
        rng = random.Random(self.seed * 1_000_003 + step)
        late = step > self.steps * (1 - self.schedule.decay)
        size = rng.choices(list(BATCH), self.schedule.late if late else self.schedule.early)[0]
        groups = min(GROUPS, BATCH[size] // 2)
        number = rng.getrandbits(60)
        if self.photographs and rng.random() < self.schedule.photographed[late]:
            return self.photographs.draw_batch(number, BATCH[size], size, groups)
        return draw_batch(number, BATCH[size], size, TRAINING_FAMILIES, groups, self.device)


def embed(model: Student, tokenizer: Tokenizer, sentences: list[str]) -> Tensor:
    """(n, D) unit sentence embeddings, with gradients."""
    ids, valid = tokenizer(sentences)
    length = int(valid.sum(1).max())
    device = model.log_temperature.device
    return F.normalize(model.text_encoder(ids[:, :length].to(device), valid[:, :length].to(device)), dim=-1)


def losses(
    model: Student, tokenizer: Tokenizer, teacher: Teacher | None, bfloat16: bool, batch: Batch, words: Sentences
) -> dict[str, Tensor]:
    device = model.log_temperature.device
    images, masks, kind = batch.images.to(device), batch.masks.to(device), batch.kind.to(device)
    pairs = [words.pair(family) for family in batch.family]
    kinds, captions = words.kinds(), words.families(batch.family)
    flat = [text for pair in pairs for state in pair for text in state]
    embedded = embed(model, tokenizer, flat + kinds + captions)
    sentence, kinds, captions = embedded.split([len(flat), len(kinds), len(captions)])
    parts = sentence.split([len(state) for pair in pairs for state in pair])
    prototypes = F.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1).unflatten(0, (-1, 2))

    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        tokens, zero = model.vision_encoder(images), torch.zeros((), device=device)
    groups = len(batch.family)
    sharp = 1 / model.log_temperature.exp().clamp(min=0.01)
    free = F.normalize(model.free, dim=-1)
    local = F.normalize(tokens.patches, dim=-1) @ ((free[1] - free[0]) * sharp)
    target, counts = patch_targets(masks)
    weight = counts * (1 + 2 * target)
    bce = (F.binary_cross_entropy_with_logits(local, target, reduction="none") * weight).sum() / weight.sum()
    probability = local.sigmoid() * counts
    hit = (probability * target).sum((1, 2))
    dice = 1 - (2 * hit + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)

    defective = kind >= 0
    label = defective.float()
    rarer = (GOOD - (GOOD - 1) * label) / (0.5 * (GOOD + 1))
    largest = F.binary_cross_entropy_with_logits(local.flatten(1).amax(1), label, rarer)
    direction = ((prototypes[:, 1] - prototypes[:, 0]) * sharp).repeat_interleave(len(images) // groups, 0)
    spatial, object_ = F.normalize(tokens.spatial, dim=-1), F.normalize(tokens.object, dim=-1)
    globally = (F.binary_cross_entropy_with_logits((t * direction).sum(-1), label, rarer) for t in (spatial, object_))
    named = spatial[defective]
    what = F.cross_entropy(named @ kinds.T / 0.07, kind[defective]) if len(named) else spatial.sum() * 0
    family = torch.arange(groups, device=device).repeat_interleave(len(images) // groups)
    where = F.cross_entropy(object_ @ captions.T / 0.07, family)
    found = {
        "local": bce,
        "dice": dice.mean(),
        "largest": largest,
        "image": sum(globally, zero),
        "kind": what,
        "surface": where,
    }
    return found | ({"taught": teacher.loss(images, tokens, model.heads)} if teacher else {})


WEIGHTS = {"local": 2.0, "dice": 0.5, "largest": 1.0, "image": 1.5, "kind": 0.1, "surface": 0.05, "taught": 0.5}


def draw_validation() -> list[Batch]:
    """Pictures of the families kept out of training, one family a batch; measure.py draws other ones."""
    seeds = range(FIRST_SEED + 3000, FIRST_SEED + 3000 + len(HELD_OUT))
    drawn = zip(seeds, HELD_OUT, strict=True)
    return [draw_batch(seed, VALIDATION_PICTURES, VALIDATION_SIZE, [name], groups=2) for seed, name in drawn]


def photograph_validation(folder: Path) -> list[Batch]:
    """Photographs that are kept out of training, with composed defects, all in one batch."""
    n = 4 * VALIDATION_PICTURES
    return [Photographs(folder, held_out=True).draw_batch(FIRST_SEED + 3000, n, VALIDATION_SIZE, groups=n // 4)]


class Validation(NamedTuple):
    """AUROC, means over the families: of patches by the free vectors and by fixed prompts, of pictures (strategy S5) by
    fixed prompts with the free vectors' patches (decoupled), and by the free vectors for both."""

    patch: float
    patch_fixed: float
    image: float
    image_free: float


@torch.no_grad()
def validate(model: Student, tokenizer: Tokenizer, batches: list[Batch]) -> Validation:
    """The pattern of table 2a, with the free vectors in place of learned prompts."""
    device, temperature = model.log_temperature.device, model.log_temperature.exp().item()
    found = []
    for batch in batches:
        one = SURFACES[batch.family[0]] if len(set(batch.family)) == 1 else None
        domain, noun = (one.domain, one.nouns[0]) if one else ("industrial", "object")
        tokens = model.vision_encoder(batch.images.to(device))
        fixed = prototypes(model.text_encoder, tokenizer, ENSEMBLES[domain].sentences(noun))
        patches, spatial = (
            [anomaly_probability(x, pair, temperature).cpu() for pair in (F.normalize(model.free, dim=-1), fixed)]
            for x in (tokens.patches, tokens.spatial)
        )
        largest = patches[0].flatten(1).amax(1)
        target, counts = (x.bool() for x in patch_targets(batch.masks))
        levels = [(p[counts], target[counts]) for p in patches]
        levels += [(spatial[i] + largest, batch.kind >= 0) for i in (1, 0)]
        found.append([image_metrics(scores.numpy(), labels.numpy())["image_auroc"] for scores, labels in levels])
    return Validation(*(sum(values) / len(batches) for values in zip(*found, strict=True)))


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in parts of whole groups."""
    images, masks, kind = (tensor.chunk(parts) for tensor in (batch.images, batch.masks, batch.kind))
    n = len(batch.family) // parts
    families = [batch.family[i * n : (i + 1) * n] for i in range(parts)]
    return [Batch(*part) for part in zip(images, masks, families, kind, strict=True)]


def gradients(
    model: Student,
    tokenizer: Tokenizer,
    teacher: Teacher | None,
    bfloat16: bool,
    parameters: list[nn.Parameter],
    batch: Batch,
    words: Sentences,
) -> tuple[dict[str, float], tuple[Tensor, ...]]:
    """The losses, and the gradients of their weighted sum."""
    parts = losses(model, tokenizer, teacher, bfloat16, batch, words)
    total = sum((WEIGHTS[name] * value for name, value in parts.items()), torch.zeros(()))
    slopes = torch.autograd.grad(total, parameters)
    return {name: value.item() for name, value in parts.items()}, slopes


def weights_of(start: Path) -> dict[str, Tensor]:
    """Of a run, averaged; or of a model folder, with its set `direct` for the free vectors."""
    if (start / "average.safetensors").exists():
        return load_file(start / "average.safetensors")
    direct = load_file(start / "prompts" / "direct.safetensors")
    free = torch.stack([direct["normal"], direct["abnormal"]])
    return {**load_file(start / "model.safetensors"), "free": free}


def train(
    out: Path,
    dim: int,
    steps: int,
    seed: int,
    device: str,
    workers: int,
    minutes: float,
    start: Path | None,
    threads: int,
    photographs: Path | None,
    teacher: Path | None,
    schedule: str = "stretch",
    depth: int = 6,
    bfloat16: bool = False,
) -> None:
    planned = SCHEDULES[schedule]
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the threads are our own, see below
    if not (out / "tokenizer.model").exists():
        (out / "tokenizer.model").write_bytes((start / "tokenizer.model").read_bytes() if start else train_tokenizer())
    tokenizer = Tokenizer(out / "tokenizer.model")
    model = build(tokenizer, dim, depth)
    drawn = torch.cat([draw_batch(seed + i, 64, 112, TRAINING_FAMILIES).images for i in range(WHITENED)])
    whiten(model, drawn)
    taught_by = Teacher(teacher, drawn, device) if teacher else None
    if taught_by:
        model.heads = taught_by.heads(dim)
    if start:
        model.load_state_dict(deepen(weights_of(start), depth), strict=False)
    if bfloat16 and device == "cpu":
        multiply_in_bfloat16(model)
    model = model.to(device)
    average = deepcopy(model).requires_grad_(False)
    matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2 and ("blocks" in n)}
    trained = {n: p for n, p in model.named_parameters() if "mask_token" not in n}
    rest = {n: p for n, p in trained.items() if n not in matrices}
    muon = Muon(matrices)
    adam = torch.optim.AdamW(rest.values(), lr=PEAK_ADAM, betas=(0.9, 0.98), weight_decay=0.0)
    step = load_state(out, model, average, muon, adam) if (out / "state.json").exists() else 0
    # A CPU is faster at the halves of a batch, each in a thread of its own, than with two threads at every operator.
    parts = threads if device == "cpu" else 1
    drawn_on = device if workers == 0 else "cpu"
    pool = ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,))
    photographed = Photographs(photographs, device=drawn_on) if photographs else None
    surfaces = SURFACES | (photographed.families if photographed else {})
    words = [Sentences(random.Random(), surfaces) for _ in range(parts)]
    slopes = partial(gradients, model, tokenizer, taught_by, bfloat16, list(trained.values()))
    loader = DataLoader(
        Batches(seed, steps, step, drawn_on, photographed, planned),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        worker_init_fn=lambda _: torch.set_num_threads(1),
    )
    started, saved, seen, since = time.time(), time.time(), 0, step
    shown: dict[str, float] = {}
    for batch in loader:
        warm = min(1.0, (step + 1) / 100)
        lr = planned.peak * warm * min(1.0, (steps - step) / (steps * planned.decay))
        for i in range(parts):
            words[i].rng.seed((seed * 7_368_787 + step) * parts + i)
        values, shares = zip(*pool.map(slopes, split(batch, parts), words), strict=True)
        for p, *share in zip(trained.values(), *shares, strict=True):
            p.grad = sum(share) / parts
        nn.utils.clip_grad_norm_(rest.values(), 1.0)
        muon.step(PEAK_MUON * lr, WEIGHT_DECAY)
        adam.param_groups[0]["lr"] = PEAK_ADAM * lr
        adam.step()
        step += 1
        with torch.no_grad():
            keep = min(AVERAGING, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        seen += len(batch.images)
        for name in values[0]:
            shown[name] = shown.get(name, 0.0) + sum(value[name] for value in values) / parts
        if step % 50 == 0 or step == steps:
            rate = seen / (time.time() - started)
            line = " ".join(f"{name} {value / (step - since):.4f}" for name, value in shown.items())
            temperature = model.log_temperature.exp().item()
            print(f"step {step}/{steps} {line} T {temperature:.4f} {rate:.0f} pictures/s", flush=True)
            shown, since = {}, step
        if step % VALIDATE_EVERY == 0:
            sets = {"drawn": draw_validation()}
            if photographs:
                sets["photographed"] = photograph_validation(photographs)
            for kept_out, batches in sets.items():
                found = validate(average, tokenizer, batches)
                line = " ".join(f"{name} {value:.3f}" for name, value in found._asdict().items())
                print(f"step {step}/{steps} {kept_out} validation AUROC {line}", flush=True)
        over = minutes and time.time() - started > minutes * 60
        if time.time() - saved > 300 or step == steps or over:
            save_state(out, step, model, average, muon, adam)
            saved = time.time()
        if over:
            break


def save_state(out: Path, step: int, model: Student, average: Tips, muon: Muon, adam: torch.optim.Optimizer) -> None:
    """Files of at most 16 MiB each. All of them know their step, so that a state that was cut off is noticed."""
    adam_state = {f"{i}.{k}": v for i, s in adam.state_dict()["state"].items() for k, v in s.items()}
    files = {"weights": model.state_dict(), "average": average.state_dict(), "muon": muon.buffers, "adam": adam_state}
    for name, tensors in files.items():
        tensors = {k: v.contiguous() for k, v in tensors.items()}
        save_file(tensors, out / f"{name}.tmp", metadata={"step": str(step)})
    for name in files:
        (out / f"{name}.tmp").replace(out / f"{name}.safetensors")
    (out / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")


def load_state(out: Path, model: Student, average: Tips, muon: Muon, adam: torch.optim.AdamW) -> int:
    step = json.loads((out / "state.json").read_text(encoding="utf-8"))["step"]
    for name in ("weights", "average", "muon", "adam"):
        with safe_open(out / f"{name}.safetensors", "pt") as file:
            if (file.metadata() or {}).get("step") != str(step):
                raise SystemExit(f"{out}: {name}.safetensors is not of step {step}: begin again in an empty folder")
    model.load_state_dict(load_file(out / "weights.safetensors"))
    average.load_state_dict(load_file(out / "average.safetensors"))
    for name, value in load_file(out / "muon.safetensors").items():
        muon.buffers[name].copy_(value)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(out / "adam.safetensors").items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})
    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the run; an unfinished run there is resumed")
    parser.add_argument("--dim", type=int, default=128, help="width of both towers, a multiple of 64")
    parser.add_argument("--depth", type=int, default=6, help="blocks of the vision tower")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw; 0 draws on the device itself")
    parser.add_argument("--minutes", type=float, default=0, help="stop and save after so long; 0: when all is done")
    parser.add_argument("--start", type=Path, help="run or model folder to start from, not from scratch")
    parser.add_argument("--threads", type=int, default=2, help="parts of a batch on a CPU, a thread each: 1 or 2")
    parser.add_argument("--bfloat16", action="store_true", help="the vision tower's products, where a CPU has them")
    parser.add_argument("--photographs", type=Path, help="folder of photographs to compose defects on, too")
    parser.add_argument("--teacher", type=Path, help="model folder whose tokens are targets, too")
    parser.add_argument("--schedule", choices=SCHEDULES, default="stretch", help="of sizes and learning rates")
    args = parser.parse_args()
    train(**vars(args))
