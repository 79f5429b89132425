"""`tipsomaly reference`: normal pictures, remembered in a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tipsomaly.cli.options import (
    AspectOption,
    BatchOption,
    ClassOption,
    DeviceOption,
    DomainOption,
    DTypeOption,
    IgnoreOption,
    ModelOption,
    ModeOption,
    OverlapOption,
    PromptsOption,
    ReadoutOption,
    RoiOption,
    SigmaOption,
    SizeOption,
    TileOption,
    TopOption,
    app,
    fail,
    load_pipeline,
    not_empty,
    one_of,
)
from tipsomaly.cli.sources import find_sources, pictures_of, spread
from tipsomaly.detection.memory import MEMORIES
from tipsomaly.detection.reference_detector import MAX_NORMALS
from tipsomaly.detection.references import RULES, ReferenceOptions, Rule
from tipsomaly.detection.scoring import SIGMA


@app.command()
def reference(
    normals: Annotated[
        list[str],
        typer.Argument(
            metavar="GOOD...",
            help="Normal pictures: files, folders, globs, zip and tar archives, or hf:// data sets.",
            callback=not_empty,
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="OUT.safetensors", help="Where the references go.")],
    class_name: ClassOption = "object",
    memory: Annotated[
        str, one_of(MEMORIES, "neighbours: distance to the nearest patch; subspace: to a PCA of the patches.")
    ] = "neighbours",
    layer: Annotated[
        list[int] | None,
        typer.Option(help="Block of the tower to remember; may be repeated; default: two thirds up, and the last."),
    ] = None,
    turns: Annotated[
        bool, typer.Option("--turns", help="Also remember quarter turns and flips of the pictures.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Patches that are remembered at most; of more a coreset; default: 16384.")
    ] = None,
    target_fpr: Annotated[float, typer.Option(help="Share of normal pictures that may be called anomalous.")] = 0.01,
    rule: Annotated[
        Rule, one_of(RULES, "Of thresholds. percentile: --factor times the 95th percentile of normal scores.")
    ] = "rank",
    factor: Annotated[float, typer.Option(min=0, help="Of the rule percentile.")] = 1.2,
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    domain: DomainOption = "industrial",
    mode: ModeOption = None,
    readout: ReadoutOption = None,
    image_size: SizeOption = None,
    sigma: SigmaOption = SIGMA,
    top: TopOption = None,
    tile: TileOption = None,
    overlap: OverlapOption = None,
    keep_aspect: AspectOption = False,
    roi: RoiOption = None,
    ignore: IgnoreOption = None,
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
    dtype: DTypeOption = "auto",
) -> None:
    """Remember normal pictures of one class, for `tipsomaly detect --reference OUT.safetensors` with the same options.

    One pass gives the memory and the thresholds: each picture is scored by a memory without it.
    """
    if output.suffix != ".safetensors":
        fail(f"{output}: a file of references ends in .safetensors", 2)
    options = ReferenceOptions(memory, tuple(layer) if layer else None, turns, limit, target_fpr, rule, factor)
    more: dict[str, Any] = {"readout": readout, "top": top, "tile": tile, "overlap": overlap}
    more |= {"keep_aspect": keep_aspect, "roi": roi, "ignore": ignore}
    images, count = spread(pictures_of(find_sources(normals)), MAX_NORMALS)
    pipe = load_pipeline(model, prompts, device, dtype, image_size, domain, mode, sigma, **more)
    found = pipe.make_references(images, class_name, options, batch_size=batch_size)
    found.save(output)
    if count > MAX_NORMALS:
        print(f"{found.pictures} of {count} pictures, evenly spread, are remembered")
    print(f"{output}: {found.summary()}")
    print(f"picture {found.image_threshold:.4f}, pixel {found.pixel_threshold:.4f}, {found.nbytes / 1e6:.1f} MB")
