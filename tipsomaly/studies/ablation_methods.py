"""The ablation of CoPS: what each of its parts, sizes and constants is good for.

Prompts are trained anew where a row needs it, all from the same seed and on the same features; what changes only the
scoring is measured on those of the first row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from tipsomaly.data.samples import Sample
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.prompts.cops import Cops
from tipsomaly.studies.ablation import Row, Study, Table, measure
from tipsomaly.studies.evaluation import Variant
from tipsomaly.studies.training import Features, shuffled, train_prompts

STATES, SAMPLES, POOLS = (1, 3, 6, 12), (1, 3, 10, 30), (1, 3, 5, 7)
"""M, R and K."""
ALPHAS, BETAS = (0.0, 0.26, 0.5, 0.75, 1.0), (0.0, 0.5, 0.9, 1.0)


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
    trainings: dict[tuple[str, str], dict[str, Any]] = {
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
    methods: dict[tuple[str, str], Cops] = {}
    trained: dict[str, Cops] = {}  # several rows have the same prompts
    for row, options in tqdm(trainings.items(), "train", disable=None if progress else True):
        start = Cops.start(config, temperature=config.temperature, seed=seed, **options)
        if (key := start.digest()) not in trained:
            *_, (trained[key], _) = train_prompts(
                pipeline.tips, pipeline.tokenizer, features, start, epochs=epochs, seed=seed
            )
        methods[row] = trained[key]
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
    variants = {
        id(method): Variant(pipeline.with_options(prompts=method, mode=Cops.MODE)) for method in methods.values()
    }
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
    tables = {
        study: Table(
            title,
            {row: Row(variants[id(method)]) for (of, row), method in methods.items() if of == study},
            ordered=len(study) == 1 or study == "alpha",
        )
        for study, title in titles.items()
    }
    shares = {f"{share:g}": {"spatial": share, "local": 1 - share} for share in BETAS}
    tables["beta"] = Table(
        "Share of the global probability, beta",
        {name: Row(variants[id(full)], weights, image_only=True) for name, weights in shares.items()},
        ordered=True,
    )
    return measure(tables, samples, batch_size, progress)


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


ABLATIONS = {Cops.NAME: ablate_cops}
"""By the method's name; Tipsomaly's are in `ablation`."""
