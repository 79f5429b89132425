"""`tipsomaly evaluate` and `ablate`: how well a model does on a data set."""

import sys
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tipsomaly.cli.options import (
    BatchOption,
    ClassesOption,
    ClassNamesOption,
    DataDomainOption,
    DeviceOption,
    DTypeOption,
    EvidenceOption,
    FormatsOption,
    LayoutOption,
    ModelOption,
    ModeOption,
    OutputOption,
    PromptsOption,
    ReadoutOption,
    ReferenceOption,
    RootArgument,
    SigmaOption,
    SizeOption,
    SplitOption,
    TopOption,
    app,
    choose_formats,
    class_words,
    fail,
    load_pipeline,
    not_empty,
    one_of,
    read_samples,
    reference_options,
    split_kinds,
)
from tipsomaly.data.hugging_face import SCHEME, HubDataset
from tipsomaly.data.labelled import save_labelled
from tipsomaly.data.layouts import read_dataset
from tipsomaly.data.samples import by_class
from tipsomaly.data.words import call
from tipsomaly.detection.formats import FORMATS, Stems
from tipsomaly.detection.scoring import SIGMA, STRATEGIES
from tipsomaly.files import only_writer
from tipsomaly.prompts.methods import METHODS
from tipsomaly.prompts.strategy import Mode

OF_CLASS = ":class"
"""What `--kinds` is without a value."""


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
    root: Annotated[
        str,
        typer.Argument(help="The folder of a data set, or hf://org/name[/config][:split].", callback=not_empty),
    ],
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
    top: TopOption = None,
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

    Of a data set of Hugging Face the pictures are first written into DIR/pictures. It needs a column that says what is
    defective ("label" or the like); masks and classes are taken if there are columns of them.

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
    folder = save_labelled(HubDataset(root), output / "pictures") if root.startswith(SCHEME) else Path(root)
    samples, layout_name, domain = read_samples(folder, layout, split, classes, domain, class_names)
    context.with_resource(only_writer(output))
    if shots:
        if methods or kinds or worst or gallery or reference or chosen:
            fail("--shots goes with none of --methods, --kinds, --worst, --gallery, --reference and --format", 2)
        normals = call(read_dataset(folder, layout_name, "train", classes), class_words(class_names))
        how: dict[str, Any] = {"readout": readout, "top": top}
        pipe = load_pipeline(model, prompts, device, dtype, image_size, domain, mode, sigma, **how)
        found = evaluate_shots(pipe, samples, normals, shots, seeds, batch_size=batch_size, progress=True)
        found.save(output)
        print(found.markdown(), end="")
        return
    own_kinds = None if kinds == OF_CLASS else split_kinds(kinds)
    more = {"kinds": own_kinds, "readout": readout, "top": top, **reference_options(reference, evidence)}
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
def ablate(
    context: typer.Context,
    root: RootArgument,
    train_root: Annotated[
        Path | None, typer.Option("--train", metavar="ROOT", help="Another data set, to train prompts on.")
    ] = None,
    method: Annotated[str, one_of(METHODS, "Whose ablations.")] = "tipsomaly",
    readouts: Annotated[
        bool, typer.Option("--readouts", help="Instead: tokens or values, in windows or not, by which prompts.")
    ] = False,
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
    --method dapo or cops what that method's parts, sizes and constants are good for; with --readouts what patches are
    best read from, in one look or in windows of 448 pixels, by fixed prompts and by ones that are trained for it.

    DIR gets ablation.md, ablation.json and a figure for each table.
    """
    from tipsomaly.studies import ablation, ablation_methods, ablation_readouts

    own = method == "tipsomaly" and not readouts
    if method not in {"tipsomaly", *ablation_methods.ABLATIONS}:
        fail(f"there is no ablation of {method}: choose tipsomaly, {', '.join(ablation_methods.ABLATIONS)}", 2)
    if readouts and method != "tipsomaly":
        fail("--readouts goes without --method", 2)
    if not own and (prompts or not train_root):
        asked = "--readouts" if readouts else f"--method {method}"
        fail(f"{asked} trains all of its prompts: it needs --train and takes no --prompts", 2)
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
    runs = {"tipsomaly": ablation_readouts.ablate_readouts if readouts else ablation.ablate}
    run = (runs | ablation_methods.ABLATIONS)[method]
    studies = run(pipe, samples, train_samples, batch_size=batch_size, epochs=epochs, seed=seed, progress=True)
    ablation.save(studies, output)
    print("\n".join(study.markdown() for study in studies.values()), end="")
