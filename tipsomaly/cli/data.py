"""`tipsomaly evaluate`, `train`, `calibrate` and `ablate`: data sets."""

import sys
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from tipsomaly.cli.options import (
    AspectOption,
    BatchOption,
    ClassesOption,
    ClassNamesOption,
    ClassOption,
    DataDomainOption,
    DeviceOption,
    DomainOption,
    DTypeOption,
    EvidenceOption,
    FormatsOption,
    LayoutOption,
    ModelOption,
    ModeOption,
    OutputOption,
    OverlapOption,
    PromptsFileOption,
    PromptsOption,
    ReadoutOption,
    ReferenceOption,
    RootArgument,
    SigmaOption,
    SizeOption,
    SplitOption,
    TileOption,
    app,
    choose_formats,
    class_words,
    fail,
    find_pictures,
    load_pipeline,
    not_empty,
    one_of,
    read_samples,
    reference_options,
    split_kinds,
)
from tipsomaly.data.kinds import all_kinds, of_one_kind
from tipsomaly.data.layouts import read_dataset
from tipsomaly.data.samples import by_class
from tipsomaly.data.words import call
from tipsomaly.detection.formats import FORMATS, Stems
from tipsomaly.detection.scoring import SIGMA, STRATEGIES
from tipsomaly.errors import printable
from tipsomaly.files import only_writer
from tipsomaly.prompts.dapo import Dapo
from tipsomaly.prompts.learned import Objective
from tipsomaly.prompts.methods import METHODS
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.prompts.strategy import Mode

OF_CLASS = ":class"
"""What `--kinds` is without a value."""
OPTIONS_OF = {
    "tipsomaly": {"objective", "tokens", "ensemble"},
    "dapo": {"tokens", "rows", "image_tokens"},
    "cops": {"pool", "alpha", "beta", "reconstruction_weight"},
    "direct": set(),
}
"""The options of `train` that only some methods have."""


class _KindsCommand(TyperCommand):
    """`--kinds` without a value asks for the kinds of each class; `--shots` takes several numbers."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--kinds" in args:
            after = args.index("--kinds") + 1
            if args[after:][:1] in ([], ["--"]) or args[after].startswith("-"):
                args = [*args[:after], OF_CLASS, *args[after:]]
        if "--shots" in args:
            after = args.index("--shots") + 1
            numbers = list(takewhile(str.isdecimal, args[after:]))
            args = args[: after - 1] + [part for n in numbers for part in ("--shots", n)] + args[after + len(numbers) :]
        return super().parse_args(ctx, args)


@app.command(cls=_KindsCommand)
def evaluate(
    context: typer.Context,
    root: RootArgument,
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    methods: Annotated[
        str | None, one_of(["all"], "all: every method that the model has prompts of, from one pass.")
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="[A,B,...]",
            help="Also how well kinds of defects are told apart: those of each class, or these (prompts: dapo).",
        ),
    ] = None,
    reference: ReferenceOption = None,
    evidence: EvidenceOption = "auto",
    shots: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N...", help="How much N normal pictures of the training folder help: 1 2 4 8 16."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="With --shots: draws of the normal pictures.")] = 3,
    strategy: Annotated[
        str | None,
        one_of(
            STRATEGIES,
            "Image score of table 2c; default: the paper's S5 (S2 did better on MVTec AD), or the method's own.",
        ),
    ] = None,
    mode: ModeOption = None,
    readout: ReadoutOption = None,
    domain: DataDomainOption = None,
    image_size: SizeOption = None,
    sigma: SigmaOption = SIGMA,
    classes: ClassesOption = None,
    class_names: ClassNamesOption = None,
    layout: LayoutOption = None,
    split: SplitOption = "test",
    output: OutputOption = Path("results"),
    worst: Annotated[int, typer.Option(min=0, metavar="N", help="Draw the N worst mistakes of each kind.")] = 0,
    gallery: Annotated[
        int, typer.Option(min=0, metavar="N", help="Draw N defective pictures of each class with their maps.")
    ] = 0,
    formats: FormatsOption = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DTypeOption = "auto",
) -> None:
    """Score a data set: image and pixel metrics by class, next to the paper's numbers where they are known.

    DIR gets results.json, results.csv and results.md, with --worst also pictures in worst/, with --gallery a sheet of
    each class in gallery/, with --kinds also kinds.md, kinds.json and confusion.png. With --methods all DIR gets a
    folder of each method, and methods.md. What was finished before an interrupt is in DIR/classes and is not computed
    again if nothing changed. With --format the pictures are scored once more, at their own size, for files that other
    tools read, see `detect`.

    With --reference each class is compared with its normal pictures: those in the subfolder of its name, or all. With
    --shots 1 2 4 8 16 DIR gets shots.md, shots.json and a curve, shots.png, of the prompts, of normal pictures, and of
    both, with the spread over --seeds draws.
    """
    from tipsomaly.studies.evaluation import evaluate as evaluate_samples
    from tipsomaly.studies.evaluation import evaluate_methods, method_table
    from tipsomaly.studies.gallery import save_gallery
    from tipsomaly.studies.kinds import evaluate_kinds
    from tipsomaly.studies.shots import evaluate_shots
    from tipsomaly.studies.worst import save_worst

    chosen = choose_formats(formats, output)
    if methods and (kinds or worst or gallery or prompts or chosen):
        fail("--methods all goes with none of --prompts, --kinds, --worst, --gallery and --format", 2)
    samples, layout_name, domain = read_samples(root, layout, split, classes, domain, class_names)
    context.with_resource(only_writer(output))
    if shots:
        if methods or kinds or worst or gallery or reference or chosen:
            fail("--shots goes with none of --methods, --kinds, --worst, --gallery, --reference and --format", 2)
        normals = call(read_dataset(root, layout_name, "train", classes), class_words(class_names))
        pipe = load_pipeline(model, prompts, device, dtype, image_size, domain, mode, sigma)
        found = evaluate_shots(pipe, samples, normals, shots, seeds, batch_size=batch_size, progress=True)
        found.save(output)
        print(found.markdown(), end="")
        return
    own_kinds = None if kinds == OF_CLASS else split_kinds(kinds)
    more = {"kinds": own_kinds, "readout": readout, **reference_options(reference, evidence)}
    pipe = load_pipeline(model, prompts, device, dtype, image_size, domain, mode, sigma, **more)
    options: dict[str, Any] = {"strategy": strategy, "batch_size": batch_size, "progress": True}
    if methods:
        evaluations = evaluate_methods(pipe.methods(), samples, output, **options)
        print(method_table(evaluations), end="")
        return
    if kinds and not pipe.kinds:
        fail("--kinds needs prompts that know kinds of defects: pass --prompts dapo, or others of that method", 2)
    evaluation = evaluate_samples(pipe, samples, output=output, kinds_of_class=kinds == OF_CLASS, **options)
    print(evaluation.markdown(), end="")
    if kinds:
        named = evaluate_kinds(evaluation, samples)
        named.save(output)
        print(f"\n{named.markdown()}", end="")
    if worst:
        save_worst(pipe, evaluation, samples, output / "worst", worst)
    if gallery:
        save_gallery(pipe, samples, output / "gallery", gallery)
    with ExitStack() as stack:
        targets, stems = [stack.enter_context(FORMATS[name](output)) for name in chosen], Stems()
        for name, group in by_class(samples).items() if targets else ():
            for sample, result in zip(group, pipe.stream([s.image for s in group], name), strict=True):
                stem = stems(sample.image)
                for target in targets:
                    target.add(str(sample.image), result, stem)


@app.command()
def train(
    context: typer.Context,
    root: RootArgument,
    output: PromptsFileOption,
    model: ModelOption = "nano",
    method: Annotated[str, one_of(METHODS, "Whose prompts; each has its own published recipe.")] = "tipsomaly",
    objective: Annotated[
        Objective | None, one_of(get_args(Objective), "tipsomaly: loss; the paper's is local.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, max=16, help="tipsomaly, dapo: learned vectors of a prompt; default: 8 and 5.")
    ] = None,
    ensemble: Annotated[
        str | None, one_of((*ENSEMBLES, "paper"), "tipsomaly: sentences behind the vectors; default: industrial.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, max=64, help="dapo: prompts of a state; default: 10.")] = None,
    image_tokens: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="dapo: tokens a block of the vision tower; the paper has 4; default: 0."),
    ] = None,
    pool: Annotated[
        int | None, typer.Option(min=1, help="cops: patches a side that are averaged; default: 5, of few patches 3.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="cops: share of the distance to normal prototypes; default: 0.26."),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="cops: share of the global token in the image score; default: 0.9."),
    ] = None,
    reconstruction_weight: Annotated[
        float | None, typer.Option(min=0, help="cops: rho; default: 0, as published for VisA; for MVTec AD 1.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: 2, dapo 5, cops 10.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 111, dapo 42, cops 0.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-3,
    readout: ReadoutOption = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the features on disk, in float16, for the next run, too.")
    ] = None,
    image_size: SizeOption = None,
    classes: ClassesOption = None,
    layout: LayoutOption = None,
    split: SplitOption = "test",
    device: DeviceOption = "auto",
    dtype: DTypeOption = "auto",
) -> None:
    """Learn prompts on a data set with masks. Beside the prompts: the log, the loss curve and the state to go on from.

    Every picture is encoded once, unless the method changes the vision tower (--image-tokens). The prompts are written
    after each epoch; after an interrupt the same command goes on with the next.
    """
    from tipsomaly.studies import training

    given: dict[str, Any] = {"objective": objective, "tokens": tokens, "ensemble": ensemble}
    given |= {"rows": rows, "image_tokens": image_tokens, "pool": pool, "alpha": alpha, "beta": beta}
    given["reconstruction_weight"] = reconstruction_weight
    given = {name: value for name, value in given.items() if value is not None}
    if odd := given.keys() - OPTIONS_OF[method]:
        fail(f"--{min(odd).replace('_', '-')} is no option of the method {method}", 2)
    samples, layout_name, _ = read_samples(root, layout, split, classes, "industrial")
    if not any(sample.mask for sample in samples):
        fail(f"{printable(root)}: this data set has no masks, and training needs them", 1)
    read_from: dict[str, Any] = {"readout": readout} if readout else {}
    pipe = load_pipeline(model, None, device, dtype, image_size, "industrial", "fixed", **read_from)
    context.with_resource(only_writer(output.parent, f".{output.stem[:80]}.lock"))
    kind = METHODS[method]
    seed = kind.RECIPE.seed if seed is None else seed
    if kind.RECIPE.shuffle:
        samples = training.shuffled(samples, seed)
    if kind is Dapo:
        several, samples = len(samples), of_one_kind(samples)
        if several > len(samples):
            print(f"{several - len(samples)} pictures have several kinds of defects: left out", file=sys.stderr)
        given["kinds"] = all_kinds(samples)
    metadata = {
        "name": output.stem,
        "backbone": Path(model).resolve().name,
        "trained_on": f"{root.resolve().name} ({layout_name}, {split})",
        "pictures": len(samples),
        "seed": seed,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "image_size": "x".join(map(str, pipe.image_size)),
        **read_from,
    }
    metadata = {key: str(value) for key, value in metadata.items()}
    temperature = pipe.tips.config.temperature
    start = kind.start(pipe.tips.config, temperature=temperature, seed=seed, metadata=metadata, **given)
    if start.image_tokens is None:
        batches: training.Features | training.Pixels = training.Features(
            pipe, samples, batch_size, cache, progress=True
        )
    else:
        batches = training.Pixels(pipe, samples, batch_size)
    prompts = training.train(pipe, batches, output, start, epochs=epochs, learning_rate=learning_rate, seed=seed)
    numbers = sum(tensor.numel() for tensor in prompts.tensors().values())
    print(f"{output}: {method}, {numbers:,} numbers, {prompts.metadata['epochs']} epochs of {len(samples)} pictures")


@app.command()
def calibrate(
    context: typer.Context,
    normals: Annotated[list[str], typer.Argument(help="Normal pictures: files, folders or globs.", callback=not_empty)],
    target_fpr: Annotated[float, typer.Option(help="Share of normal pictures that may be called anomalous.")] = 0.01,
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    class_name: ClassOption = "object",
    domain: DomainOption = "industrial",
    mode: ModeOption = None,
    image_size: SizeOption = None,
    sigma: SigmaOption = SIGMA,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    keep_aspect: AspectOption = False,
    output: OutputOption = Path("."),
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
    dtype: DTypeOption = "auto",
) -> None:
    """Find the thresholds above which a picture, and a pixel, is anomalous, from normal pictures of one class.

    DIR/calibration.json holds them, for `tipsomaly detect --calibration` with the same options.
    """
    from tipsomaly.studies.calibrate import calibrate as calibrate_pipeline

    if not 0 < target_fpr < 1:
        fail(f"--target-fpr must be between 0 and 1, not {target_fpr}", 2)
    images = find_pictures(normals)
    tiling: dict[str, Any] = {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
    pipe = load_pipeline(model, prompts, device, dtype, image_size, domain, mode, sigma, context=context, **tiling)
    found = calibrate_pipeline(pipe, images, class_name, target_fpr=target_fpr, batch_size=batch_size, progress=True)
    if found.pictures < 1 / target_fpr:
        few = f"a false-positive rate of {target_fpr:g} takes at least {1 / target_fpr:.0f} normal pictures"
        print(f"warning: {few}; these are {found.pictures}: the threshold is above all of them", file=sys.stderr)
    path = output / "calibration.json"
    found.save(path)
    print(f"{path}: picture {found.image_threshold:.4f}, pixel {found.pixel_threshold:.4f}, {found.pictures} pictures")


@app.command()
def ablate(
    context: typer.Context,
    root: RootArgument,
    train_root: Annotated[
        Path | None, typer.Option("--train", metavar="ROOT", help="Another data set, to train prompts on.")
    ] = None,
    method: Annotated[str, one_of(METHODS, "Whose ablations.")] = "tipsomaly",
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    domain: DataDomainOption = None,
    image_size: SizeOption = None,
    sigma: SigmaOption = SIGMA,
    classes: ClassesOption = None,
    class_names: ClassNamesOption = None,
    layout: LayoutOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of trained prompts; default: the method's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Where trainings begin; default: the method's.")] = None,
    output: OutputOption = Path("results"),
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DTypeOption = "auto",
) -> None:
    """The paper's tables 2a, 2c, 6 and 7 on a data set, in one pass; with --train also table 2b and figure 3. With
    --method dapo or cops what that method's parts, sizes and constants are good for.

    DIR gets ablation.md, ablation.json and a figure for each table.
    """
    from tipsomaly.studies import ablation, ablation_methods

    own = method == "tipsomaly"
    if not own and (prompts or not train_root):
        fail(f"--method {method} trains all of its prompts: it needs --train and takes no --prompts", 2)
    samples, _, domain = read_samples(root, layout, "test", classes, domain, class_names)
    mode: Mode | None = None if own else "fixed"
    pipe = load_pipeline(model, prompts, device, dtype, image_size, domain, mode, sigma)
    context.with_resource(only_writer(output))
    train_samples = read_dataset(train_root) if train_root else []
    known = {sample.image.resolve() for sample in train_samples}
    if twice := sum(sample.image.resolve() in known for sample in samples):
        print(
            f"warning: {twice} pictures are trained on and tested on, which flatters trained prompts", file=sys.stderr
        )
    run = ablation.ablate if own else ablation_methods.ABLATIONS[method]
    studies = run(pipe, samples, train_samples, batch_size=batch_size, epochs=epochs, seed=seed, progress=True)
    ablation.save(studies, output)
    print("\n".join(study.markdown() for study in studies.values()), end="")
