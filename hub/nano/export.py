"""A finished run to a model folder: `python -m hub.nano.export RUN tipsomaly/nano --photographs DIR`.

Takes the averaged weights, and learns prompts by the paper's procedure on pictures of other seeds than training's: as
many as VisA has (2,162), which is what the paper's own prompts were learned on.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from tipsomaly import LearnedPrompts, Pipeline
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.encoder import ImageTokens
from tipsomaly.models.folder import write_configs, write_words
from tipsomaly.models.tokenizer import Tokenizer
from tipsomaly.prompts.cops import Cops
from tipsomaly.prompts.dapo import Dapo
from tipsomaly.prompts.direct import Direct
from tipsomaly.prompts.method import TrainingBatch
from tipsomaly.prompts.methods import METHODS
from tipsomaly.studies.training import train_prompts

from .defects import DEFECTS
from .photographs import Photographs
from .pictures import TRAINING_FAMILIES, draw_batch
from .render import FIRST_SEED
from .student import count
from .surfaces import SURFACES
from .words import words

NOT_KEPT = ("log_temperature", "free", "heads.")
LEARN_ON = 2160  # pictures
# At the published 1e-3 nano's prompts stay far behind the free vectors of its training: its text tower moves its output
# little for a step of the vectors. Chosen on pictures kept out of training (see the card).
LEARNING_RATES = {LearnedPrompts.NAME: 0.1, Dapo.NAME: 0.1, Cops.NAME: 0.01, Direct.NAME: 1e-3}


def export(run: Path, out: Path, image_size: int, other: Path | None, share: float) -> None:
    """With an `other` run, of which `run` is a further stretch, the weights are means, `share` of them the other's."""
    state = load_file(run / "average.safetensors")
    if other:
        others = load_file(other / "average.safetensors")
        state = {name: torch.lerp(value, others[name], share) for name, value in state.items()}
    temperature = max(math.exp(state["log_temperature"].item()), 0.01)
    state = {name: value for name, value in state.items() if not name.startswith(NOT_KEPT)}
    dim = state["vision_encoder.cls_token"].shape[-1]
    depths = [count(state, part) for part in ("vision_encoder.blocks.", "resblocks.")]
    side = math.isqrt(state["vision_encoder.pos_embed"].shape[1] - 1) * 14
    vocab_size = state["text_encoder.token_embedding.weight"].shape[0]
    config = TipsConfig(
        VisionConfig(dim, depths[0], dim // 64, image_size=side),
        TextConfig(dim, depths[1], dim // 64, 4 * dim, vocab_size=vocab_size),
        temperature,
    )
    write_configs(out, config, (image_size, image_size))
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "tokenizer.model").write_bytes(Tokenizer(run / "tokenizer.model").model)
    write_words(out, words())


def learn(
    out: Path, domain: str, photographs: Path | None, size: int, epochs: int, seed: int, methods: Sequence[str]
) -> None:
    """The training of the paper (section 2.5) on nano: local loss, 8 vectors before the paper's sentences, Adam, towers
    frozen; on drawn pictures of the domain's families, every other industrial batch of photographs. Other methods see
    the same, for the epochs and from the seed of their recipe; a picture with two defects is of the first's kind."""
    pipe = Pipeline.from_pretrained(out, mode="fixed", image_size=size)
    families = [name for name in TRAINING_FAMILIES if SURFACES[name].domain == domain]
    taken = Photographs(photographs) if photographs and domain == "industrial" else None
    batches, names = [], list(DEFECTS)
    for number in tqdm(range(LEARN_ON // 8), unit="batch", disable=None):
        drawn = (FIRST_SEED + 5_000_000 + number, 8, pipe.image_size[0])
        batch = taken.draw_batch(*drawn, groups=4) if taken and number % 2 else draw_batch(*drawn, families, groups=4)
        tokens = ImageTokens(*(token.clone() for token in pipe.encode(batch.images)))  # autograd takes these
        kinds = tuple(names[kind] if kind >= 0 else "" for kind in batch.kind.tolist())
        batches.append(TrainingBatch(tokens, (batch.masks[:, 0] > 0.5).float(), (batch.kind >= 0).long(), kinds))
    trained_on = "drawn surfaces and photographs with drawn defects" if taken else "drawn surfaces"
    own: dict[str, dict[str, Any]] = {name: {} for name in METHODS}
    own[LearnedPrompts.NAME] = {"ensemble": "paper"}
    own[Dapo.NAME] = {"kinds": sorted({kind for batch in batches for kind in batch.kinds if kind})}
    for method in methods:
        papers = method == LearnedPrompts.NAME
        name, recipe = domain if papers else method, METHODS[method].RECIPE
        metadata = {"name": name, "backbone": "nano", "trained_on": trained_on}
        metadata["seed"] = str(seed if papers else recipe.seed)
        config, options = pipe.tips.config, {"seed": int(metadata["seed"]), "metadata": metadata, **own[method]}
        start = METHODS[method].start(config, temperature=config.temperature, **options)
        for prompts, history in train_prompts(
            pipe.tips,
            pipe.tokenizer,
            batches,
            start,
            epochs=epochs if papers else None,
            learning_rate=LEARNING_RATES[method],
        ):
            mean = sum(parts["total"] for parts in history) / len(history)
            print(f"{name}: epoch {prompts.metadata['epochs']}, {LEARN_ON} pictures, loss {mean:.4f}", flush=True)
        prompts.save(out / "prompts" / f"{name}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run of hub.nano.train")
    parser.add_argument("out", type=Path, help="the model folder to write")
    parser.add_argument("--with", type=Path, dest="other", help="a run whose weights are averaged with the first's")
    parser.add_argument("--share", type=float, default=0.5, help="of the other run in the mean")
    parser.add_argument("--image-size", type=int, default=448, help="default input side in pixels")
    parser.add_argument("--learn-size", type=int, default=224, help="input side in pixels at which prompts are learned")
    parser.add_argument("--photographs", type=Path, help="folder of photographs to learn on, beside drawn pictures")
    tipsomaly = parser.add_argument_group("the paper's prompts")
    tipsomaly.add_argument("--epochs", type=int, default=10, help="the paper has 2, on a far larger model")
    tipsomaly.add_argument("--seed", type=int, default=111)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["tipsomaly", "dapo", "cops", "direct"])
    args = parser.parse_args()
    if args.run:
        export(args.run, args.out, args.image_size, args.other, args.share)
    for domain in ("industrial", "medical"):
        if methods := [m for m in args.methods if domain == "industrial" or m == LearnedPrompts.NAME]:
            learn(args.out, domain, args.photographs, args.learn_size, args.epochs, args.seed, methods)
