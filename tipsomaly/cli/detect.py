"""`tipsomaly detect` and `compare`: pictures."""

import json
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from tqdm import tqdm

from tipsomaly.cli.options import (
    AspectOption,
    BatchOption,
    ClassOption,
    DeviceOption,
    Domain,
    DomainOption,
    DType,
    DTypeOption,
    Engine,
    FormatsOption,
    Mode,
    ModelOption,
    ModeOption,
    OutputOption,
    OverlapOption,
    PromptsOption,
    SigmaOption,
    SizeOption,
    TileOption,
    app,
    choose_formats,
    fail,
    find_pictures,
    load_pipeline,
    matches,
)
from tipsomaly.detection import visualization
from tipsomaly.detection.formats import FORMATS, Stems
from tipsomaly.detection.result import Result
from tipsomaly.detection.scoring import SIGMA, STRATEGIES
from tipsomaly.errors import ImageError, printable


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
    overlap: OverlapOption = None,
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
    formats: FormatsOption = None,
) -> None:
    """Score pictures and show where they are defective.

    With --output, DIR gets a map (.npy, float32) and an overlay (.png) a picture, and results.jsonl, written as it
    goes. A picture that cannot be used is a line with its error and does not stop the others. --format writes beside
    them what COCO's and YOLO's readers, Label Studio, spreadsheets (csv) or browsers (html: a report) take.

    With --engine ray, IMAGES may also be Parquet files, and IMAGES and DIR URIs of buckets; DIR gets files of scores
    alone, and the same command again scores what is not yet in them.
    """
    if engine is Engine.ray:
        if compiled or as_json:
            fail("--compile and --json are not for --engine ray", 2)
        options = {"prompts": prompts, "image_size": image_size, "domain": domain.value, "mode": mode.value}
        options |= {"sigma": sigma, "calibration": calibration, "model": model, "device": device, "dtype": dtype.value}
        options |= {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
        if len(formats or ()) > 1 or (formats and formats[0].value in FORMATS):
            fail("with --engine ray --format is parquet or jsonl", 2)
        file_format = formats[0].value if formats else "parquet"
        _detect_with_ray(images, output, class_name, file_format, actors=actors, batch_size=batch_size, **options)
        return
    folder = Path(output) if output else None
    chosen = choose_formats(formats, folder)
    sources = find_pictures(images)
    tiling = {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
    pipe = load_pipeline(model, prompts, device, dtype, image_size, domain, mode, sigma, calibration, **tiling)
    if compiled:
        print(f"compiled in {pipe.compile(batch_size):.1f} s", file=sys.stderr)
    outcomes = pipe.stream(sources, class_name, batch_size=batch_size, errors="yield")
    failed = 0
    with ExitStack() as stack:
        targets = [stack.enter_context(FORMATS[name](folder)) for name in chosen if folder]
        lines = stack.enter_context(_open_results(folder))
        stems = Stems()
        bar = tqdm(zip(sources, outcomes, strict=True), total=len(sources), unit="picture", disable=None)
        for source, outcome in bar:
            record = {"image": str(source)}
            if isinstance(outcome, Result):
                try:
                    record |= outcome.record()
                    if folder:  # the files are named relative to the folder of results.jsonl
                        stem = stems(source)
                        record |= {kind: path.name for kind, path in outcome.save(folder, stem).items()}
                        for target in targets:
                            target.add(str(source), outcome, stem)
                except ImageError as error:  # the file changed since it was scored
                    outcome = error
            if isinstance(outcome, ImageError):
                failed += 1
                record["error"] = str(outcome)
                tqdm.write(f"error: {outcome}", file=sys.stderr)
                for target in targets:
                    target.fail(str(source), str(outcome))
            if lines:
                print(json.dumps(record), file=lines, flush=True)
            if as_json:
                tqdm.write(json.dumps(record), file=sys.stdout)
            elif isinstance(outcome, Result):
                parts = f"{outcome.score:.4f} = global {outcome.global_score:.4f} + local {outcome.local_score:.4f}"
                verdict = {None: "", True: "  anomalous", False: "  normal   "}[outcome.is_anomalous]
                note = f"  ({outcome.note})" if outcome.note else ""
                tqdm.write(f"{parts}{verdict}  {printable(source)}{note}", file=sys.stdout)
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
    overlap: OverlapOption = None,
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
    results = load_pipeline(model, prompts, device, dtype, image_size, domain, **tiling).compare(image, class_name)
    if as_json:
        scores = {
            mode: {"score": r.score, "global_score": r.global_score, "local_score": r.local_score, **r.strategies}
            for mode, r in results.items()
        }
        note = next(iter(results.values())).note
        print(json.dumps({"image": image, **({"note": note} if note else {}), **scores}))
    else:
        print(f"{'prompts':<10} {'score':>7} {'global':>7} {'local':>7}  " + " ".join(f"{s:>6}" for s in STRATEGIES))
        for mode, r in results.items():
            strategies = " ".join(f"{value:6.4f}" for value in r.strategies.values())
            print(f"{mode:<10} {r.score:7.4f} {r.global_score:7.4f} {r.local_score:7.4f}  {strategies}")
        if r.note:
            print(f"note: {r.note}")
    if output:
        output.mkdir(parents=True, exist_ok=True)
        first = next(iter(results.values()))
        pictures = [first.image, *(r.overlay() for r in results.values())]
        path = output / f"{Path(image).stem}_comparison.png"
        visualization.side_by_side(pictures, height=min(first.height, 512)).save(path)


def _detect_with_ray(sources: list[str], output: str | None, class_name: str, file_format: str, **options: Any) -> None:
    if output is None:
        fail("--engine ray needs --output DIR for the scores", 2)
    try:
        from tipsomaly import distributed
    except ModuleNotFoundError as error:
        fail(f'--engine ray needs {error.name}: pip install "ray[data]"', 2)
    names = [name for source in sources for name in ("://" not in source and matches(source)) or [source]]
    done = distributed.detect(names, output, class_name, file_format=file_format, **options)
    before = f", {done.before} were there before" if done.before else ""
    print(f"{output}: {done.written} pictures scored{before}")
    if done.failed:
        print(f"{done.failed} of {done.written} pictures failed: see their error", file=sys.stderr)
        raise typer.Exit(1)


def _open_results(output: Path | None) -> AbstractContextManager[IO[str] | None]:
    if output is None:
        return nullcontext()
    output.mkdir(parents=True, exist_ok=True)
    return (output / "results.jsonl").open("w", encoding="utf-8")
