"""An epoch of prompt training from cached features against one that encodes the pictures again.

python examples/benchmarks/training.py [--pictures 64] [--model nano] [--image-size PX] [--device auto]

Random pictures and masks; prints the seconds of both in this run and their ratio. The first epoch of a training costs
what encoding does in either case.
"""

import argparse
import tempfile
import time
from pathlib import Path

from pictures import write_pictures

from tipsomaly import LearnedPrompts, Pipeline
from tipsomaly.studies.training import Features, Trainer, encode_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    pipe = Pipeline.from_pretrained(options.model, mode="fixed", image_size=options.image_size, device=options.device)
    start = LearnedPrompts.start(pipe.tips.config)

    def seconds(batches) -> float:
        trainer = Trainer(pipe.tips, pipe.tokenizer, start)
        before = time.perf_counter()
        trainer.epoch(batches)
        return time.perf_counter() - before

    with tempfile.TemporaryDirectory() as folder:
        samples = write_pictures(Path(folder), options.pictures)
        seconds(encode_samples(pipe, samples[:8]))  # warm up
        again = seconds(encode_samples(pipe, samples))
        memory = seconds(Features(pipe, samples))
        disk = seconds(Features(pipe, samples, cache=Path(folder) / "cache"))
    print(f"{options.pictures} pictures, {pipe.image_size[0]} px, an epoch:")
    print(f"encoding again:       {again:7.2f} s")
    print(f"features in memory:   {memory:7.2f} s, ratio {again / memory:.1f}")
    print(f"features on disk:     {disk:7.2f} s, ratio {again / disk:.1f}")


if __name__ == "__main__":
    main()
