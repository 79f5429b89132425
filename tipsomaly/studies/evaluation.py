"""Scores of a whole data set, class by class, as in the paper's tables.

One pass over the pictures serves any number of variants (prompts, layers), as they share the tokens; maps are compared
with masks at the model's input size and forgotten. A class that is finished is a file and is not computed again.
"""

import csv
import io
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tipsomaly.data.kinds import all_kinds
from tipsomaly.data.masks import load_mask
from tipsomaly.data.samples import Sample, by_class, states
from tipsomaly.detection import scoring
from tipsomaly.detection.engine import NOT_FINITE
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.errors import DatasetError, OptionError, printable
from tipsomaly.files import digest, to_json, write_atomically
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.studies.metrics import Metrics, PixelMetrics, dataset_mean, image_metrics
from tipsomaly.studies.paper import MODEL, NOT_OURS, Paper, paper_results
from tipsomaly.studies.tables import METRICS, digits, table

PIXEL_METRICS = tuple(name for name in METRICS if not name.startswith("image"))
AHEAD = 16
"""Batches that wait to be measured at most."""
CLASSES_AHEAD = 4
"""Classes that are measured at a time at most."""


@dataclass(frozen=True, eq=False)
class Variant:
    """Something to score: a pipeline, and the blocks of the vision tower (0-based) whose patches make the map. That of
    several is the mean of their maps of probabilities."""

    pipeline: Pipeline
    layers: tuple[int, ...] = (-1,)


@dataclass(frozen=True)
class PictureScore:
    """The image-level parts of a picture's scores."""

    image: str
    defect: str
    label: int
    object_score: float
    global_score: float
    local_score: float
    localization: float | None = None
    """Mean of the map inside the mask minus its mean outside: in [-1, 1]; None without both."""
    kinds: Mapping[str, float] | None = None
    """The probability of each kind of defect at the most abnormal patch, from prompts that know kinds."""

    def score(self, strategy: scoring.Strategy) -> float:
        """The image score of a strategy of table 2c, or by weights of one's own."""
        return scoring.image_score(strategy, self.object_score, self.global_score, self.local_score)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no result")


@dataclass(frozen=True)
class ClassResult:
    """The scores of a class's pictures and its pixel metrics, which are None in a data set without masks."""

    class_name: str
    pictures: tuple[PictureScore, ...]
    pixels: Metrics

    @classmethod
    def load(cls, path: Path, samples: Sequence[Sample]) -> "ClassResult | None":
        """What an earlier run wrote of these samples, perhaps known by other paths then; None if it is not whole."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
            pictures = tuple(
                PictureScore(**picture | {"image": str(sample.image)})
                for picture, sample in zip(content["pictures"], samples, strict=True)
            )
            result = cls(content["class_name"], pictures, {name: content["pixels"][name] for name in PIXEL_METRICS})
            result.metrics()
        except Exception:  # a damaged file can hold anything
            return None
        as_known = [(s.defect, s.label) for s in samples]
        return result if [(p.defect, p.label) for p in pictures] == as_known else None

    def metrics(self, strategy: scoring.Strategy = "S5") -> Metrics:
        """All METRICS; None where one is not defined, as for a class without defects."""
        labels = np.array([picture.label for picture in self.pictures])
        return image_metrics(np.array([p.score(strategy) for p in self.pictures]), labels) | self.pixels


@dataclass(frozen=True)
class Evaluation:
    """The results of a data set."""

    classes: tuple[ClassResult, ...]
    settings: Mapping[str, Any]
    strategy: scoring.Strategy = "S5"
    """Of table 2c, or the weights of a method's own image score."""
    paper: Paper | None = None
    strategies: tuple[str, ...] = tuple(scoring.STRATEGIES)
    """Those that have a meaning for the backbone."""

    def per_class(self, strategy: scoring.Strategy | None = None) -> dict[str, Metrics]:
        """METRICS by class, shares of 1; default: of the evaluation's strategy."""
        return {result.class_name: result.metrics(strategy or self.strategy) for result in self.classes}

    def mean(self, strategy: scoring.Strategy | None = None) -> Metrics:
        """The mean over the classes that have a metric, as in the paper."""
        return dataset_mean(self.per_class(strategy))[0]

    def markdown(self) -> str:
        """A table of percentages, a class a row, with the mean and the paper's mean."""
        mean, left_out = dataset_mean(self.per_class())
        rows = [[name, *map(metrics.get, METRICS)] for name, metrics in self.per_class().items()]
        rows.append(["**mean**", *map(mean.get, METRICS)])
        domain, (height, width) = self.settings["domain"], self.settings["image_size"]
        labels = [picture.label for result in self.classes for picture in result.pictures]
        text = (
            f"{self.settings['mode']} prompts, domain {domain if domain in ENSEMBLES else 'of your own'}, {width} x "
            f"{height} px, {scoring.described(self.strategy)}; {len(labels)} pictures, {sum(labels)} defective; "
            "in percent, mean over classes.\n\n"
        )
        if self.paper:
            known = [self.paper.metrics.get(name, "-") for name in METRICS]
            rows.append([f"{self.paper.name}: {MODEL}, decoupled, S5: {NOT_OURS}", *known])
        text += table(["class", *METRICS], rows)
        missing = [f"{name}: {', '.join(left_out[name])}" for name in METRICS if left_out[name]]
        return text + ("\nNot defined, and left out of the mean: " + "; ".join(missing) + ".\n" if missing else "")

    def csv(self) -> str:
        """The same with all digits, as shares of 1."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["class", "pictures", "defective", *METRICS])
        for result in self.classes:
            metrics, labels = result.metrics(self.strategy), [picture.label for picture in result.pictures]
            writer.writerow([result.class_name, len(labels), sum(labels), *(digits(metrics[m]) for m in METRICS)])
        mean, labels = self.mean(), [picture.label for result in self.classes for picture in result.pictures]
        writer.writerow(["mean", len(labels), sum(labels), *(digits(mean[m]) for m in METRICS)])
        return text.getvalue()

    def json(self) -> str:
        """Everything: settings, metrics by class and strategy, means, the scores of the pictures."""
        mean, left_out = dataset_mean(self.per_class())
        content = {
            "settings": self.settings,
            "strategy": self.strategy,
            "classes": self.per_class(),
            "mean": mean,
            "left_out_of_the_mean": {name: classes for name, classes in left_out.items() if classes},
            "mean_by_strategy": {strategy: self.mean(strategy) for strategy in self.strategies},
            "paper": {"name": self.paper.name, "not measured here": self.paper.metrics} if self.paper else None,
            "pictures": {
                result.class_name: [asdict(p) | {"score": p.score(self.strategy)} for p in result.pictures]
                for result in self.classes
            },
        }
        return to_json(content, indent=1) + "\n"

    def save(self, folder: Path) -> None:
        """Write results.json, results.csv and results.md."""
        for suffix, content in (("json", self.json()), ("csv", self.csv()), ("md", self.markdown())):
            write_atomically(folder / f"results.{suffix}", content)


def evaluate(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    *,
    strategy: scoring.Strategy | None = None,
    batch_size: int = 16,
    output: str | Path | None = None,
    kinds_of_class: bool = False,
    progress: bool = False,
) -> Evaluation:
    """The metrics of a data set: pixels at the pipeline's input size, masks resized to it (`load_mask`).

    With `output` a finished class is a file in its folder `classes`, used again by the next call if weights, prompts,
    options and the data set's files (sizes and times) are the same; the results are written beside. `strategy` is that
    of the image score, by default the method's own: S5 for the paper's. With `kinds_of_class` prompts that know kinds
    of defects are asked for those that occur in a class.

    Raises ValueError for an unknown strategy, DatasetError and ImageError for a file that cannot be used.
    """
    folders = {"": Path(output)} if output else {}
    options: dict[str, Any] = {
        "strategy": strategy,
        "batch_size": batch_size,
        "kinds_of_class": kinds_of_class,
        "progress": progress,
    }
    return _evaluate({"": pipeline}, samples, folders, **options)[""]


def evaluate_methods(
    pipelines: Mapping[str, Pipeline], samples: Sequence[Sample], output: str | Path | None = None, **options: Any
) -> dict[str, Evaluation]:
    """The same for several pipelines on the same towers, input size and sigma, from one pass over the pictures. With
    `output` each has a folder of its name in it, and methods.md compares their means."""
    folders = {name: Path(output) / name for name in pipelines} if output else {}
    evaluations = _evaluate(pipelines, samples, folders, **options)
    if output:
        write_atomically(Path(output) / "methods.md", method_table(evaluations))
    return evaluations


def method_table(evaluations: Mapping[str, Evaluation]) -> str:
    """The means of several evaluations of the same pictures, a row each."""
    rows = [[name, scoring.described(e.strategy), *map(e.mean().get, METRICS)] for name, e in evaluations.items()]
    return table(["method", "image score", *METRICS], rows)


def _evaluate(
    pipelines: Mapping[str, Pipeline],
    samples: Sequence[Sample],
    folders: Mapping[str, Path],
    *,
    strategy: scoring.Strategy | None = None,
    batch_size: int = 16,
    kinds_of_class: bool = False,
    progress: bool = False,
) -> dict[str, Evaluation]:
    if strategy is not None:
        scoring.image_score(strategy, 0, 0, 0)  # is it one?
        for pipeline in pipelines.values():
            if isinstance(strategy, str) and strategy not in pipeline.strategies:
                choices = " or ".join(pipeline.strategies)
                raise OptionError(f"this backbone has no spatial token: {strategy} means nothing, choose {choices}")
    if not samples:
        raise DatasetError("no pictures to evaluate")
    results: dict[tuple[str, str], ClassResult] = {}
    waiting: deque[Future] = deque()

    def keep(class_name: str, stores: Mapping[str, Path | None], finish: Callable[[], list[ClassResult]]) -> None:
        for (name, store), result in zip(stores.items(), finish(), strict=True):
            results[name, class_name] = result
            if store:
                write_atomically(store, to_json(asdict(result)))

    groups = by_class(samples)
    # A class is stored as soon as it is measured, while the next ones are encoded. Leaving this block waits for those
    # that are encoded: an interrupt loses none of them.
    with (
        tqdm(total=len(samples), unit="picture", disable=None if progress else True) as bar,
        ThreadPoolExecutor(1, thread_name_prefix="store") as keeper,
    ):
        for class_name, group in groups.items():
            bar.set_description(class_name)
            slug, state = re.sub(r"\W+", "_", class_name)[:60], states(group)
            stores: dict[str, Path | None] = {}
            variants = []
            for name, pipeline in pipelines.items():
                if kinds_of_class and pipeline.kinds and (own := all_kinds(group)):
                    pipeline = pipeline.with_options(kinds=own)
                key = digest(["classes-v4", pipeline.settings(), state])
                store = folders[name] / "classes" / f"{slug}-{key[:16]}.json" if name in folders else None
                if store and store.is_file():
                    if known := ClassResult.load(store, group):
                        results[name, class_name] = known
                        continue
                    print(f"{printable(store)}: damaged, computed again", file=sys.stderr)
                stores[name] = store
                variants.append(Variant(pipeline))
            if not variants:
                bar.update(len(group))
                continue
            waiting.append(keeper.submit(keep, class_name, stores, score_class(variants, group, batch_size, bar)))
            if len(waiting) == CLASSES_AHEAD:
                waiting.popleft().result()
        for job in waiting:
            job.result()
    evaluations = {}
    for name, pipeline in pipelines.items():
        paper = paper_results(samples) if pipeline.method_name == "tipsomaly" else None
        classes = tuple(results[name, class_name] for class_name in groups)
        chosen = scoring.named(pipeline.image_score) if strategy is None else strategy
        evaluations[name] = Evaluation(classes, pipeline.settings(), chosen, paper, pipeline.strategies)
        if name in folders:
            evaluations[name].save(folders[name])
    return evaluations


@torch.inference_mode()
def score_class(
    variants: Sequence[Variant], samples: Sequence[Sample], batch_size: int = 16, bar: tqdm | None = None
) -> Callable[[], list[ClassResult]]:
    """Encode the pictures of one class. What is returned waits until their maps are measured, too, and gives the result
    of each variant; the variants' pipelines share towers, input size and sigma."""
    first, class_name = variants[0].pipeline, samples[0].class_name
    size, depth = first.image_size, first.tips.config.vision.depth
    detectors = [variant.pipeline.scorer(samples[0].called) for variant in variants]
    # Variants of the same layers, prompts for patches and top have the same map, made and measured once.
    keys = [
        (tuple(layer % depth for layer in v.layers), d.identity, v.pipeline.options.top)
        for v, d in zip(variants, detectors, strict=True)
    ]
    remembered = {layer % depth for detector in detectors for layer in detector.layers}
    layers = sorted({depth - 1, *(layer for chosen, *_ in keys for layer in chosen), *remembered})
    # The tower is asked once for each set of learned tokens in it, and mostly there is none.
    learned = {id(d.image_tokens and d.image_tokens.tokens): d.image_tokens for d in detectors}
    with_masks = all(sample.mask for sample in samples if sample.label)
    pixels = {key: PixelMetrics() for key in keys}
    image_level: list[list[tuple[float, float]]] = [[] for _ in variants]
    patch_level: dict[Any, list[tuple[float, float | None, Mapping[str, float] | None]]] = {key: [] for key in pixels}

    read_mask = lru_cache(maxsize=4 * batch_size)(load_mask)  # the variants' threads are about as far as each other

    def measure(key: Any, patch_maps: np.ndarray, kinds: Sequence[Any], chosen: Sequence[Sample]) -> None:
        for patch_map, at_peak, sample in zip(patch_maps, kinds, chosen, strict=True):
            if not np.isfinite(patch_map).all():
                raise DatasetError(f"{printable(sample.image)}: {NOT_FINITE}")
            localization = None
            if with_masks:
                mask = read_mask(sample, size) if sample.mask else None
                anomaly_map = scoring.anomaly_map(patch_map, size, sigma=first.options.sigma)
                pixels[key].update(anomaly_map, mask)
                if mask is not None and mask.any() and not mask.all():
                    localization = float(anomaly_map[mask].mean() - anomaly_map[~mask].mean())
            patch_level[key].append((scoring.local_evidence(patch_map, key[2]), localization, at_peak))

    # Each map is measured in a thread of its own, beside the towers, which need not wait for it at the end of a class.
    lanes = {key: ThreadPoolExecutor(1, thread_name_prefix="measure") for key in pixels}
    jobs: deque[Future] = deque()
    done = 0
    try:
        for batch in first.pixels([sample.image for sample in samples], batch_size):
            chosen = samples[done : done + len(batch)]
            done += len(batch)
            encoded = {
                known: dict(zip(layers, first.encode_layers(batch, layers, tokens), strict=True))
                for known, tokens in learned.items()
            }
            measured = set()
            for key, detector, scores in zip(keys, detectors, image_level, strict=True):
                tokens = encoded[id(detector.image_tokens and detector.image_tokens.tokens)]
                more = [tokens[i % depth].patches for i in detector.layers]
                found = [detector.score(tokens[depth - 1]._replace(patches=tokens[i].patches), *more) for i in key[0]]
                scores += found[0].images.cpu().tolist()
                if key not in measured:
                    measured.add(key)
                    patches = torch.stack([evidence.patches for evidence in found]).mean(0)
                    kinds = found[-1]._replace(patches=patches).kinds_at_peak(detector.kinds)
                    jobs.append(lanes[key].submit(measure, key, patches.cpu().numpy(), kinds, chosen))
            while len(jobs) > AHEAD * len(lanes):
                jobs.popleft().result()
            if bar is not None:
                bar.update(len(chosen))
        computed = {key: lane.submit(pixels[key].compute) for key, lane in lanes.items()}
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    finally:
        for lane in lanes.values():
            lane.shutdown(wait=False)

    def finish() -> list[ClassResult]:
        for job in jobs:
            job.result()
        return [
            ClassResult(
                class_name,
                tuple(
                    PictureScore(str(sample.image), sample.defect, sample.label, *image, local, localization, at_peak)
                    for sample, image, (local, localization, at_peak) in zip(
                        samples, scores, patch_level[key], strict=True
                    )
                ),
                {name: value if with_masks else None for name, value in computed[key].result().items()},
            )
            for key, scores in zip(keys, image_level, strict=True)
        ]

    return finish
