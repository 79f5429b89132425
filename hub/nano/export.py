"""A finished run to a model folder: `python -m hub.nano.export RUN tipsomaly/nano --industrial DATA --medical DATA`.

Takes the averaged weights and learns prompts by the paper's procedure on drawn data in MVTec's layout (see render.py).
"""

import argparse
import math
from pathlib import Path

from safetensors.torch import load_file, save_file

from tipsomaly import LearnedPrompts, Pipeline
from tipsomaly.data.layouts import read_dataset
from tipsomaly.models.config import TextConfig, TipsConfig, VisionConfig
from tipsomaly.models.folder import write_configs, write_words
from tipsomaly.models.tokenizer import Tokenizer
from tipsomaly.studies.training import encode_samples, train_prompts

from .words import words

NOT_KEPT = ("log_temperature", "free")


def export(run: Path, out: Path, image_size: int) -> None:
    state = load_file(run / "average.safetensors")
    temperature = max(math.exp(state["log_temperature"].item()), 0.01)
    state = {name: value for name, value in state.items() if name not in NOT_KEPT}
    dim = state["vision_encoder.cls_token"].shape[-1]
    depths = [
        1 + max(int(name.split(part)[1].split(".")[0]) for name in state if part in name)
        for part in ("vision_encoder.blocks.", "resblocks.")
    ]
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


def learn(out: Path, domain: str, data: Path, epochs: int, seed: int) -> None:
    """The training of the paper (section 2.5) on nano: local loss, 8 vectors, Adam at 1e-3, towers frozen."""
    pipe = Pipeline.from_pretrained(out, mode="fixed")
    samples = read_dataset(data, "mvtec")
    batches = list(encode_samples(pipe, samples))
    metadata = {"name": domain, "backbone": "nano", "trained_on": "drawn surfaces", "seed": str(seed)}
    start = LearnedPrompts.start(pipe.tips.config, seed=seed, ensemble=domain, metadata=metadata)
    for prompts, history in train_prompts(pipe.tips, pipe.tokenizer, batches, start, epochs=epochs):
        mean = sum(parts["total"] for parts in history) / len(history)
        print(
            f"{domain}: epoch {prompts.metadata['epochs']}, {len(samples)} pictures, local loss {mean:.4f}", flush=True
        )
    prompts.save(out / "prompts" / f"{domain}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of train.py")
    parser.add_argument("out", type=Path, help="the model folder to write")
    parser.add_argument("--image-size", type=int, default=448, help="default input side in pixels")
    parser.add_argument("--industrial", type=Path, help="drawn data to learn the industrial prompts on")
    parser.add_argument("--medical", type=Path, help="drawn data to learn the medical prompts on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=111)
    args = parser.parse_args()
    export(args.run, args.out, args.image_size)
    for domain in ("industrial", "medical"):
        if data := getattr(args, domain):
            learn(args.out, domain, data, args.epochs, args.seed)
