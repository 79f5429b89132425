"""The ablations of DAPO and CoPS: what each of their parts, sizes and constants is good for.

Prompts are trained anew where a row needs it, all from the same seed and on the same features; what changes only the
scoring is measured on those of the first row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from tipsomaly.data.kinds import all_kinds, of_one_kind
from tipsomaly.data.samples import Sample
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.prompts.cops import Cops
from tipsomaly.prompts.dapo import Dapo
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.studies.ablation import Row, Study, Table, measure
from tipsomaly.studies.evaluation import Variant
from tipsomaly.studies.training import Features, Pixels, shuffled, train_prompts

Method = TypeVar("Method", bound=PromptMethod)
Key = tuple[str, str]
"""A study and its row."""

MIXES, WEIGHTS, LENGTHS, ROWS = (0.0, 0.01, 0.1), (1.0, 2.0, 4.0, 8.0), (1, 3, 5, 7, 10), (1, 5, 10)
"""DAPO's alpha, lambda, l and E; the paper's figure 5 is of lambda and l."""
GENERIC = "damaged"
"""The one kind of prompts that tell no kinds apart."""
STATES, SAMPLES, POOLS = (1, 3, 6, 12), (1, 3, 10, 30), (1, 3, 5, 7)
"""M, R and K of CoPS."""
ALPHAS, BETAS = (0.0, 0.26, 0.5, 0.75, 1.0), (0.0, 0.5, 0.9, 1.0)


def ablate_dapo(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    train_samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    epochs: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, Study]:
    """The studies by name: "prompt", "text", "image", "kinds" and, of one quantity each, "mix", "lambda", "l" and "E".
    Trainings begin at `seed` and have `epochs`, by default the published ones; pictures with several kinds of defects
    are left out of them. Towers, input size and sigma are the pipeline's; its own prompts are not looked at.

    All trainings share features but the one with image tokens, which changes the vision tower and takes a pass
    through it, forward and backward, for each picture and epoch."""
    config, seed = pipeline.tips.config, Dapo.RECIPE.seed if seed is None else seed
    train_samples = of_one_kind(shuffled(train_samples, seed))
    size = Dapo.RECIPE.batch_size
    features = Features(pipeline, train_samples, size, progress=progress)

    def start(kinds: Sequence[str] = all_kinds(train_samples), **options: Any) -> Dapo:
        return Dapo.start(config, temperature=config.temperature, seed=seed, kinds=kinds, **options)

    starts: dict[Key, Dapo] = {
        ("prompt", "words and vectors (DAPO)"): start(),
        ("text", "text tokens"): start(),
        ("text", "no text tokens"): start(text_tokens=0),
        ("image", "no image tokens"): start(),
        ("kinds", "those of the training"): start(),
        **{("mix", f"{share:g}"): start(mix=share) for share in MIXES},
        **{("lambda", f"{weight:g}"): start(local_weight=weight) for weight in WEIGHTS},
        **{("l", str(count)): start(tokens=count) for count in LENGTHS},
        **{("E", str(count)): start(rows=count) for count in ROWS},
    }
    plain = LearnedPrompts.start(config, seed=seed)
    trainings: dict[Key, tuple[PromptMethod, Features | Pixels]] = {
        ("prompt", "vectors without kinds (Tipsomaly)"): (plain, features),
        **{row: (method, features) for row, method in starts.items()},
        ("image", "4 image tokens (paper)"): (start(image_tokens=4), Pixels(pipeline, train_samples, size)),
        ("kinds", f'one, "{GENERIC}"'): (start([GENERIC]), features.of_kind(GENERIC)),
    }
    variants = variants_of(pipeline, trained(pipeline, trainings, epochs, seed, progress))
    rows = {("prompt", "words alone (fixed)"): Row(Variant(pipeline.with_options(prompts=None, mode="fixed")))}
    rows |= {row: Row(variant) for row, variant in variants.items()}
    rows["kinds", "those of each class"] = Row(variants["kinds", "those of the training"], kinds_of_class=True)
    titles = {
        "prompt": "Words, vectors or both",
        "text": "Tokens in the text tower",
        "image": "Tokens in the vision tower",
        "kinds": "Kinds of defects that there are prompts for",
        "mix": "Share that is mixed from block to block, alpha",
        "lambda": "Weight of the local loss, lambda",
        "l": "Vectors before a sentence, l",
        "E": "Prompts of a state, E",
    }
    return measure(tables_of(titles, rows, ("mix", "lambda", "l", "E")), samples, batch_size, progress)


def ablate_cops(
    pipeline: Pipeline,
    samples: Sequence[Sample],
    train_samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    epochs: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, Study]:
    """The studies by name: "parts", "order", "samples", "text" and, of one quantity each, "M", "R", "K", "alpha" and
    "beta". Trainings begin at `seed` and have `epochs`, by default the published ones. Towers, input size and sigma are
    the pipeline's; its own prompts are not looked at."""
    config, seed = pipeline.tips.config, Cops.RECIPE.seed if seed is None else seed
    features = Features(pipeline, shuffled(train_samples, seed), Cops.RECIPE.batch_size, progress=progress)
    options: dict[Key, dict[str, Any]] = {
        ("parts", "CoPS"): {},
        ("parts", "without ESTS"): {"ests": "off"},
        ("parts", "without ICTS"): {"icts": "off"},
        ("parts", 'the word "object" for ICTS'): {"icts": "off", "category_rows": 0, "sentence": "object."},
        ("parts", "without ESTS, ICTS and SAGA"): {"ests": "off", "icts": "off"},
        ("order", "own states (paper)"): {},
        ("order", "exchanged states (released code)"): {"ests": "exchanged"},
        ("text", "text tokens"): {},
        ("text", "no text tokens"): {"text_tokens": 0},
        **{("M", str(count)): {"states": count} for count in STATES},
        **{("K", str(side)): {"pool": side} for side in POOLS},
    }
    starts = {
        row: Cops.start(config, temperature=config.temperature, seed=seed, **given) for row, given in options.items()
    }
    methods = trained(pipeline, {row: (start, features) for row, start in starts.items()}, epochs, seed, progress)
    full = methods["parts", "CoPS"]
    static = "parts", "without ESTS, ICTS and SAGA"
    methods |= {
        ("parts", "without SAGA"): changed(full, saga=False),
        static: changed(methods[static], saga=False),
        ("samples", "of the prior (released code)"): full,
        ("samples", "of the picture's posterior (paper)"): changed(full, icts="posterior"),
        **{("R", str(count)): with_samples(full, count, seed) for count in SAMPLES},
        **{("alpha", f"{share:g}"): changed(full, alpha=share) for share in ALPHAS},
    }
    variants = variants_of(pipeline, methods)
    titles = {
        "parts": "Parts of CoPS",
        "order": "Which prototypes are added to the states",
        "samples": "What category vectors are samples of",
        "text": "Tokens in the text tower",
        "M": "Prototypes of a state, M",
        "R": "Category vectors drawn, R",
        "K": "Patches a side that are averaged, K",
        "alpha": "Share of the distance to the normal prototypes, alpha",
    }
    rows = {row: Row(variant) for row, variant in variants.items()}
    tables = tables_of(titles, rows, ("M", "R", "K", "alpha"))
    shares = {f"{share:g}": {"spatial": share, "local": 1 - share} for share in BETAS}
    tables["beta"] = Table(
        "Share of the global probability, beta",
        {name: Row(variants["parts", "CoPS"], weights, image_only=True) for name, weights in shares.items()},
        ordered=True,
    )
    return measure(tables, samples, batch_size, progress)


def trained(
    pipeline: Pipeline,
    trainings: Mapping[Key, tuple[Method, Features | Pixels]],
    epochs: int | None,
    seed: int,
    progress: bool,
) -> dict[Key, Method]:
    """The prompts of each row, trained from where they start on what they are trained on. Several rows may have the
    same."""
    found: dict[tuple[str, str], Method] = {}
    keys = {row: (start.digest(), batches.key) for row, (start, batches) in trainings.items()}
    for row, (start, batches) in tqdm(trainings.items(), "train", disable=None if progress else True):
        if keys[row] not in found:
            *_, (found[keys[row]], _) = train_prompts(
                pipeline.tips, pipeline.tokenizer, batches, start, epochs=epochs, seed=seed
            )
    return {row: found[key] for row, key in keys.items()}


def variants_of(pipeline: Pipeline, methods: Mapping[Key, PromptMethod]) -> dict[Key, Variant]:
    """What scores each row: the same for the same prompts."""
    distinct = {id(method): method for method in methods.values()}
    variants = {
        number: Variant(pipeline.with_options(prompts=method, mode="learned")) for number, method in distinct.items()
    }
    return {row: variants[id(method)] for row, method in methods.items()}


def tables_of(titles: Mapping[str, str], rows: Mapping[Key, Row], ordered: Sequence[str]) -> dict[str, Table]:
    """The table of each study; those that are `ordered` are of one quantity."""
    return {
        study: Table(title, {row: found for (of, row), found in rows.items() if of == study}, ordered=study in ordered)
        for study, title in titles.items()
    }


def changed(method: Cops, **options: Any) -> Cops:
    """The same vectors, scored with other options."""
    return Cops.from_tensors(method.state_dict(), method.settings() | options, method.temperature, method.metadata)


def with_samples(method: Cops, count: int, seed: int) -> Cops:
    """With another number of samples of the prior; a method in training form."""
    if count == len(method.noise):
        return method
    noise = torch.randn(count, method.width, generator=torch.Generator().manual_seed(seed))
    return Cops.from_tensors(
        {**method.state_dict(), "noise": noise}, method.settings(), method.temperature, method.metadata
    )


ABLATIONS = {Dapo.NAME: ablate_dapo, Cops.NAME: ablate_cops}
"""By the method's name; Tipsomaly's are in `ablation`."""
