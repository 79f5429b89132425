"""Train nano from scratch on drawn pictures: `python -m hub.nano.train OUT`.

Seeded and resumable: run the same command again and it goes on from the newest state in OUT. A batch depends on the
seed and its number alone. Half of every batch is the same surfaces without the defect. Every 500 steps the averaged
weights are validated on families that are kept out of training, with the paper's scores and fixed prompts.

The losses, all between tokens and sentence embeddings, so that the towers learn nothing that the paper's scores do not
use: patch tokens against a (normal, abnormal) pair of prototypes (cross-entropy + dice), the largest patch logit as the
paper's local evidence for the image (in a normal picture that is the worst false alarm), both global tokens against the
same pair, the mean token of a defect against the names of the defects, the object token against the surface's name.
"""

import argparse
import json
import math
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tipsomaly.detection.scoring import anomaly_probability
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.tips import Tips
from tipsomaly.models.tokenizer import Tokenizer
from tipsomaly.prompts.prototypes import prototypes
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.studies.metrics import image_metrics

from .pictures import TRAINING_FAMILIES, Batch, draw_batch, patch_targets
from .render import FIRST_SEED
from .surfaces import HELD_OUT, SURFACES
from .words import Sentences, train_tokenizer

IMAGE_SIZE, GROUPS = 224, 8
# Side in pixels -> pictures in a batch, so that every step costs about the same; and how often each is drawn.
BATCH = {112: 64, 168: 32, 224: 16}
EARLY, LATE = (0.7, 0.15, 0.15), (0.3, 0.2, 0.5)
DECAY = 0.25  # the learning rate falls to zero over the last quarter; larger pictures are drawn more often there
VALIDATE_EVERY, VALIDATION_SIZE, VALIDATION_PICTURES = 500, 168, 32  # steps, side in pixels, of each family
PEAK_MUON, PEAK_ADAM, WEIGHT_DECAY, AVERAGING = 3e-3, 2e-3, 0.01, 0.999


def build(tokenizer: Tokenizer, dim: int) -> Tips:
    vision = VisionConfig(dim=dim, depth=6, heads=dim // 64, image_size=IMAGE_SIZE)
    text = TextConfig(dim=dim, depth=2, heads=dim // 64, mlp_dim=4 * dim, vocab_size=tokenizer.vocab_size)
    model = Tips(TipsConfig(vision, text, temperature=0.05))
    model.log_temperature = nn.Parameter(torch.tensor(math.log(0.05)))
    model.probe = nn.Linear(dim, 1)  # a straight path to the patch tokens while the words still mean nothing; not kept
    initialise(model)
    return model


def initialise(model: Tips) -> None:
    """Mimetic initialisation of attention (Trockman and Kolter, 2023): queries and keys that start near the identity,
    values and projections near its negative; positions that start as sinusoids."""
    dim = model.config.vision.dim
    for name, p in model.named_parameters():
        if p.ndim == 2 and min(p.shape) > 1 and "pos" not in name:
            nn.init.trunc_normal_(p, std=0.02 if "embedding" in name else p.shape[1] ** -0.5)
    nn.init.normal_(model.text_encoder.token_embedding.weight, std=dim**-0.5)
    nn.init.normal_(model.vision_encoder.cls_token, std=0.02)
    nn.init.normal_(model.vision_encoder.register_tokens, std=0.02)
    grid = model.vision_encoder.config.grid
    rates = torch.exp(torch.linspace(0, -math.log(100), dim // 4)) * math.pi / 2
    angle = torch.arange(grid).float()[:, None] * rates
    axis = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    model.vision_encoder.pos_embed.data[0, 1:] = 0.3 * torch.cat([rows, columns], -1).reshape(grid * grid, dim)
    eye = torch.eye(dim)
    blocks = [(b.attn.qkv.weight, b.attn.proj.weight, b.attn.heads) for b in model.vision_encoder.blocks]
    blocks += [
        (b.attn.in_proj_weight, b.attn.out_proj.weight, b.attn.heads)
        for b in model.text_encoder.transformer["resblocks"]
    ]
    for qkv, projection, heads in blocks:
        width = dim // heads
        for h in range(heads):
            u, s, v = torch.linalg.svd(0.7 * torch.randn(dim, dim) / dim**0.5 + 0.7 * eye)
            scale = s[:width].sqrt()[:, None]
            qkv.data[h * width : (h + 1) * width] = u[:, :width].T * scale
            qkv.data[dim + h * width : dim + (h + 1) * width] = v[:width] * scale
        u, s, v = torch.linalg.svd(0.4 * torch.randn(dim, dim) / dim**0.5 - 0.4 * eye)
        qkv.data[2 * dim :] = s.sqrt()[:, None] * v
        projection.data[:] = u * s.sqrt()


def whiten(model: Tips, images: Tensor) -> None:
    """Start the patch embedding at the whitened principal components of drawn patches, so that fine texture counts as
    much as brightness from the first step."""
    projection = model.vision_encoder.patch_embed["proj"]
    patches = F.unfold(images, 14, stride=14).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    dim = len(projection.bias)
    filters = (vectors[:, -dim:] / (values[-dim:] + 1e-4).sqrt()).T
    projection.weight.data = filters.reshape(projection.weight.shape).contiguous()
    projection.bias.data = -filters @ mean


class Muon:
    """Momentum whose matrices are made orthogonal before the step (Jordan et al., 2024), scaled to AdamW's step size.

    Queries, keys and values are taken apart; matrices of one shape are treated together."""

    def __init__(self, parameters: dict[str, nn.Parameter], momentum: float = 0.95) -> None:
        self.parameters, self.momentum = parameters, momentum
        self.buffers = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for name, p in self.parameters.items():
            buffer = self.buffers[name].lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(buffer, self.momentum)
            rows = p.shape[1] if "qkv" in name or "in_proj" in name else p.shape[0]
            for part, weights in zip(update.split(rows), p.split(rows), strict=True):
                stacks.setdefault(part.shape, []).append((part, weights))
        for shape, pairs in stacks.items():
            steps = orthogonalise(torch.stack([update for update, _ in pairs])) * (0.2 * max(shape) ** 0.5)
            for (_, weights), step in zip(pairs, steps, strict=True):
                weights.mul_(1 - lr * decay).sub_(step, alpha=lr)


def orthogonalise(x: Tensor) -> Tensor:
    """Newton-Schulz iterations towards the nearest orthogonal matrix of each in (k, m, n)."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Batches(Dataset):
    """Batch number i of a run, drawn wherever it is asked for."""

    def __init__(self, seed: int, steps: int, first: int, device: str) -> None:
        self.seed, self.steps, self.first, self.device = seed, steps, first, device

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, i: int) -> Batch:
        step = self.first + i
        rng = random.Random(self.seed * 1_000_003 + step)
        size = rng.choices(list(BATCH), LATE if step > self.steps * (1 - DECAY) else EARLY)[0]
        return draw_batch(rng.getrandbits(60), BATCH[size], size, TRAINING_FAMILIES, GROUPS, self.device)


def embed(model: Tips, tokenizer: Tokenizer, sentences: list[str]) -> Tensor:
    """(n, D) unit sentence embeddings, with gradients."""
    ids, valid = tokenizer(sentences)
    length = int(valid.sum(1).max())
    device = model.log_temperature.device
    return F.normalize(model.text_encoder(ids[:, :length].to(device), valid[:, :length].to(device)), dim=-1)


def losses(model: Tips, tokenizer: Tokenizer, batch: Batch, words: Sentences) -> dict[str, Tensor]:
    device = model.log_temperature.device
    images, masks, kind = batch.images.to(device), batch.masks.to(device), batch.kind.to(device)
    pairs = [words.pair(family) for family in batch.family]
    kinds, captions = words.kinds(), words.families(batch.family)
    flat = [text for pair in pairs for state in pair for text in state]
    embedded = embed(model, tokenizer, flat + kinds + captions)
    sentence, kinds, captions = embedded.split([len(flat), len(kinds), len(captions)])
    parts = sentence.split([len(state) for pair in pairs for state in pair])
    prototypes = F.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1).unflatten(0, (-1, 2))

    tokens = model.vision_encoder(images)
    groups = len(batch.family)
    direction = (prototypes[:, 1] - prototypes[:, 0]) / model.log_temperature.exp().clamp(min=0.01)
    direction = direction.repeat_interleave(len(images) // groups, 0)
    patches = F.normalize(tokens.patches, dim=-1)
    local = torch.einsum("bhwd,bd->bhw", patches, direction)
    target, counts = patch_targets(masks)
    weight = counts * (1 + 2 * target)
    bce = (F.binary_cross_entropy_with_logits(local, target, reduction="none") * weight).sum() / weight.sum()
    probe = model.probe(tokens.patches)[..., 0]
    probe = (F.binary_cross_entropy_with_logits(probe, target, reduction="none") * weight).sum() / weight.sum()
    probability = local.sigmoid() * counts
    hit = (probability * target).sum((1, 2))
    dice = 1 - (2 * hit + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)

    defective = kind >= 0
    spatial, object_ = F.normalize(tokens.spatial, dim=-1), F.normalize(tokens.object, dim=-1)
    label = defective.float()
    image = sum(F.binary_cross_entropy_with_logits((t * direction).sum(-1), label) for t in (spatial, object_))
    largest = F.binary_cross_entropy_with_logits(local.flatten(1).amax(1), label)

    pooled = F.normalize((patches * target[..., None]).sum((1, 2)) + 1e-6, dim=-1)
    named = defective & (target.sum((1, 2)) > 0)
    what = F.cross_entropy(pooled[named] @ kinds.T / 0.07, kind[named]) if named.any() else pooled.sum() * 0
    family = torch.arange(groups, device=device).repeat_interleave(len(images) // groups)
    where = F.cross_entropy(object_ @ captions.T / 0.07, family)
    return {
        **{"local": bce, "dice": dice.mean(), "largest": largest, "image": image},
        **{"kind": what, "surface": where, "probe": probe},
    }


WEIGHTS = {"local": 2.0, "dice": 0.5, "largest": 0.5, "image": 0.5, "kind": 0.1, "surface": 0.05, "probe": 1.0}


def draw_validation() -> list[Batch]:
    """Pictures of the families kept out of training, one family a batch; measure.py draws other ones."""
    seeds = range(FIRST_SEED + 3000, FIRST_SEED + 3000 + len(HELD_OUT))
    drawn = zip(seeds, HELD_OUT, strict=True)
    return [draw_batch(seed, VALIDATION_PICTURES, VALIDATION_SIZE, [name], groups=2) for seed, name in drawn]


@torch.no_grad()
def validate(model: Tips, tokenizer: Tokenizer, batches: list[Batch]) -> tuple[float, float]:
    """AUROC of patches and of pictures (strategy S5), with fixed prompts: means over the families."""
    device, temperature = model.log_temperature.device, model.log_temperature.exp().item()
    found = []
    for batch in batches:
        surface = SURFACES[batch.family[0]]
        tokens = model.vision_encoder(batch.images.to(device))
        pair = prototypes(model.text_encoder, tokenizer, ENSEMBLES[surface.domain].sentences(surface.nouns[0]))
        patches = anomaly_probability(tokens.patches, pair, temperature).cpu()
        images = anomaly_probability(tokens.spatial, pair, temperature).cpu() + patches.flatten(1).amax(1)
        target, counts = (x.bool() for x in patch_targets(batch.masks))
        levels = ((patches[counts], target[counts]), (images, batch.kind >= 0))
        found.append([image_metrics(scores.numpy(), labels.numpy())["image_auroc"] for scores, labels in levels])
    patch_level, image_level = zip(*found, strict=True)
    return sum(patch_level) / len(batches), sum(image_level) / len(batches)


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in parts of whole groups."""
    images, masks, kind = (tensor.chunk(parts) for tensor in (batch.images, batch.masks, batch.kind))
    n = len(batch.family) // parts
    families = [batch.family[i * n : (i + 1) * n] for i in range(parts)]
    return [Batch(*part) for part in zip(images, masks, families, kind, strict=True)]


def gradients(
    model: Tips, tokenizer: Tokenizer, parameters: list[nn.Parameter], batch: Batch, words: Sentences
) -> tuple[dict[str, float], tuple[Tensor, ...]]:
    """The losses, and the gradients of their weighted sum."""
    parts = losses(model, tokenizer, batch, words)
    total = sum(WEIGHTS[name] * value for name, value in parts.items())
    slopes = torch.autograd.grad(total, parameters)
    return {name: value.item() for name, value in parts.items()}, slopes


def train(
    out: Path, dim: int, steps: int, seed: int, device: str, workers: int, minutes: float, start: Path | None
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - workers))
    if not (out / "tokenizer.model").exists():
        (out / "tokenizer.model").write_bytes((start / "tokenizer.model").read_bytes() if start else train_tokenizer())
    tokenizer = Tokenizer(out / "tokenizer.model")
    model = build(tokenizer, dim)
    whiten(model, torch.cat([draw_batch(seed + i, 64, 112, TRAINING_FAMILIES).images for i in range(8)]))
    if start:
        model.load_state_dict(load_file(start / "model.safetensors"), strict=False)  # probe and temperature start anew
    model = model.to(device)
    average = deepcopy(model).requires_grad_(False)
    matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2 and ("blocks" in n)}
    trained = {n: p for n, p in model.named_parameters() if "mask_token" not in n}
    rest = {n: p for n, p in trained.items() if n not in matrices}
    muon = Muon(matrices)
    adam = torch.optim.AdamW(rest.values(), lr=PEAK_ADAM, betas=(0.9, 0.98), weight_decay=0.0)
    step = load_state(out, model, average, muon, adam) if (out / "state.json").exists() else 0
    # A CPU is faster at the halves of a batch, each in a thread of its own, than with two threads at every operator.
    parts = 2 if device == "cpu" else 1
    threads = ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,))
    words = [Sentences(random.Random()) for _ in range(parts)]
    slopes = partial(gradients, model, tokenizer, list(trained.values()))
    loader = DataLoader(
        Batches(seed, steps, step, device if workers == 0 else "cpu"),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        worker_init_fn=lambda _: torch.set_num_threads(1),
    )
    started, saved, seen, shown, since = time.time(), time.time(), 0, {}, step
    for batch in loader:
        warm = min(1.0, (step + 1) / 100)
        lr = warm * min(1.0, (steps - step) / (steps * DECAY))
        for i in range(parts):
            words[i].rng.seed((seed * 7_368_787 + step) * parts + i)
        values, shares = zip(*threads.map(slopes, split(batch, parts), words), strict=True)
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
        for name in WEIGHTS:
            shown[name] = shown.get(name, 0.0) + sum(value[name] for value in values) / parts
        if step % 50 == 0 or step == steps:
            rate = seen / (time.time() - started)
            line = " ".join(f"{name} {value / (step - since):.4f}" for name, value in shown.items())
            temperature = model.log_temperature.exp().item()
            print(f"step {step}/{steps} {line} T {temperature:.4f} {rate:.0f} pictures/s", flush=True)
            shown, since = {}, step
        if step % VALIDATE_EVERY == 0:
            patch_level, image_level = validate(average, tokenizer, draw_validation())
            print(
                f"step {step}/{steps} validation patch AUROC {patch_level:.3f} image AUROC {image_level:.3f}",
                flush=True,
            )
        over = minutes and time.time() - started > minutes * 60
        if time.time() - saved > 300 or step == steps or over:
            save_state(out, step, model, average, muon, adam)
            saved = time.time()
        if over:
            break


def save_state(out: Path, step: int, model: Tips, average: Tips, muon: Muon, adam: torch.optim.Optimizer) -> None:
    """Files of at most 16 MiB each. All of them know their step, so that a state that was cut off is noticed."""
    adam_state = {f"{i}.{k}": v for i, s in adam.state_dict()["state"].items() for k, v in s.items()}
    files = {"weights": model.state_dict(), "average": average.state_dict(), "muon": muon.buffers, "adam": adam_state}
    for name, tensors in files.items():
        tensors = {k: v.contiguous() for k, v in tensors.items()}
        save_file(tensors, out / f"{name}.tmp", metadata={"step": str(step)})
    for name in files:
        (out / f"{name}.tmp").replace(out / f"{name}.safetensors")
    (out / "state.json").write_text(json.dumps({"step": step}))


def load_state(out: Path, model: Tips, average: Tips, muon: Muon, adam: torch.optim.AdamW) -> int:
    step = json.loads((out / "state.json").read_text())["step"]
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
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw; 0 draws on the device itself")
    parser.add_argument("--minutes", type=float, default=0, help="stop and save after so long; 0: when all is done")
    parser.add_argument("--start", type=Path, help="model folder to start from, instead of from scratch")
    args = parser.parse_args()
    train(args.out, args.dim, args.steps, args.seed, args.device, args.workers, args.minutes, args.start)
