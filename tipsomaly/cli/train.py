"""`tipsomaly train` and `calibrate`: prompts and thresholds from a data set."""

import inspect
import sys
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from tipsomaly.cli.options import (
    AspectOption,
    BatchOption,
    ClassesOption,
    ClassOption,
    DeviceOption,
    DomainOption,
    DTypeOption,
    IgnoreOption,
    LayoutOption,
    MapByOption,
    ModelOption,
    ModeOption,
    OutputOption,
    OverlapOption,
    PromptsFileOption,
    PromptsOption,
    ReadoutOption,
    RoiOption,
    RootArgument,
    SigmaOption,
    SizeOption,
    SplitOption,
    TileOption,
    TopOption,
    app,
    fail,
    load_pipeline,
    not_empty,
    one_of,
    read_samples,
)
from tipsomaly.cli.sources import find_sources, pictures_of
from tipsomaly.data.kinds import all_kinds, of_one_kind
from tipsomaly.detection.scoring import SIGMA
from tipsomaly.errors import printable
from tipsomaly.files import only_writer
from tipsomaly.models.catalogue import TRAINING_DATA
from tipsomaly.models.hub import short_name
from tipsomaly.prompts.method import Option
from tipsomaly.prompts.methods import METHODS


def _published(part: str) -> str:
    values = {name: f"{getattr(method.RECIPE, part):g}" for name, method in METHODS.items()}
    distinct = set(values.values())
    return ", ".join(f"{name} {value}" for name, value in values.items()) if len(distinct) > 1 else distinct.pop()


def _with_options_of_methods(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options that only some methods have, by keyword."""
    own: dict[str, list[tuple[str, Option]]] = {}
    for name, method in METHODS.items():
        for key, option in method.OPTIONS.items():
            own.setdefault(key, []).append((name, option))
    signature = inspect.signature(command)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for key, options in own.items():
        help, (kind, _, low, high) = ". ".join(f"{name}: {option.help}" for name, option in options), options[0][1]
        if isinstance(kind, tuple):
            annotation: Any = Annotated[str | None, one_of(kind, help)]
        else:
            annotation = Annotated[kind | None, typer.Option(min=low, max=high, help=help)]
        parameters.append(Parameter(key, Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


@app.command()
@_with_options_of_methods
def train(
    context: typer.Context,
    root: RootArgument,
    output: PromptsFileOption,
    model: ModelOption = "nano",
    method: Annotated[str, one_of(METHODS, "Whose prompts; each has its own published recipe.")] = "tipsomaly",
    epochs: Annotated[int | None, typer.Option(min=1, help=f"Default: {_published('epochs')}.")] = None,
    seed: Annotated[int | None, typer.Option(help=f"Default: {_published('seed')}.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help=f"Pictures a step; default: {_published('batch_size')}.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help=f"Default: {_published('learning_rate')}.")] = None,
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
    **own: Any,
) -> None:
    """Learn prompts on a data set with masks. Beside the prompts: the log, the loss curve and the state to go on from.

    Every picture is encoded once, unless the method changes the vision tower (--image-tokens). The prompts are written
    after each epoch; after an interrupt the same command goes on with the next.
    """
    from tipsomaly.studies import paper, training

    kind = METHODS[method]
    given = {name: value for name, value in own.items() if value is not None}
    if odd := given.keys() - kind.OPTIONS.keys():
        fail(f"--{min(odd).replace('_', '-')} is no option of the method {method}", 2)
    samples, layout_name, _ = read_samples(root, layout, split, classes, "industrial")
    data_set = paper.paper_data_set(samples)
    if not any(sample.mask for sample in samples):
        fail(f"{printable(root)}: this data set has no masks, and training needs them", 1)
    read_from: dict[str, Any] = {"readout": readout} if readout else {}
    pipe = load_pipeline(model, None, device, dtype, image_size, "industrial", "fixed", **read_from)
    context.with_resource(only_writer(output.parent, f".{output.stem[:80]}.lock"))
    seed = kind.RECIPE.seed if seed is None else seed
    batch_size = kind.RECIPE.batch_size if batch_size is None else batch_size
    learning_rate = kind.RECIPE.learning_rate if learning_rate is None else learning_rate
    if kind.RECIPE.shuffle:
        samples = training.shuffled(samples, seed)
    if kind.TELLS_KINDS:
        several, samples = len(samples), of_one_kind(samples)
        if several > len(samples):
            print(f"{several - len(samples)} pictures have several kinds of defects: left out", file=sys.stderr)
        given["kinds"] = all_kinds(samples)
    metadata = {
        "name": output.stem,
        "backbone": short_name(model),
        "trained_on": f"{root.resolve().name} ({layout_name}, {split})",
        "pictures": len(samples),
        "seed": seed,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "image_size": "x".join(map(str, pipe.image_size)),
        **read_from,
        **({"data_set": data_set} if data_set else {}),
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
    if data_set in TRAINING_DATA:
        print(f"learned on {data_set} ({TRAINING_DATA[data_set].terms})")


@app.command()
def calibrate(
    context: typer.Context,
    normals: Annotated[
        list[str],
        typer.Argument(
            help="Normal pictures: files, folders, globs, zip and tar archives, or hf:// data sets.", callback=not_empty
        ),
    ],
    target_fpr: Annotated[float, typer.Option(help="Share of normal pictures that may be called anomalous.")] = 0.01,
    map_by: MapByOption = "pixels",
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    class_name: ClassOption = "object",
    domain: DomainOption = "industrial",
    mode: ModeOption = None,
    image_size: SizeOption = None,
    sigma: SigmaOption = SIGMA,
    top: TopOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    keep_aspect: AspectOption = False,
    roi: RoiOption = None,
    ignore: IgnoreOption = None,
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
    images = pictures_of(find_sources(normals))
    more: dict[str, Any] = {"top": top, "tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
    more |= {"roi": roi, "ignore": ignore}
    pipe = load_pipeline(model, prompts, device, dtype, image_size, domain, mode, sigma, context=context, **more)
    how: dict[str, Any] = {"target_fpr": target_fpr, "map_by": map_by, "batch_size": batch_size, "progress": True}
    found = calibrate_pipeline(pipe, images, class_name, **how)
    if found.pictures < 1 / target_fpr:
        few = f"a false-positive rate of {target_fpr:g} takes at least {1 / target_fpr:.0f} normal pictures"
        print(f"warning: {few}; these are {found.pictures}: the threshold is above all of them", file=sys.stderr)
    path = output / "calibration.json"
    found.save(path)
    print(f"{path}: picture {found.image_threshold:.4f}, pixel {found.pixel_threshold:.4f}, {found.pictures} pictures")
