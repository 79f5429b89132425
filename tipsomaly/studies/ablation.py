"""The paper's ablations on a data set: tables 2a, 2b, 2c, 6, 7 and figure 3.

All variants of prompts and layers share one pass over the pictures; only what needs other learned prompts is trained,
on features that are encoded once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tipsomaly.data.samples import Sample, by_class
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.scoring import STRATEGIES
from tipsomaly.errors import ModelError
from tipsomaly.files import write_atomically
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.strategy import MODES
from tipsomaly.studies import figures
from tipsomaly.studies.evaluation import Variant, score_class
from tipsomaly.studies.metrics import Metrics, dataset_mean
from tipsomaly.studies.tables import METRICS, table
from tipsomaly.studies.training import Features, initial_prompts, train_prompts

TOKENS = (1, 2, 4, 8, 16)
"""Numbers of learned tokens in figure 3."""


@dataclass(frozen=True)
class Study:
    """A table of the paper, measured here: metrics (means over classes) of each of its rows."""

    title: str
    rows: Mapping[str, Metrics]
    ordered: bool = False
    """The rows are steps of one quantity, so that a line may lead from one to the next in a figure."""

    def markdown(self) -> str:
        """A heading and a table of percentages; columns that nothing defines are left out."""
        columns = [name for name in METRICS if any(metrics.get(name) is not None for metrics in self.rows.values())]
        rows = [[name, *map(metrics.get, columns)] for name, metrics in self.rows.items()]
        return f"## {self.title}\n\n{table(['', *columns], rows)}"


def ablate(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    train_samples: Sequence[Sample] | None = None,
    *,
    batch_size: int = 16,
    epochs: int = 2,
    seed: int = 111,
    progress: bool = False,
) -> dict[str, Study]:
    """The studies by name: "2a", "2c", "6", "7" and, trained on `train_samples` if there are some, "2b" and "figure3".

    All but 2a are of decoupled prompts. In table 7 the map comes from another block of the vision tower, the image's
    tokens from the last. Trained prompts start from `seed` before the sentences that the pipeline's own were trained
    before. Raises ModelError for a pipeline without learned prompts.
    """
    if pipeline.prompts is None:
        raise ModelError("ablations need learned prompts and this model has none")
    depth = pipeline.tips.config.vision.depth
    decoupled = pipeline.with_options(mode="decoupled")
    variants = {("2a", mode): Variant(pipeline.with_options(mode=mode)) for mode in MODES}
    variants |= {
        ("6", domain): Variant(decoupled.with_options(domain=domain))
        for domain in ("industrial", "medical", "object-agnostic")
    }
    for layer in sorted({round(depth * quarter / 4) for quarter in (1, 2, 3, 4)} - {0}):
        variants["7", f"block {layer} of {depth}"] = Variant(decoupled, layer - 1)
    if train_samples:
        features = Features(pipeline, train_samples, progress=progress)
        recipes = {("2b", objective): (objective, 8) for objective in ("local", "global", "both")}
        recipes |= {("figure3", f"{count} token{'s' * (count > 1)}"): ("local", count) for count in TOKENS}
        trained: dict[tuple[str, int], Variant] = {}
        distinct = list(dict.fromkeys(recipes.values()))  # 8 tokens and the local loss are in both
        for objective, count in tqdm(distinct, "train", disable=None if progress else True):
            vectors = initial_prompts(pipeline.tips.config.text.dim, count, seed)
            start = LearnedPrompts(*vectors, pipeline.prompts.ensemble)
            *_, (prompts, _) = train_prompts(
                pipeline.tips, pipeline.tokenizer, features, start, epochs=epochs, objective=objective
            )
            trained[objective, count] = Variant(decoupled.with_options(prompts=prompts))
        variants |= {name: trained[recipe] for name, recipe in recipes.items()}

    per_class: dict[tuple[str, str], dict[str, Metrics]] = {name: {} for name in variants}
    per_class |= {("2c", strategy): {} for strategy in STRATEGIES}
    with tqdm(total=len(samples), unit="picture", disable=None if progress else True) as bar:
        for class_name, group in by_class(samples).items():
            bar.set_description(class_name)
            results = dict(zip(variants, score_class(list(variants.values()), group, batch_size, bar)(), strict=True))
            for name, result in results.items():
                per_class[name][class_name] = result.metrics()
            for strategy in STRATEGIES:
                metrics = results["2a", "decoupled"].metrics(strategy)
                per_class["2c", strategy][class_name] = {m: v for m, v in metrics.items() if m.startswith("image")}
    titles = {
        "2a": "Table 2a: prompts",
        "2b": "Table 2b: training losses",
        "2c": "Table 2c: image scores",
        "6": "Table 6: domain of the fixed prompts",
        "7": "Table 7: layer of the patch tokens",
        "figure3": "Figure 3: number of learned tokens",
    }
    return {
        study: Study(
            title,
            {row: dataset_mean(found)[0] for (of, row), found in per_class.items() if of == study},
            ordered=study in ("7", "figure3"),
        )
        for study, title in titles.items()
        if any(of == study for of, _ in per_class)
    }


def save(studies: Mapping[str, Study], folder: Path) -> None:
    """Write ablation.md, ablation.json and a figure for each study, NAME.png."""
    text = "\n".join(study.markdown() for study in studies.values())
    write_atomically(
        folder / "ablation.md", f"Percent, means over classes; image scores by S5 but in table 2c.\n\n{text}"
    )
    content = {name: {"title": study.title, "rows": study.rows} for name, study in studies.items()}
    write_atomically(folder / "ablation.json", json.dumps(content, indent=1) + "\n")
    for name, study in studies.items():
        write_atomically(folder / f"{name}.png", figures.study(study.title, study.rows, study.ordered))
