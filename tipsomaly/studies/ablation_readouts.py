"""The ablation of the dense readout: what patches are read from, from one look or in windows, by which prompts.

Google's recipe for dense tokens of TIPS reads the values of the last block in windows of 448 pixels at a stride of 336.
Fixed prompts, learned ones and direct prototypes, both trained anew for each readout, say what is gained by either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import Sample, by_class
from tipsomaly.detection import scoring
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.result import Result
from tipsomaly.errors import ImageError
from tipsomaly.prompts.direct import Direct
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.studies.ablation import Study
from tipsomaly.studies.metrics import Metrics, PixelMetrics, dataset_mean, image_metrics
from tipsomaly.studies.training import Features, train_prompts

WINDOW, OVERLAP = 448, 0.25
"""Side in pixels of the picture, and the share that the next window covers too."""


def ablate_readouts(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    train_samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    epochs: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, Study]:
    """One study, "readout", of every readout that the backbone has, with and without windows, by "fixed" prompts, by
    "learned" ones and by "direct" prototypes; sentences score the image in all of them. Trainings see whole pictures;
    they begin at `seed` and have `epochs`, by default the published ones. Towers, input size, domain and sigma are the
    pipeline's; its own prompts are not looked at.

    Windows are tiles of the pictures at their own size, each resized to the input size: smaller pictures have none. All
    maps are compared with the masks at the input size.
    """
    found: dict[str, dict[str, Metrics]] = {}
    groups = by_class(samples)
    with tqdm(
        total=len(samples) * len(pipeline.tips.readouts), unit="picture", disable=None if progress else True
    ) as bar:
        for readout in pipeline.tips.readouts:
            whole = pipeline.with_options(prompts=None, mode="fixed", readout=readout, tile=None)
            prompts = {"fixed": None, **_trained(whole, train_samples, epochs, seed, progress)}
            pipes = {
                name: whole.with_options(
                    prompts=method,
                    mode="decoupled" if method else "fixed",
                    tile=WINDOW,
                    overlap=OVERLAP,
                    readout=readout,
                )
                for name, method in prompts.items()
            }
            for class_name, group in groups.items():
                bar.set_description(f"{readout}: {class_name}")
                for row, metrics in _measure(pipes, group, batch_size, bar).items():
                    found.setdefault(f"{readout}, {row}", {})[class_name] = metrics
    larger = "Windows are of pictures that are larger than them; others are seen once in every row."
    rows = {row: dataset_mean(by_name)[0] for row, by_name in found.items()}
    return {"readout": Study("What patches are read from, windows, and prompts", rows, note=larger)}


def _trained(
    pipeline: Pipeline, samples: Sequence[Sample], epochs: int | None, seed: int | None, progress: bool
) -> dict[str, PromptMethod]:
    config = pipeline.tips.config
    features = Features(pipeline, samples, progress=progress)
    starts: list[PromptMethod] = [
        LearnedPrompts.start(config, seed=LearnedPrompts.RECIPE.seed if seed is None else seed),
        Direct.start(config, temperature=config.temperature, seed=Direct.RECIPE.seed if seed is None else seed),
    ]
    trained: dict[str, PromptMethod] = {}
    for name, start in zip(("learned", "direct"), starts, strict=True):
        *_, (trained[name], _) = train_prompts(pipeline.tips, pipeline.tokenizer, features, start, epochs=epochs)
    return trained


def _measure(
    pipes: Mapping[str, Pipeline], samples: Sequence[Sample], batch_size: int, bar: tqdm
) -> dict[str, Metrics]:
    """The metrics of one class by row, from one pass: a picture's first view is the whole of it."""
    first, called = next(iter(pipes.values())), samples[0].called
    rows = [f"{look}, {prompts}" for prompts in pipes for look in ("one look", "windows")]
    scores: dict[str, list[float]] = {row: [] for row in rows}
    pixels = {row: PixelMetrics() for row in rows}
    with_masks = all(sample.mask for sample in samples if sample.label)
    detectors = [pipe.scorer(called) for pipe in pipes.values()]
    views = first.engine.scored([sample.image for sample in samples], detectors, batch_size)
    pending = iter(samples)
    for view in views:
        if isinstance(view, ImageError):
            raise view
        if not view.is_last:
            continue
        sample = next(pending)
        mask = load_mask(sample, first.image_size) if with_masks and sample.mask else None
        for i, (name, pipe) in enumerate(pipes.items()):
            tiled = pipe.engine.result(view.picture, i, called, pipe.mode, None, pipe.image_score, ())
            for look, result in (("one look", replace(tiled, tiles=None)), ("windows", tiled)):
                scores[f"{look}, {name}"].append(result.score)
                if with_masks:
                    pixels[f"{look}, {name}"].update(_at_input_size(result), mask)
        bar.update()
    labels = np.array([sample.label for sample in samples])
    nothing: Metrics = dict.fromkeys(PixelMetrics().compute())
    return {
        row: image_metrics(np.array(scores[row]), labels) | (pixels[row].compute() if with_masks else nothing)
        for row in rows
    }


def _at_input_size(result: Result) -> np.ndarray:
    """The anomaly map, (height, width) of the model's input; that of windows is made at the picture's own size."""
    if result.tiles is None:
        return scoring.anomaly_map(result.patch_map, result.input_size, sigma=result.sigma)
    full = torch.from_numpy(result.anomaly_map)[None, None]
    return F.interpolate(full, result.input_size, mode="bilinear", antialias=True)[0, 0].clamp(0, 1).numpy()
