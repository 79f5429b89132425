"""`tipsomaly models`, `convert`, `convert-prompts` and `export`."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tipsomaly.cli.options import (
    DomainOption,
    KindsOption,
    ModelOption,
    ModeOption,
    PromptsOption,
    ReadoutOption,
    SigmaOption,
    SizeOption,
    TopOption,
    app,
    fail,
    folder_path,
    load_pipeline,
    one_of,
    split_kinds,
)
from tipsomaly.detection.scoring import SIGMA
from tipsomaly.models.catalogue import BACKBONES, OTHERS, SELLERS, Backbone, Other
from tipsomaly.models.device import DTYPES
from tipsomaly.models.folder import ModelFolder
from tipsomaly.models.hub import BUNDLED, where_cached
from tipsomaly.models.sessions import PACKAGES, PRECISIONS
from tipsomaly.models.tips import Tips


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
        str,
        one_of(
            ("auto", *DTYPES), "Number format of every array; auto keeps each as it is, half precision halves the file."
        ),
    ] = "auto",
) -> None:
    """Convert a released TIPS checkpoint (two .npz files and a tokenizer) to a model folder."""
    from tipsomaly.models.convert import convert as convert_checkpoint

    wanted = None if dtype == "auto" else dtype
    try:
        config = convert_checkpoint(
            vision, text, tokenizer, out, heads=heads, text_heads=text_heads, image_size=image_size, dtype=wanted
        )
    except ValueError as error:
        fail(error, 1)
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
    from tipsomaly.prompts.find import convert_prompts as convert_pickle

    metadata = {"backbone": backbone, "trained_on": trained_on}
    try:
        learned = convert_pickle(
            source, out, prompt_ensemble=ensemble, metadata={k: v for k, v in metadata.items() if v}
        )
    except ValueError as error:
        fail(error, 1)
    print(f"{out}: {learned.normal.shape[0]} vectors a state, {learned.normal.shape[1]} wide")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="OUT_DIR", parser=folder_path)],
    form: Annotated[str, one_of(PACKAGES, "For onnxruntime or for OpenVINO.", "--format")] = "onnx",
    class_names: Annotated[
        list[str], typer.Option("--class-name", help="What will be on the pictures; may be repeated.")
    ] = ["object"],  # noqa: B006 - typer copies it
    model: ModelOption = "nano",
    prompts: PromptsOption = None,
    domain: DomainOption = "industrial",
    mode: ModeOption = None,
    kinds: KindsOption = None,
    readout: ReadoutOption = None,
    image_size: SizeOption = None,
    sigma: SigmaOption = SIGMA,
    top: TopOption = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Thresholds from `tipsomaly calibrate`, for a verdict inside.")
    ] = None,
    precision: Annotated[
        str, one_of(PRECISIONS, "fp16: half the file; bf16: faster where the processor has it. For openvino.")
    ] = "fp32",
    parity: Annotated[
        int, typer.Option(min=1, metavar="N", help="Drawn pictures on which it is compared with the model.")
    ] = 1000,
) -> None:
    """Export a detector for machines without torch: one graph from pixels of any size to score, map and verdict.

    OUT_DIR gets the graph, the prototypes of the classes, export.json with the settings and how far the graph's scores
    are from the model's, and run.py, which scores pictures without this package. `--model OUT_DIR` of the other
    commands runs it, too. Nothing is written if the two differ by more than 1e-4 in fp32.
    """
    from tipsomaly.detection.export import export as export_pipeline

    more: dict[str, Any] = {"kinds": split_kinds(kinds), "readout": readout, "top": top}
    pipe = load_pipeline(model, prompts, "cpu", "float32", image_size, domain, mode, sigma, calibration, **more)
    record = export_pipeline(pipe, folder, form, class_names, precision=precision, pictures=parity, progress=True)
    found = record["parity"]
    worst = max(found["largest_difference"].values())
    print(f"{folder}: {found['engine']}, scores and maps within {worst:.1g} on {found['pictures']} pictures")


@app.command()
def models() -> None:
    """List the models that have a name: parameters (vision + text, in millions), width, default input size, released
    prompts, licence, and where each is cached; then what released prompts were learned on, and its licence. Any model
    folder and any org/name on the Hub does as well."""
    rows: list[tuple[object, ...]] = [("NAME", "PARAMETERS", "WIDTH", "PIXELS", "PROMPTS", "LICENCE", "CACHED")]
    for name, path in BUNDLED.items():
        folder = ModelFolder(path, name)
        config = folder.read_config()
        with torch.device("meta"):
            towers = Tips(config)
        counts = [sum(p.numel() for p in t.parameters()) / 1e6 for t in (towers.vision_encoder, towers.text_encoder)]
        size, prompts = folder.read_image_size(config), ", ".join(folder.prompt_sets()) or "-"
        rows.append((name, f"{counts[0]:.1f} + {counts[1]:.1f}", config.vision.dim, size, prompts, "MIT", "bundled"))
    released: dict[str, Backbone | Other] = {**BACKBONES, **OTHERS}
    for name, b in released.items():
        prompts, cached = ", ".join(b.prompts) or "-", where_cached(name) or "-"
        rows.append(
            (name, f"{b.parameters[0]} + {b.parameters[1]}", b.width, b.default_size, prompts, b.licence, cached)
        )
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nReleased prompts were learned on pictures that have licences of their own:")
    for name, b in released.items():
        for prompts, p in b.prompts.items():
            print(f"  {prompts} of {name}: {p.origin}")
    print(SELLERS)
    print("\nWithout prompts a model needs --prompts (`tipsomaly train` makes some) or --mode fixed.")
