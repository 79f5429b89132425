"""How much a few normal pictures help: metrics after 1, 2, 4 ... of them, over several draws."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tipsomaly.data.samples import Sample, by_class
from tipsomaly.detection.combination import Use
from tipsomaly.detection.pipeline import BATCH_SIZE, Pipeline
from tipsomaly.detection.reference_detector import observe
from tipsomaly.detection.references import ReferenceOptions
from tipsomaly.errors import DatasetError, OptionError
from tipsomaly.files import to_json, whole_file, write_atomically
from tipsomaly.studies.evaluation import Variant, score_class
from tipsomaly.studies.tables import table

SHOTS = (1, 2, 4, 8, 16)
COMPARED: tuple[Use, ...] = ("memory", "both")
MEASURED = ("image_auroc", "pixel_auroc", "aupro")


@dataclass(frozen=True)
class Shots:
    """By class, what scores, number of normal pictures (0: the prompts alone) and draw: MEASURED, shares of 1."""

    values: Mapping[str, Mapping[str, Mapping[int, Sequence[Mapping[str, float | None]]]]]
    chosen: Mapping[str, Mapping[int, Sequence[str]]]
    """By class, number and draw: what would score if it were not forced, and why."""
    settings: Mapping[str, Any]

    def summary(self, use: str, shots: int, metric: str, class_name: str | None = None) -> tuple[float, float] | None:
        """Mean and deviation over the draws, of a class or of the mean over classes; None if it is not defined."""
        classes = [class_name] if class_name else list(self.values)
        draws = [[draw[metric] for draw in self.values[name][use][shots]] for name in classes]
        draws = [values for values in draws if None not in values]
        if not draws:
            return None
        means = np.array(draws, float).mean(axis=0)
        return float(means.mean()), float(means.std())

    def markdown(self) -> str:
        """A table for each metric: a class a row, mean ± deviation over the draws, in percent."""
        text = ""
        columns = [(use, shots) for use, by_shots in next(iter(self.values.values())).items() for shots in by_shots]
        names = [use if not shots else f"{use} {shots}" for use, shots in columns]
        for metric in MEASURED:
            rows = []
            for name in (*self.values, None):
                found = [self.summary(use, shots, metric, name) for use, shots in columns]
                cells = ["n/a" if f is None else f"{100 * f[0]:.1f} ± {100 * f[1]:.1f}" for f in found]
                rows.append([name or "**mean**", *cells])
            text += f"{metric}, in percent, after as many normal pictures:\n\n{table(['class', *names], rows)}\n"
        return text

    def save(self, folder: Path) -> None:
        """Write shots.md, shots.json and shots.png."""
        write_atomically(folder / "shots.md", self.markdown())
        content = {"settings": self.settings, "values": self.values, "chosen": self.chosen}
        write_atomically(folder / "shots.json", to_json(json.loads(json.dumps(content)), indent=1) + "\n")
        self.draw(folder / "shots.png")

    def draw(self, path: Path) -> None:
        """The curves of the mean over classes, with the deviation over draws as a band."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4 * len(MEASURED), 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        uses = next(iter(self.values.values()))
        for axis, metric in zip(figure.subplots(1, len(MEASURED)), MEASURED, strict=True):
            if alone := self.summary("prompts", 0, metric):
                axis.axhline(100 * alone[0], color="0.5", label="prompts")
            for use in COMPARED:
                points = [(n, self.summary(use, n, metric)) for n in uses[use]]
                drawn = [(n, 100 * f[0], 100 * f[1]) for n, f in points if f]
                if drawn:
                    shots, means, spread = map(np.array, zip(*drawn, strict=True))
                    [line] = axis.plot(shots, means, marker="o", label=use)
                    axis.fill_between(shots, means - spread, means + spread, color=line.get_color(), alpha=0.2, lw=0)
                    axis.set_xscale("log", base=2)
                    axis.set_xticks(shots, shots)
            axis.set_title(metric)
            axis.set_xlabel("normal pictures")
        axis.legend()
        with whole_file(path) as file:
            figure.savefig(file, format="png", dpi=120)


def evaluate_shots(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    normals: Sequence[Sample],
    shots: Sequence[int] = SHOTS,
    seeds: int = 3,
    options: ReferenceOptions | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Shots:
    """Score `samples` by the prompts alone, by a memory of some of `normals` of their class, and by both. A draw takes
    the first pictures of a shuffled order, so that fewer are among more.

    Raises OptionError for impossible numbers, DatasetError for a class with too few normal pictures."""
    options = (options or ReferenceOptions()).of_tower(pipeline.tips.config.vision.depth)
    shots = sorted(set(shots))
    if not shots or shots[0] < 1 or seeds < 1:
        raise OptionError("shots and seeds are numbers of at least 1")
    groups, pools = by_class(samples), by_class([sample for sample in normals if not sample.label])
    for name in groups:
        if len(pools.get(name, ())) < shots[-1]:
            raise DatasetError(f"{name}: {len(pools.get(name, ()))} normal pictures to draw {shots[-1]} from")
    values: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    with tqdm(total=len(samples), unit="picture", disable=None if progress else True) as bar:
        for name, group in groups.items():
            bar.set_description(name)
            pool = [sample.image for sample in pools[name]]
            draws = [random.Random(seed).sample(range(len(pool)), shots[-1]) for seed in range(seeds)]
            wanted = sorted({i for draw in draws for i in draw})
            called = group[0].called
            prompts = pipeline.detector(called)
            seen = observe(pipeline.engine, [pool[i] for i in wanted], prompts, options, batch_size)
            known = dict(zip(wanted, seen, strict=True))
            plain = pipeline.with_options(reference=None)
            variants, keys = [Variant(plain)], [("prompts", 0)]
            chosen[name] = {n: [] for n in shots}
            for n in shots:
                for draw in draws:
                    found = pipeline.fit_references([known[i] for i in draw[:n]], called, options)
                    chosen[name][n].append(found.reason)
                    variants += [Variant(pipeline.with_options(reference=found.using(use))) for use in COMPARED]
                    keys += [(use, n) for use in COMPARED]
            values[name] = {"prompts": {0: []}, **{use: {n: [] for n in shots} for use in COMPARED}}
            results = score_class(variants, group, batch_size, bar)()
            for (use, n), result in zip(keys, results, strict=True):
                metrics = result.metrics(pipeline.image_score)
                values[name][use][n].append({metric: metrics[metric] for metric in MEASURED})
    return Shots(values, chosen, {**plain.settings(), "shots": list(shots), "seeds": seeds})
