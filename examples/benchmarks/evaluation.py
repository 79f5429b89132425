"""Pictures a second of a whole evaluation against those of the vision tower alone.

python examples/benchmarks/evaluation.py [--pictures 64] [--model nano] [--image-size 518] [--device auto] [--rounds 3]

The tower alone gets pixels that lie in memory; the evaluation decodes JPEG pictures of 512 x 512, makes maps, reads
masks and computes all metrics. Both are run in turns; the fastest round of each counts.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from pictures import write_pictures

from tipsomaly import Pipeline
from tipsomaly.studies.evaluation import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--image-size", type=int, default=518, help="the paper's metrics are at 518")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pipe = Pipeline.from_pretrained(options.model, image_size=options.image_size, device=options.device)

    def towers() -> None:
        for batch in batches:
            tokens = pipe.encode(batch)
        torch.sum(tokens.spatial).item()  # waits for a GPU

    def seconds(function) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        return time.perf_counter() - wall, time.process_time() - cpu

    with tempfile.TemporaryDirectory() as folder:
        samples = write_pictures(Path(folder), options.pictures)
        batches = list(pipe.pixels([sample.image for sample in samples], options.batch_size))
        pipe.encode(batches[0])  # warm up
        runs = [
            (seconds(towers), seconds(lambda: evaluate(pipe, samples, batch_size=options.batch_size)))
            for _ in range(options.rounds)
        ]
    alone, whole = ([min(run[i][kind] for run in runs) for kind in (0, 1)] for i in (0, 1))
    for name, (wall, cpu) in (("tower alone", alone), ("evaluation", whole)):
        print(
            f"{name:12} {options.pictures / wall:8.1f} pictures/s {cpu / options.pictures * 1e3:8.1f} CPU ms a picture"
        )
    print(f"the rest costs {whole[0] / alone[0] - 1:.1%} more time, {whole[1] / alone[1] - 1:.1%} more CPU time")


if __name__ == "__main__":
    main()
