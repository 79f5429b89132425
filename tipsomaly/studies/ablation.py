"""The paper's ablations on a data set: tables 2a, 2b, 2c, 6, 7 and figure 3.

All variants of prompts and layers share one pass over the pictures; only what needs other learned prompts is trained,
on features that are encoded once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from tipsomaly.studies.paper import MODEL, NOT_OURS, NOTES, paper_data_set, published
from tipsomaly.studies.tables import METRICS, table
from tipsomaly.studies.training import Features, train_prompts

TOKENS = (1, 2, 4, 8, 16)
"""Numbers of learned tokens in figure 3."""


@dataclass(frozen=True)
class Study:
    """A table of the paper, measured here: metrics (means over classes) of each of its rows."""

    title: str
    rows: Mapping[str, Metrics]
    ordered: bool = False
    """The rows are steps of one quantity, so that a line may lead from one to the next in a figure."""
    note: str | None = None
    """What to know when it is compared with the paper's."""
    paper: Mapping[str, Metrics] = field(default_factory=dict)
    """The paper's rows, if the data set is the paper's."""

    def markdown(self) -> str:
        """A heading, a table of percentages and its note; columns that nothing defines are left out."""
        columns = [name for name in METRICS if any(metrics.get(name) is not None for metrics in self.rows.values())]
        rows = [[name, *map(metrics.get, columns)] for name, metrics in self.rows.items()]
        rows += [
            [f"{name} ({MODEL}: {NOT_OURS})", *(metrics.get(column, "-") for column in columns)]
            for name, metrics in self.paper.items()
        ]
        note = f"\n{self.note}\n" if self.note else ""
        return f"## {self.title}\n\n{table(['', *columns], rows)}{note}"


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

    Each has the definition of the paper's table (sections 3.3, 7.4.2 to 7.4.4) and its rows beside it, if the data set
    is the paper's. All but 2a and 2b are of decoupled prompts; in 2b the learned ones score images, too. In table 7 the
    map is the mean of those of several blocks of the vision tower, the last quarter of them, half and so on; which mean
    the paper does not say. Trained prompts start from `seed` before the sentences that the pipeline's own were trained
    before. Raises ModelError for a pipeline without learned prompts.
    """
    if not isinstance(pipeline.prompts, LearnedPrompts):
        raise ModelError("ablations of Tipsomaly need learned prompts of its own and this model has none")
    ensemble = pipeline.prompts.ensemble
    depth = pipeline.tips.config.vision.depth
    decoupled = pipeline.with_options(mode="decoupled")
    variants = {("2a", mode): Variant(pipeline.with_options(mode=mode)) for mode in MODES}
    variants |= {
        ("6", domain): Variant(decoupled.with_options(domain=domain))
        for domain in ("industrial", "medical", "object-agnostic")
    }
    quarters = sorted({round(depth * quarter / 4) for quarter in (1, 2, 3, 4)} - {0})
    for first in reversed(range(len(quarters))):
        blocks = quarters[first:]
        name = f"block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))} of {depth}"
        variants["7", name] = Variant(decoupled, tuple(block - 1 for block in blocks))
    if train_samples:
        features = Features(pipeline, train_samples, progress=progress)
        recipes = {("2b", objective): (objective, 8) for objective in ("local", "global", "both")}
        recipes |= {("figure3", f"{count} token{'s' * (count > 1)}"): ("local", count) for count in TOKENS}
        trained: dict[tuple[str, int], LearnedPrompts] = {}
        distinct = list(dict.fromkeys(recipes.values()))  # 8 tokens and the local loss are in both
        for objective, count in tqdm(distinct, "train", disable=None if progress else True):
            start = LearnedPrompts.start(
                pipeline.tips.config, seed=seed, tokens=count, ensemble=ensemble, objective=objective
            )
            *_, (prompts, _) = train_prompts(pipeline.tips, pipeline.tokenizer, features, start, epochs=epochs)
            trained[objective, count] = prompts
        modes = {"2b": "learned", "figure3": "decoupled"}
        variants |= {
            (study, row): Variant(pipeline.with_options(prompts=trained[recipe], mode=modes[study]))
            for (study, row), recipe in recipes.items()
        }

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
        "7": "Table 7: blocks whose maps are averaged",
        "figure3": "Figure 3: number of learned tokens",
    }
    data_set = paper_data_set(samples)
    return {
        study: Study(
            title,
            {row: dataset_mean(found)[0] for (of, row), found in per_class.items() if of == study},
            study in ("7", "figure3"),
            NOTES.get(study),
            published(study, data_set) if data_set and study != "figure3" else {},
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
    content = {
        name: {"title": study.title, "rows": study.rows, "note": study.note, NOT_OURS: study.paper}
        for name, study in studies.items()
    }
    write_atomically(folder / "ablation.json", json.dumps(content, indent=1) + "\n")
    for name, study in studies.items():
        write_atomically(folder / f"{name}.png", figures.study(study.title, study.rows, study.ordered))
