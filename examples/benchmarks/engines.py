"""Torch, onnxruntime and OpenVINO on one CPU, one picture at a time: seconds and the ratio to torch float32.

    python examples/benchmarks/engines.py [--backbone b14] [--image-size 518] [--rounds 5] [--threads N]

Weights are random: the time does not depend on them. The engines take turns, so that a busy machine is busy for all of
them; the median counts, of seconds by the clock and of the processor. On a busy machine the latter with --threads 1
tell more. What is timed is a picture at the input size to its score and patch map.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import torch

from tipsomaly.detection.detector import PromptDetector, Prompts
from tipsomaly.detection.graph import build
from tipsomaly.models.config import VisionConfig
from tipsomaly.models.sessions import OnnxRuntime, OpenVino, Session
from tipsomaly.models.tips import VisionTower

SIZES = {"nano": (128, 10, 2), "s14": (384, 12, 6), "b14": (768, 12, 12), "l14": (1024, 24, 16)}
"""Width, depth and heads of the vision tower."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=SIZES, default="b14")
    parser.add_argument("--image-size", type=int, default=518)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dim, depth, heads = SIZES[options.backbone]
    tower = VisionTower(VisionConfig(dim, depth, heads)).eval().requires_grad_(False)
    for parameter in tower.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02)
    image, patches = torch.nn.functional.normalize(torch.randn(2, 2, dim), dim=-1)
    no_text = SimpleNamespace(bias=None)
    detector = PromptDetector(Prompts(image, 0.01), Prompts(patches, 0.01), encode=no_text)
    size = (options.image_size, options.image_size)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        onnx.save(build(tower, [detector], size, 4.0), graph)
        runs = {
            "torch float32": torch_run(tower, detector, pixels),
            "onnxruntime float32": engine_run(OnnxRuntime(graph, options.threads), pixels),
            "OpenVINO float32": engine_run(OpenVino(graph, options.threads), pixels),
            "OpenVINO bfloat16": engine_run(OpenVino(graph, options.threads, "bfloat16"), pixels),
            "torch bfloat16": torch_run(tower_copy(tower).bfloat16(), detector, pixels),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        scores = {name: run() for name, run in runs.items()}  # and warm up
        for _ in range(options.rounds):
            for name, run in runs.items():
                clock, cpu = time.perf_counter(), time.process_time()
                run()
                seconds[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    medians = {name: [statistics.median(column) for column in zip(*t, strict=True)] for name, t in seconds.items()}
    base = medians["torch float32"]
    print(f"{options.backbone} shapes, {options.image_size} px, {options.threads} threads, {options.rounds} rounds")
    print(f"{'engine':<22}{'clock s':>9}{'ratio':>7}{'CPU s':>9}{'ratio':>7}{'score off by':>14}")
    for name, (clock, cpu) in medians.items():
        off = abs(scores[name] - scores["torch float32"])
        print(f"{name:<22}{clock:>9.3f}{base[0] / clock:>7.2f}{cpu:>9.3f}{base[1] / cpu:>7.2f}{off:>14.1e}")


def tower_copy(tower: VisionTower) -> VisionTower:
    copy = VisionTower(tower.config)
    copy.load_state_dict(tower.state_dict())
    return copy.eval().requires_grad_(False)


def torch_run(tower: VisionTower, detector: PromptDetector, pixels: np.ndarray) -> Callable[[], float]:
    @torch.inference_mode()
    def run() -> float:
        evidence = detector.score(tower(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255))
        return float(evidence.images[0, 1] + evidence.patches.max())

    return run


def engine_run(session: Session, pixels: np.ndarray) -> Callable[[], float]:
    inputs = {"images": pixels, "class_index": np.array([0])}
    return lambda: float(session.run(("score", "patch_map"), inputs)["score"][0])


if __name__ == "__main__":
    main()
