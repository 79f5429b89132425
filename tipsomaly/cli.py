"""The `tipsomaly` command. Exit status: 0 all good, 1 when an input failed, 2 for wrong usage."""

import glob
import json
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn

import torch
import typer
from tqdm import tqdm

from tipsomaly import __version__, visualization
from tipsomaly.catalogue import BACKBONES, ModelError
from tipsomaly.datasets import LAYOUTS, DatasetError, Sample, find_layout, read_dataset
from tipsomaly.datasets import domain as domain_of
from tipsomaly.hub import BUNDLED, ModelFolder, where_cached
from tipsomaly.images import SUFFIXES, ImageError, printable
from tipsomaly.pipeline import DTYPES, MODES, Pipeline
from tipsomaly.prompts import ENSEMBLES, LearnedPrompts, clean_class_name
from tipsomaly.result import Result
from tipsomaly.scoring import SIGMA, STRATEGIES
from tipsomaly.tiling import SMALLEST
from tipsomaly.tips import Tips
from tipsomaly.training import TrainingError

app = typer.Typer(
    help="Zero-shot visual anomaly detection: is the thing on this picture defective, and where?",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _class_name(name: str) -> str:
    try:
        return clean_class_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Domain = Enum("Domain", {name: name for name in ENSEMBLES}, type=str)
Mode = Enum("Mode", {name: name for name in MODES}, type=str)
Strategy = Enum("Strategy", {name: name for name in STRATEGIES}, type=str)
Objective = Enum("Objective", {name: name for name in ("local", "global", "both")}, type=str)
Sentences = Enum("Sentences", {name: name for name in (*ENSEMBLES, "paper")}, type=str)
LayoutName = Enum("LayoutName", {name: name for name in LAYOUTS}, type=str)
Split = Enum("Split", {name: name for name in ("test", "train")}, type=str)
Engine = Enum("Engine", {name: name for name in ("local", "ray")}, type=str)
FileFormat = Enum("FileFormat", {name: name for name in ("parquet", "jsonl")}, type=str)
DType = Enum("DType", {name: name for name in ("auto", "fastest", *DTYPES)}, type=str)
FileDType = Enum("FileDType", {name: name for name in ("auto", *DTYPES)}, type=str)

ModelOption = Annotated[
    str, typer.Option(help="A name of `tipsomaly models`, a model folder, or org/name[@revision] on the Hub.")
]
PromptsOption = Annotated[
    str | None, typer.Option(help="A prompt set of the model, a .safetensors file, or org/name[:set] on the Hub.")
]
ClassOption = Annotated[str, typer.Option(help="What is on the pictures, in a word or two.", callback=_class_name)]
DomainOption = Annotated[Domain, typer.Option(help="Which fixed prompts describe normal and abnormal.")]
SizeOption = Annotated[
    int | None, typer.Option(metavar="PX", help="Side that pictures are resized to; default: the model's.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DTypeOption = Annotated[DType, typer.Option(help="Number format of the vision tower.")]
ModeOption = Annotated[Mode, typer.Option(help="Which prompts score: the paper's are decoupled.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures encoded at once.")]
SigmaOption = Annotated[float, typer.Option(min=0, help="Smoothing of the map, in pixels of the input size.")]
TileOption = Annotated[
    int | None,
    typer.Option(metavar="PX", min=SMALLEST, help="Also cut larger pictures into tiles of this side, blended."),
]
OverlapOption = Annotated[float, typer.Option(min=0, max=0.75, help="Share of a tile that the next one covers too.")]
AspectOption = Annotated[
    bool, typer.Option("--keep-aspect", help="Do not squash pictures to a square, as the paper does.")
]
RootArgument = Annotated[Path, typer.Argument(help="The folder of a data set.")]
LayoutOption = Annotated[LayoutName | None, typer.Option(help="How the data set lies on disk; default: recognised.")]
SplitOption = Annotated[Split, typer.Option(help="The paper also trains on the test split, of another data set.")]
ClassesOption = Annotated[list[str] | None, typer.Option("--class", help="Only this class of it; may be repeated.")]
DataDomainOption = Annotated[Domain | None, typer.Option(help="Default: industrial or medical, after the classes.")]
OutputOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for maps, overlays and results.")]


@app.command()
def detect(
    images: Annotated[list[str], typer.Argument(help="Files, folders (searched recursively) or globs.")],
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    class_name: ClassOption = "object",
    domain: DomainOption = Domain.industrial,
    mode: ModeOption = Mode.decoupled,
    image_size: SizeOption = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Thresholds from `tipsomaly calibrate`, for a verdict.")
    ] = None,
    sigma: SigmaOption = SIGMA,
    tile: TileOption = None,
    overlap: OverlapOption = 0.25,
    keep_aspect: AspectOption = False,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for maps, overlays and results.")] = None,
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.auto,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model first: tens of seconds, for many pictures on a GPU.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a picture instead of a table.")
    ] = False,
    engine: Annotated[Engine, typer.Option(help="ray: all GPUs or CPUs of a machine or a cluster.")] = Engine.local,
    actors: Annotated[
        int | None, typer.Option(min=1, help="With ray: how many models score; default: one a GPU, else one a CPU.")
    ] = None,
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="With ray: of the files of results.")
    ] = FileFormat.parquet,
) -> None:
    """Score pictures and show where they are defective.

    With --output, DIR gets a map (.npy, float32) and an overlay (.png) a picture, and results.jsonl, written as it
    goes. A picture that cannot be used is a line with its error and does not stop the others.

    With --engine ray, IMAGES may also be Parquet files, and IMAGES and DIR URIs of buckets; DIR gets files of scores
    alone, and the same command again scores what is not yet in them.
    """
    if engine is Engine.ray:
        if compiled or as_json:
            _fail("--compile and --json are not for --engine ray", 2)
        options = {"prompts": prompts, "image_size": image_size, "domain": domain.value, "mode": mode.value}
        options |= {"sigma": sigma, "calibration": calibration, "model": model, "device": device, "dtype": dtype.value}
        options |= {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
        _detect_with_ray(images, output, class_name, file_format, actors=actors, batch_size=batch_size, **options)
        return
    folder = Path(output) if output else None
    sources = _find(images)
    tiling = {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
    pipe = _load(model, prompts, device, dtype, image_size, domain, mode, sigma, calibration, **tiling)
    if compiled:
        print(f"compiled in {pipe.compile(batch_size):.1f} s", file=sys.stderr)
    outcomes = pipe.stream(sources, class_name, batch_size=batch_size, errors="yield")
    failed = 0
    with _open_results(folder) as lines:
        stems = _Stems()
        bar = tqdm(zip(sources, outcomes, strict=True), total=len(sources), unit="picture", disable=None)
        for source, outcome in bar:
            record = {"image": str(source)}
            if isinstance(outcome, Result):
                try:
                    record |= outcome.record()
                    if folder:  # the files are named relative to the folder of results.jsonl
                        record |= {kind: path.name for kind, path in outcome.save(folder, stems(source)).items()}
                except ImageError as error:  # the file changed since it was scored
                    outcome = error
            if isinstance(outcome, ImageError):
                failed += 1
                record["error"] = str(outcome)
                tqdm.write(f"error: {outcome}", file=sys.stderr)
            if lines:
                print(json.dumps(record), file=lines, flush=True)
            if as_json:
                tqdm.write(json.dumps(record), file=sys.stdout)
            elif isinstance(outcome, Result):
                parts = f"{outcome.score:.4f} = global {outcome.global_score:.4f} + local {outcome.local_score:.4f}"
                verdict = {None: "", True: "  anomalous", False: "  normal   "}[outcome.is_anomalous]
                tqdm.write(f"{parts}{verdict}  {printable(source)}", file=sys.stdout)
    if failed:
        print(f"{failed} of {len(sources)} pictures failed", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def compare(
    image: Annotated[str, typer.Argument(help="A picture.")],
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    class_name: ClassOption = "object",
    domain: DomainOption = Domain.industrial,
    image_size: SizeOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = 0.25,
    keep_aspect: AspectOption = False,
    output: OutputOption = None,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """The decoupled-prompt ablation on one picture: fixed, learned and decoupled prompts side by side.

    With --output, DIR gets <picture>_comparison.png: the picture, then the map under each kind of prompts.
    """
    tiling = {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
    results = _load(model, prompts, device, dtype, image_size, domain, **tiling).compare(image, class_name)
    if as_json:
        scores = {
            mode: {"score": r.score, "global_score": r.global_score, "local_score": r.local_score, **r.strategies}
            for mode, r in results.items()
        }
        print(json.dumps({"image": image, **scores}))
    else:
        print(
            f"{'prompts':<10} {'score':>7} {'global':>7} {'local':>7}  "
            + " ".join(f"{s:>6}" for s in ("S1", "S2", "S3", "S4", "S5"))
        )
        for mode, r in results.items():
            strategies = " ".join(f"{value:6.4f}" for value in r.strategies.values())
            print(f"{mode:<10} {r.score:7.4f} {r.global_score:7.4f} {r.local_score:7.4f}  {strategies}")
    if output:
        output.mkdir(parents=True, exist_ok=True)
        first = next(iter(results.values()))
        pictures = [first.image, *(r.overlay() for r in results.values())]
        path = output / f"{Path(image).stem}_comparison.png"
        visualization.side_by_side(pictures, height=min(first.height, 512)).save(path)


@app.command()
def evaluate(
    root: RootArgument,
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    strategy: Annotated[Strategy, typer.Option(help="Image score of table 2c; the paper's is S5.")] = Strategy.S5,
    mode: ModeOption = Mode.decoupled,
    domain: DataDomainOption = None,
    image_size: SizeOption = None,
    sigma: SigmaOption = SIGMA,
    classes: ClassesOption = None,
    layout: LayoutOption = None,
    split: SplitOption = Split.test,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("results"),
    worst: Annotated[int, typer.Option(min=0, metavar="N", help="Draw the N worst mistakes of each kind.")] = 0,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.auto,
) -> None:
    """Score a data set: image and pixel metrics by class, next to the paper's numbers where they are known.

    DIR gets results.json, results.csv and results.md, with --worst also pictures in worst/. What was finished before an
    interrupt is in DIR/classes and is not computed again if nothing changed.
    """
    from tipsomaly.evaluation import evaluate as evaluate_samples
    from tipsomaly.evaluation import save_worst

    samples, layout_name, domain = _read(root, layout, split, classes, domain)
    pipe = _load(model, prompts, device, dtype, image_size, domain, mode, sigma)
    evaluation = evaluate_samples(
        pipe,
        samples,
        strategy=strategy.value,
        batch_size=batch_size,
        output=output,
        layout=layout_name,
        progress=True,
    )
    print(evaluation.markdown(), end="")
    if worst:
        save_worst(pipe, evaluation, samples, output / "worst", worst)


@app.command()
def train(
    root: RootArgument,
    output: Annotated[Path, typer.Option(metavar="OUT.safetensors", help="Where the prompts go.")],
    model: ModelOption = "nano",
    objective: Annotated[Objective, typer.Option(help="Loss; the paper's is local.")] = Objective.local,
    tokens: Annotated[int, typer.Option(min=1, max=16, help="Learned vectors a state.")] = 8,
    ensemble: Annotated[Sentences, typer.Option(help="Sentences behind the vectors.")] = Sentences.industrial,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    seed: int = 111,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0)] = 1e-3,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the features on disk, in float16, for the next run, too.")
    ] = None,
    image_size: SizeOption = None,
    classes: ClassesOption = None,
    layout: LayoutOption = None,
    split: SplitOption = Split.test,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.auto,
) -> None:
    """Learn prompts on a data set with masks. Beside the prompts: the log, the loss curve and the state to go on from.

    Every picture is encoded once. The prompts are written after each epoch; after an interrupt the same command goes
    on with the next.
    """
    from tipsomaly import training

    samples, layout_name, _ = _read(root, layout, split, classes, Domain.industrial)
    if not any(sample.mask for sample in samples):
        _fail(f"{printable(root)}: this data set has no masks, and training needs them", 1)
    pipe = _load(model, None, device, dtype, image_size, Domain.industrial, Mode.fixed)
    vectors = training.initial_prompts(pipe.tips.config.text.dim, tokens, seed)
    metadata = {
        "name": output.stem,
        "backbone": Path(model).resolve().name,
        "trained_on": f"{root.resolve().name} ({layout_name}, {split.value})",
        "pictures": len(samples),
        "tokens": tokens,
        "seed": seed,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "image_size": "x".join(map(str, pipe.image_size)),
    }
    start = LearnedPrompts(*vectors, ensemble.value, {key: str(value) for key, value in metadata.items()})
    features = training.Features(pipe, samples, batch_size, cache, progress=True)
    training.train(pipe, features, output, start, epochs=epochs, objective=objective.value, learning_rate=learning_rate)
    print(f"{output}: {tokens} vectors a state, {epochs} epochs of {len(samples)} pictures")


@app.command()
def calibrate(
    normals: Annotated[list[str], typer.Argument(help="Normal pictures: files, folders or globs.")],
    target_fpr: Annotated[float, typer.Option(help="Share of normal pictures that may be called anomalous.")] = 0.01,
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    class_name: ClassOption = "object",
    domain: DomainOption = Domain.industrial,
    mode: ModeOption = Mode.decoupled,
    image_size: SizeOption = None,
    sigma: SigmaOption = SIGMA,
    tile: TileOption = None,
    overlap: OverlapOption = 0.25,
    keep_aspect: AspectOption = False,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for calibration.json.")] = Path("."),
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.auto,
) -> None:
    """Find the thresholds above which a picture, and a pixel, is anomalous, from normal pictures of one class.

    DIR/calibration.json holds them, for `tipsomaly detect --calibration` with the same options.
    """
    from tipsomaly.calibration import calibrate as calibrate_pipeline

    if not 0 < target_fpr < 1:
        _fail(f"--target-fpr must be between 0 and 1, not {target_fpr}", 2)
    images = _find(normals)
    tiling = {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
    pipe = _load(model, prompts, device, dtype, image_size, domain, mode, sigma, **tiling)
    found = calibrate_pipeline(pipe, images, class_name, target_fpr=target_fpr, batch_size=batch_size, progress=True)
    if found.pictures < 1 / target_fpr:
        few = f"a false-positive rate of {target_fpr:g} takes at least {1 / target_fpr:.0f} normal pictures"
        print(f"warning: {few}; these are {found.pictures}: the threshold is above all of them", file=sys.stderr)
    path = output / "calibration.json"
    found.save(path)
    print(f"{path}: picture {found.image_threshold:.4f}, pixel {found.pixel_threshold:.4f}, {found.pictures} pictures")


@app.command()
def ablate(
    root: RootArgument,
    train_root: Annotated[
        Path | None, typer.Option("--train", metavar="ROOT", help="Another data set, to train the prompts of 2b on.")
    ] = None,
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    domain: DataDomainOption = None,
    image_size: SizeOption = None,
    sigma: SigmaOption = SIGMA,
    classes: ClassesOption = None,
    layout: LayoutOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the trained prompts.")] = 2,
    seed: int = 111,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for tables and figures.")] = Path("results"),
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.auto,
) -> None:
    """The paper's tables 2a, 2c, 6 and 7 on a data set, in one pass; with --train also table 2b and figure 3.

    DIR gets ablation.md, ablation.json and a figure for each table.
    """
    from tipsomaly import ablation

    samples, _, domain = _read(root, layout, Split.test, classes, domain)
    pipe = _load(model, prompts, device, dtype, image_size, domain, sigma=sigma)
    train_samples = read_dataset(train_root) if train_root else None
    known = {sample.image.resolve() for sample in train_samples or ()}
    if twice := sum(sample.image.resolve() in known for sample in samples):
        print(
            f"warning: {twice} pictures are trained on and tested on, which flatters 2b and figure 3", file=sys.stderr
        )
    studies = ablation.ablate(
        pipe, samples, train_samples, batch_size=batch_size, epochs=epochs, seed=seed, progress=True
    )
    ablation.save(studies, output)
    print("\n".join(study.markdown() for study in studies.values()), end="")


@app.command()
def convert(
    vision: Annotated[Path, typer.Argument(metavar="VISION.npz")],
    text: Annotated[Path, typer.Argument(metavar="TEXT.npz")],
    tokenizer: Annotated[Path, typer.Argument(metavar="TOKENIZER.model")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR")],
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads; default: width / 64, SO400m 16.")] = None,
    text_heads: Annotated[int | None, typer.Option(min=1, help="Those of the text tower, where they differ.")] = None,
    image_size: SizeOption = None,
    dtype: Annotated[
        FileDType,
        typer.Option(help="Number format of every array; auto keeps each as it is, half precision halves the file."),
    ] = FileDType.auto,
) -> None:
    """Convert a released TIPS checkpoint (two .npz files and a tokenizer) to a model folder."""
    from tipsomaly.convert import convert as convert_checkpoint

    wanted = None if dtype == FileDType.auto else dtype.value
    try:
        config = convert_checkpoint(
            vision, text, tokenizer, out, heads=heads, text_heads=text_heads, image_size=image_size, dtype=wanted
        )
    except ValueError as error:
        _fail(error, 1)
    v, t = config.vision, config.text
    print(f"{out}: width {v.dim}, vision {v.depth} layers, text {t.depth} layers, {v.heads} heads, {v.image_size} px")


@app.command()
def convert_prompts(
    source: Annotated[Path, typer.Argument(metavar="IN.pth")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors")],
    ensemble: Annotated[
        str, typer.Option(help="The sentences they were trained before: a domain, or paper.")
    ] = "industrial",
    backbone: Annotated[str | None, typer.Option(help="The model that they were trained on.")] = None,
    trained_on: Annotated[str | None, typer.Option(help="The data set that they were trained on.")] = None,
) -> None:
    """Convert released learned prompts (a pickle of tensors) to safetensors. The pickle cannot run code."""
    from tipsomaly.convert import convert_prompts as convert_pickle

    metadata = {"backbone": backbone, "trained_on": trained_on}
    try:
        learned = convert_pickle(
            source, out, prompt_ensemble=ensemble, metadata={k: v for k, v in metadata.items() if v}
        )
    except ValueError as error:
        _fail(error, 1)
    print(f"{out}: {learned.normal.shape[0]} vectors a state, {learned.normal.shape[1]} wide")


@app.command()
def models() -> None:
    """List the models that have a name: parameters (vision + text, in millions), width, default input size, released
    prompts, licence, and where each is cached. Any model folder and any org/name on the Hub does as well."""
    rows = [("NAME", "PARAMETERS", "WIDTH", "PIXELS", "PROMPTS", "LICENCE", "CACHED")]
    for name, path in BUNDLED.items():
        folder = ModelFolder(path, name)
        config = folder.read_config()
        with torch.device("meta"):
            towers = Tips(config)
        counts = [sum(p.numel() for p in t.parameters()) / 1e6 for t in (towers.vision_encoder, towers.text_encoder)]
        size, prompts = folder.read_image_size(config), ", ".join(folder.prompt_sets()) or "-"
        rows.append((name, f"{counts[0]:.1f} + {counts[1]:.1f}", config.vision.dim, size, prompts, "MIT", "bundled"))
    for name, b in BACKBONES.items():
        prompts, cached = ", ".join(b.prompts) or "-", where_cached(name) or "-"
        rows.append(
            (name, f"{b.parameters[0]} + {b.parameters[1]}", b.width, b.default_size, prompts, b.licence, cached)
        )
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nWithout prompts a model needs --prompts (`tipsomaly train` makes some) or --mode fixed.")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tipsomaly {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    pass


def _load(
    model: str,
    prompts: str | None,
    device: str,
    dtype: DType,
    image_size: int | None,
    domain: Domain,
    mode: Mode = Mode.decoupled,
    sigma: float = SIGMA,
    calibration: Path | None = None,
    **tiling: Any,
) -> Pipeline:
    return Pipeline.from_pretrained(
        model,
        prompts=prompts,
        device=device,
        dtype=dtype.value,
        image_size=image_size,
        domain=domain.value,
        mode=mode.value,
        sigma=sigma,
        calibration=calibration,
        **tiling,
    )


def _read(
    root: Path, layout: LayoutName | None, split: Split, classes: list[str] | None, domain: Domain | None
) -> tuple[list[Sample], str, Domain]:
    """The samples of a data set, the name of its layout, and the domain of its classes if none is given."""
    name = find_layout(root, layout and layout.value)[0]
    samples = read_dataset(root, name, split.value, classes)
    domains = {domain_of(sample.class_name) for sample in samples}
    if domain is None and len(domains) > 1:
        _fail("some of these classes are medical and some industrial: choose with --class, or name the --domain", 2)
    return samples, name, domain or Domain(domains.pop())


def _find(patterns: list[str]) -> list[Path]:
    """The pictures that files, folders and globs name, each once. A file named by itself is taken whatever its suffix
    is, and a name that does not exist stays in the list, so that it gets its line of error."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                _fail(f"{printable(path)}: no pictures in this folder", 2)
            found |= dict.fromkeys(inside)
        elif (matches := _matches(pattern)) is not None:
            found |= dict.fromkeys(p for p in map(Path, matches) if p.is_file())
        else:
            found[path] = None
    return list(found)


def _matches(pattern: str) -> list[str] | None:
    """The names that match a glob, sorted, at least one; None for what is no glob or a name that exists."""
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return None
    return sorted(glob.glob(pattern, recursive=True)) or _fail(f"{pattern}: nothing matches", 2)


def _detect_with_ray(
    sources: list[str], output: str | None, class_name: str, file_format: FileFormat, **options: Any
) -> None:
    if output is None:
        _fail("--engine ray needs --output DIR for the scores", 2)
    try:
        from tipsomaly import distributed
    except ModuleNotFoundError as error:
        _fail(f'--engine ray needs {error.name}: pip install "ray[data]"', 2)
    names = [name for source in sources for name in ("://" not in source and _matches(source)) or [source]]
    done = distributed.detect(names, output, class_name, file_format=file_format.value, **options)
    before = f", {done.before} were there before" if done.before else ""
    print(f"{output}: {done.written} pictures scored{before}")
    if done.failed:
        print(f"{done.failed} of {done.written} pictures failed: see their error", file=sys.stderr)
        raise typer.Exit(1)


class _Stems:
    """A file-name stem for each picture, unique within a run: pictures of one name come from several folders."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}  # and the last number that was put after each

    def __call__(self, source: Path) -> str:
        # Room for the endings we add; what is not UTF-8 in a name is left out.
        stem = base = source.stem.encode(errors="ignore")[:200].decode(errors="ignore") or "image"
        number = self.used.get(base.lower(), 1)
        while stem.lower() in self.used:
            number += 1
            stem = f"{base}_{number}"
        self.used[base.lower()] = number
        self.used[stem.lower()] = 1
        return stem


def _open_results(output: Path | None) -> AbstractContextManager[IO[str] | None]:
    if output is None:
        return nullcontext()
    output.mkdir(parents=True, exist_ok=True)
    return (output / "results.jsonl").open("w", encoding="utf-8")


def _fail(error: object, status: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(status)


def main() -> None:
    """Run the command; a mistake of the user's is one line on stderr, never a traceback."""
    warnings.filterwarnings("ignore", module="PIL")  # a picture is used or refused; half-words would blur that
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (DatasetError, ImageError, TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
