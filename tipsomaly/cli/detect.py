"""`tipsomaly detect` and `compare`: pictures."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, cast

import typer

from tipsomaly.cli.options import (
    OUTPUT,
    AreaOption,
    AspectOption,
    BatchOption,
    ClassOption,
    DeviceOption,
    DomainOption,
    DTypeOption,
    EvidenceOption,
    FormatsOption,
    IgnoreOption,
    KindsOption,
    ModelOption,
    ModeOption,
    OverlapOption,
    PromptsOption,
    ReadoutOption,
    ReferenceOption,
    RoiOption,
    SigmaOption,
    SizeOption,
    TileOption,
    TopOption,
    app,
    choose_formats,
    fail,
    folder_path,
    load_pipeline,
    matches,
    not_empty,
    one_of,
    reference_options,
    split_kinds,
)
from tipsomaly.cli.outcomes import Outcomes
from tipsomaly.cli.sources import Pictures, Source, draw_scores, find_sources, find_videos
from tipsomaly.cli.watch import THRESHOLDS, check_usage, watch
from tipsomaly.cli.webhook import Webhook
from tipsomaly.data.archives import is_archive
from tipsomaly.data.hugging_face import SCHEME
from tipsomaly.data.video import Video
from tipsomaly.detection import visualization
from tipsomaly.detection.drift import Drift
from tipsomaly.detection.exported import is_export
from tipsomaly.detection.formats import FORMATS, Csv, Format, Stems
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.records import Records, open_records, run_settings
from tipsomaly.detection.scoring import SIGMA
from tipsomaly.errors import ModelError, printable
from tipsomaly.files import file_name, to_json, whole_file


@app.command()
def detect(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders (searched recursively), globs, zip and tar archives, or hf:// data sets.",
            callback=not_empty,
        ),
    ],
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    class_name: ClassOption = "object",
    domain: DomainOption = "industrial",
    mode: ModeOption = None,
    kinds: KindsOption = None,
    readout: ReadoutOption = None,
    image_size: SizeOption = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Thresholds from `tipsomaly calibrate`, for a verdict.")
    ] = None,
    reference: ReferenceOption = None,
    evidence: EvidenceOption = "auto",
    mutual: Annotated[
        bool, typer.Option("--mutual", help="Unlabelled pictures of one product also score each other.")
    ] = False,
    sigma: SigmaOption = SIGMA,
    top: TopOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    keep_aspect: AspectOption = False,
    roi: RoiOption = None,
    ignore: IgnoreOption = None,
    min_area: AreaOption = 0,
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder for maps, overlays and results.", callback=not_empty)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever results are in DIR.")] = False,
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
    dtype: DTypeOption = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model first: tens of seconds, for many pictures on a GPU.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a picture instead of a table.")
    ] = False,
    watched: Annotated[
        bool, typer.Option("--watch", help="Go on with pictures that come into the folders, until Ctrl-C.")
    ] = False,
    video: Annotated[
        bool, typer.Option("--video", help="IMAGES are videos, streams (rtsp://...) or cameras (camera:0).")
    ] = False,
    fps: Annotated[float | None, typer.Option(help="With --video: frames of a second to score; default: 1.")] = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="With --watch: also send each result there, as JSON by POST.")
    ] = None,
    engine: Annotated[
        str, one_of(("local", "auto", "ray"), "auto: the fastest here; ray: many GPUs or CPUs.")
    ] = "local",
    actors: Annotated[
        int | None, typer.Option(min=1, help="With ray: how many models score; default: one a GPU, else one a CPU.")
    ] = None,
    formats: FormatsOption = None,
) -> None:
    """Score pictures and show where they are defective.

    With --output, DIR gets a map (.npy, float32) and an overlay (.png) a picture, and results.jsonl, written as it
    goes. The same command again scores what has no result there yet. A picture that cannot be used is a line with its
    error and does not stop the others. --format writes beside them what COCO's and YOLO's readers, Label Studio,
    spreadsheets (csv) or browsers (html: a report) take.

    With --watch each picture that comes into the folders is scored once it is whole, until Ctrl-C; of one name there is
    one result. --calibration FILE may be replaced meanwhile. What --webhook URL does not take is kept and sent later.

    With --video frames are scored; each record has its time in seconds, and DIR gets a strip of the scores over time of
    each video. A camera is scored until Ctrl-C.

    With --engine ray, IMAGES may also be Parquet files, and IMAGES and DIR URIs of buckets; DIR gets files of scores
    alone, and the same command again scores what is not yet in them.

    With --reference a few normal pictures are compared with, and give a verdict and a p-value; if the latest pictures
    are no longer like them, that is said at the end.

    With --roi and --ignore nothing outside of a region changes any number: calibrate, and remember normal pictures,
    with the same.
    """
    if engine == "ray":
        if is_export(model):
            fail("an export runs on this machine alone: leave out --engine ray", 2)
        if compiled or as_json or overwrite or mutual or watched or video:
            fail("--compile, --json, --overwrite, --mutual, --watch and --video are not for --engine ray", 2)
        if roi or ignore or min_area:
            fail("--roi, --ignore and --min-area are not for --engine ray", 2)
        options: dict[str, Any] = {"prompts": prompts, "image_size": image_size, "domain": domain, "mode": mode}
        options |= {"kinds": split_kinds(kinds), "readout": readout, "top": top}
        options |= {"sigma": sigma, "calibration": calibration, "model": model, "device": device, "dtype": dtype}
        options |= {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
        options |= reference_options(reference, evidence)
        if len(formats or ()) > 1 or (formats and formats[0] in FORMATS):
            fail("with --engine ray --format is parquet or jsonl", 2)
        file_format: Literal["parquet", "jsonl"] = "jsonl" if formats == ["jsonl"] else "parquet"
        _detect_with_ray(images, output, class_name, file_format, actors=actors, batch_size=batch_size, **options)
        return
    folder = folder_path(output) if output else None
    chosen = choose_formats(formats, folder)
    if webhook is not None and not watched:
        fail("--webhook goes with --watch", 2)
    if watched and mutual:
        fail("--mutual compares pictures that are all there: leave out --watch", 2)
    if watched and video:
        fail("--watch is for folders, --video for videos and cameras", 2)
    if fps is not None and not video:
        fail("--fps goes with --video", 2)
    folders = check_usage(images, folder, chosen, webhook) if watched else []
    sources = [] if watched else find_videos(images, fps) if video else find_sources(images)
    if not all(isinstance(source, Path) for source in sources):
        if mutual:
            fail("--mutual compares pictures in folders, not in archives, data sets or videos", 2)
        if "labelstudio" in chosen:
            fail("Label Studio opens files: --format labelstudio is not for archives, data sets and videos", 2)
    more: dict[str, Any] = {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect, "kinds": split_kinds(kinds)}
    more |= {"readout": readout, "top": top, "roi": roi, "ignore": ignore, "min_area": min_area}
    more |= reference_options(reference, evidence)
    pipe = load_pipeline(
        model, prompts, device, dtype, image_size, domain, mode, sigma, calibration, context=context, **more
    )
    if engine == "auto" and not is_export(model):
        pipe = _fastest(pipe, class_name, batch_size, context, "--mutual" * mutual or "--compile" * compiled)
    if remembered := pipe.references(class_name):
        print(remembered.summary(), file=sys.stderr)
    settings = run_settings(pipe, class_name) | ({"mutual": True} if mutual else {})
    with ExitStack() as stack:
        records: Records | None = None
        targets: list[Format] = []
        if folder:
            free = (THRESHOLDS,) if watched else ()
            records = stack.enter_context(open_records(folder, settings, overwrite, free))
            known = records.images if watched else ()
            targets = [stack.enter_context(Csv(folder, known) if known else FORMATS[name](folder)) for name in chosen]
        drift = Drift(found) if (found := pipe.references(class_name)) else None
        verdict = pipe.calibration or found
        outcomes = Outcomes(records, targets, drift, as_json)
        if watched and records:
            if compiled:
                _compile(pipe, batch_size)
            if webhook:
                stack.enter_context(Webhook(webhook, records.folder))
            watch(pipe, folders, class_name, batch_size, outcomes, records, calibration)
        if records and video:
            stack.callback(draw_scores, sources, records, verdict.image_threshold if verdict else None)
        if any(isinstance(source, Video) and source.live for source in sources):
            batch_size = 1  # more would wait for each other
        given = _score(pipe, sources, class_name, batch_size, outcomes, compiled=compiled, mutual=mutual)
    if failed := outcomes.failed:
        print(f"{failed} of {given} pictures failed", file=sys.stderr)
        raise typer.Exit(1)


def _score(
    pipe: Pipeline,
    sources: Sequence[Source],
    class_name: str,
    batch_size: int,
    outcomes: Outcomes,
    *,
    compiled: bool,
    mutual: bool,
) -> int:
    """Score the pictures that have no result in the records yet, or for formats all, and say so; returns how many
    pictures there are."""
    # Formats are told of every picture; with `mutual` all score each other.
    pictures = Pictures(sources, outcomes, skip=not outcomes.targets and not mutual)
    rest = iter(pictures)
    first = list(islice(rest, 1))
    if compiled and first:
        _compile(pipe, batch_size)
    given = chain(first, rest)
    with pictures.bar:
        for outcome in pipe.stream(given, class_name, batch_size=batch_size, errors="yield", together=mutual):
            outcomes.take(pictures.names.popleft(), outcome)
            pictures.bar.update()
    if outcomes.records and pictures.before:
        where = printable(outcomes.records.folder)
        print(f"{pictures.before} of {pictures.given} pictures have results in {where}", file=sys.stderr)
    if outcomes.drift and (drifted := outcomes.drift.note()):
        print(f"drift: {drifted}", file=sys.stderr)
    return pictures.given


def _compile(pipe: Pipeline, batch_size: int) -> None:
    print(f"compiled in {pipe.compile(batch_size):.1f} s", file=sys.stderr)


@app.command()
def compare(
    image: Annotated[str, typer.Argument(help="A picture.", callback=not_empty)],
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    class_name: ClassOption = "object",
    domain: DomainOption = "industrial",
    image_size: SizeOption = None,
    reference: ReferenceOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    keep_aspect: AspectOption = False,
    output: Annotated[Path | None, OUTPUT] = None,
    device: DeviceOption = "auto",
    dtype: DTypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """The decoupled-prompt ablation on one picture: fixed, learned and decoupled prompts side by side, and beside them
    each other method that the model has prompts of.

    With --output, DIR gets <picture>_comparison.png: the picture, then the map under each kind of prompts.
    """
    tiling: dict[str, Any] = {"tile": tile, "overlap": overlap, "keep_aspect": keep_aspect}
    tiling |= reference_options(reference, "auto")
    pipe = load_pipeline(model, prompts, device, dtype, image_size, domain, **tiling)
    results = pipe.compare(image, class_name)
    strategies = {mode: {name: r.strategies[name] for name in pipe.strategies} for mode, r in results.items()}
    if as_json:
        scores = {
            mode: {"score": r.score, "global_score": r.global_score, "local_score": r.local_score, **strategies[mode]}
            for mode, r in results.items()
        }
        note = next(iter(results.values())).note
        print(to_json({"image": file_name(image), **({"note": note} if note else {}), **scores}))
    else:
        heads = " ".join(f"{name:>6}" for name in pipe.strategies)
        print(f"{'prompts':<10} {'score':>7} {'global':>7} {'local':>7}  {heads}")
        for mode, r in results.items():
            values = " ".join(f"{value:6.4f}" for value in strategies[mode].values())
            print(f"{mode:<10} {r.score:7.4f} {r.global_score:7.4f} {r.local_score:7.4f}  {values}")
        if r.note:
            print(f"note: {r.note}")
    if output:
        first = next(iter(results.values()))
        pictures = [first.image, *(r.overlay() for r in results.values())]
        with whole_file(output / f"{Stems()(Path(image))}_comparison.png") as file:
            visualization.side_by_side(pictures, height=min(first.height, 512)).save(file, "PNG")


def _fastest(pipe: Pipeline, class_name: str, batch_size: int, context: typer.Context, torch_alone: str) -> Pipeline:
    """The pipeline in the engine that is the fastest here; which, and why, is said."""
    folder = context.with_resource(TemporaryDirectory(ignore_cleanup_errors=True))
    try:
        from tipsomaly.detection.fastest import fastest

        if torch_alone:
            fail(f"{torch_alone} is not for --engine auto", 2)
        found, why = fastest(pipe, class_name, Path(folder), batch_size)
    except ModelError as error:
        found, why = pipe, f"torch: {error}"
    print(f"engine: {why}", file=sys.stderr)
    return cast(Pipeline, found)


def _detect_with_ray(
    sources: list[str], output: str | None, class_name: str, file_format: Literal["parquet", "jsonl"], **options: Any
) -> None:
    if output is None:
        fail("--engine ray needs --output DIR for the scores", 2)
    if any(is_archive(name) or name.startswith(SCHEME) for name in sources):
        fail("--engine ray takes files and folders, no archives and no hf://", 2)
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
