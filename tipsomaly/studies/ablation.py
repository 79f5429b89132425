"""Ablations on a data set, and those of the paper: tables 2a, 2b, 2c, 6, 7 and figure 3.

All variants of prompts and layers share one pass over the pictures; only what needs other learned prompts is trained,
on features that are encoded once. `ablation_methods` has the tables of the other methods.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from tipsomaly.data.kinds import all_kinds
from tipsomaly.data.samples import Sample, by_class
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.scoring import Strategy
from tipsomaly.errors import ModelError
from tipsomaly.files import to_json, write_atomically
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


@dataclass(frozen=True, eq=False)
class Row:
    """What a row of a table scores: a variant, and the image score if it is not the variant's own."""

    variant: Variant
    strategy: Strategy | None = None
    image_only: bool = False
    """Its pixels are those of another row."""
    kinds_of_class: bool = False
    """The prompts are asked for the kinds of defects that occur in a class."""


@dataclass(frozen=True)
class Table:
    """The rows of a table, by name. They are `ordered` if they are steps of one quantity, so that a line may lead from
    one to the next in a figure."""

    title: str
    rows: Mapping[str, Row]
    ordered: bool = False


@dataclass(frozen=True)
class Study:
    """A table of a paper, measured here: metrics (means over classes) of each of its rows."""

    title: str
    rows: Mapping[str, Metrics]
    ordered: bool = False
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


def measure(
    tables: Mapping[str, Table], samples: Sequence[Sample], batch_size: int = 16, progress: bool = False
) -> dict[str, Study]:
    """The studies of these tables by name, from one pass over the pictures; rows may share a variant. The variants'
    pipelines share towers, input size and sigma."""
    rows = [row for table in tables.values() for row in table.rows.values()]
    wanted = list(dict.fromkeys((row.variant, row.kinds_of_class) for row in rows))
    found: dict[tuple[str, str], dict[str, Metrics]] = {}
    with tqdm(total=len(samples), unit="picture", disable=None if progress else True) as bar:
        for class_name, group in by_class(samples).items():
            bar.set_description(class_name)
            own = all_kinds(group) or None
            variants = [
                replace(variant, pipeline=variant.pipeline.with_options(kinds=own)) if of_class else variant
                for variant, of_class in wanted
            ]
            results = dict(zip(wanted, score_class(variants, group, batch_size, bar)(), strict=True))
            for name, table_ in tables.items():
                for row_name, row in table_.rows.items():
                    result = results[row.variant, row.kinds_of_class]
                    metrics = result.metrics(row.strategy or row.variant.pipeline.image_score)
                    if row.image_only:
                        metrics = {metric: value for metric, value in metrics.items() if metric.startswith("image")}
                    found.setdefault((name, row_name), {})[class_name] = metrics
    return {
        name: Study(
            table_.title, {row: dataset_mean(found[name, row])[0] for row in table_.rows}, ordered=table_.ordered
        )
        for name, table_ in tables.items()
    }


def ablate(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    train_samples: Sequence[Sample] | None = None,
    *,
    batch_size: int = 16,
    epochs: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, Study]:
    """The studies of Tipsomaly by name: "2a", "2c", "6", "7" and, trained on `train_samples` if there are some, "2b"
    and "figure3".

    Each has the definition of the paper's table (sections 3.3, 7.4.2 to 7.4.4) and its rows beside it, if the data set
    is the paper's. All but 2a and 2b are of decoupled prompts; in 2b the learned ones score images, too. In table 7 the
    map is the mean of those of several blocks of the vision tower, the last quarter of them, half and so on; which mean
    the paper does not say. Trained prompts start from `seed` and have `epochs`, by default the published ones; they
    stand before the sentences that the pipeline's own were trained before. Raises ModelError for a pipeline without
    learned prompts.
    """
    if not isinstance(pipeline.prompts, LearnedPrompts):
        raise ModelError("ablations of Tipsomaly need learned prompts of its own and this model has none")
    depth = pipeline.tips.config.vision.depth
    modes = {mode: Variant(pipeline.with_options(mode=mode)) for mode in MODES}
    decoupled = modes["decoupled"].pipeline
    domains = ("industrial", "medical", "object-agnostic")
    quarters = sorted({round(depth * quarter / 4) for quarter in (1, 2, 3, 4)} - {0})
    blocks = {}
    for first in reversed(range(len(quarters))):
        chosen = quarters[first:]
        name = f"block{'s' * (len(chosen) > 1)} {', '.join(map(str, chosen))} of {depth}"
        blocks[name] = Row(Variant(decoupled, tuple(block - 1 for block in chosen)))
    tables = {
        "2a": Table("Table 2a: prompts", {mode: Row(variant) for mode, variant in modes.items()}),
        "2c": Table(
            "Table 2c: image scores", {s: Row(modes["decoupled"], s, image_only=True) for s in decoupled.strategies}
        ),
        "6": Table(
            "Table 6: domain of the fixed prompts",
            {domain: Row(Variant(decoupled.with_options(domain=domain))) for domain in domains},
        ),
        "7": Table("Table 7: blocks whose maps are averaged", blocks, ordered=True),
    }
    if train_samples:
        features = Features(pipeline, train_samples, progress=progress)
        recipes = {("2b", objective): (objective, 8) for objective in ("local", "global", "both")}
        recipes |= {("figure3", f"{count} token{'s' * (count > 1)}"): ("local", count) for count in TOKENS}
        trained: dict[tuple[str, int], LearnedPrompts] = {}
        distinct = list(dict.fromkeys(recipes.values()))  # 8 tokens and the local loss are in both
        for objective, count in tqdm(distinct, "train", disable=None if progress else True):
            start = LearnedPrompts.start(
                pipeline.tips.config,
                seed=LearnedPrompts.RECIPE.seed if seed is None else seed,
                tokens=count,
                ensemble=pipeline.prompts.ensemble,
                objective=objective,
            )
            *_, (prompts, _) = train_prompts(pipeline.tips, pipeline.tokenizer, features, start, epochs=epochs)
            trained[objective, count] = prompts
        for study, title, mode in (
            ("2b", "Table 2b: training losses", "learned"),
            ("figure3", "Figure 3: number of learned tokens", "decoupled"),
        ):
            rows = {
                row: Row(Variant(pipeline.with_options(prompts=trained[recipe], mode=mode)))
                for (of, row), recipe in recipes.items()
                if of == study
            }
            tables[study] = Table(title, rows, ordered=study == "figure3")
    data_set = paper_data_set(samples)
    return {
        name: replace(
            study,
            note=NOTES.get(name),
            paper=published(name, data_set) if data_set and name != "figure3" else {},
        )
        for name, study in measure(tables, samples, batch_size, progress).items()
    }


def save(studies: Mapping[str, Study], folder: Path) -> None:
    """Write ablation.md, ablation.json and a figure for each study, NAME.png."""
    text = "\n".join(study.markdown() for study in studies.values())
    intro = (
        "Percent, means over classes; image scores are the method's own (S5 for Tipsomaly's) where no row says more."
    )
    write_atomically(folder / "ablation.md", f"{intro}\n\n{text}")
    content = {
        name: {"title": study.title, "rows": study.rows, "note": study.note, NOT_OURS: study.paper}
        for name, study in studies.items()
    }
    write_atomically(folder / "ablation.json", to_json(content, indent=1) + "\n")
    for name, study in studies.items():
        write_atomically(folder / f"{name}.png", figures.study(study.title, study.rows, study.ordered))
