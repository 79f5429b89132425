"""Pictures a second through Ray, against `Pipeline.stream` in one process.

python examples/benchmarks/distributed.py [--pictures 2000] [--model nano] [--batch-size 8] [--actors N] [--device auto]

Both score the same JPEG pictures of 512 x 512, one after the other, on this machine or the cluster of RAY_ADDRESS. What
it takes to start processes that import torch is measured with a single picture, and printed by itself.
"""

import argparse
import tempfile
import time
from pathlib import Path

from pictures import write_pictures

from tipsomaly import Pipeline
from tipsomaly.distributed import actors as distributed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--actors", type=int)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    settings = {"model": options.model, "device": options.device, "batch_size": options.batch_size}

    def seconds_with_ray(paths: list[Path], output: Path) -> float:
        start = time.perf_counter()
        distributed.detect(paths, output, actors=options.actors, **settings)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        paths = [sample.image for sample in write_pictures(Path(folder), options.pictures)]
        pipe = Pipeline.from_pretrained(options.model, device=options.device)
        pipe(paths[: options.batch_size])  # warm up
        start = time.perf_counter()
        for _ in pipe.stream(paths, batch_size=options.batch_size):
            pass
        alone = time.perf_counter() - start
        first, again, whole = (
            seconds_with_ray(chosen, Path(folder, f"scores-{i}"))
            for i, chosen in enumerate((paths[:1], paths[1:2], paths))
        )
    print(f"one process {options.pictures / alone:8.1f} pictures/s")
    print(f"Ray         {options.pictures / (whole - again):8.1f} pictures/s, once its actors run")
    print(f"            {first - again:8.1f} s to start Ray, {again:.1f} s to start the actors and to end")


if __name__ == "__main__":
    main()
