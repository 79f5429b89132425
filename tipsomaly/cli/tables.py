"""`tipsomaly tables`: several data sets and several models, as in the paper's tables 1 and 8."""

from pathlib import Path
from typing import Annotated

import typer

from tipsomaly.cli.options import (
    BatchOption,
    DeviceOption,
    DTypeOption,
    app,
    fail,
    load_pipeline,
    read_samples,
)
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.files import write_atomically
from tipsomaly.models.folder import ModelFolder
from tipsomaly.models.hub import resolve, short_name
from tipsomaly.prompts.find import default_prompts, read_prompts, released_prompts
from tipsomaly.prompts.method import PromptMethod

PLACES = ("{model}", "{trained_on}")
"""In `--prompts`: the model's name, and the released set that the paper tests the data set with."""


@app.command()
def tables(
    roots: Annotated[list[Path], typer.Argument(help="The folders of data sets.")],
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="MODEL", help="May be repeated; default: nano.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="As in `evaluate`; {model} and {trained_on} in it stand for the model's name and for visa where MVTec "
            "AD is tested, mvtec elsewhere. Default: the model's own set of that name."
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(metavar="PX", help="For all models, as in table 8.")] = 518,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for tables and results.")] = Path("results"),
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DTypeOption = "auto",
) -> None:
    """Tables 1 and 8: several data sets with both averages, several models, beside what the paper prints of them.

    DIR gets tables.md, and in MODEL/DATA_SET/ what `evaluate` writes. After an interrupt the same command goes on with
    the next class.
    """
    from tipsomaly.studies.evaluation import Evaluation, evaluate
    from tipsomaly.studies.paper import paper_data_set, trained_on
    from tipsomaly.studies.summary import table_1, table_8

    data = {}
    for root in roots:
        samples, _, domain = read_samples(root, None, "test", None, None)
        paper = paper_data_set(samples)
        name = paper or root.resolve().name
        if name in data:
            fail(f"two data sets are called {name}: rename the folder of one", 2)
        data[name] = (samples, domain, trained_on(paper))
    found: dict[str, dict[str, Evaluation]] = {}
    for model in models or ["nano"]:
        label = short_name(model)
        if label in found:
            fail(f"two models are called {label}: rename the folder of one", 2)
        folder, found[label] = resolve(model, weights=False), {}
        pipe: Pipeline | None = None
        for name, (samples, domain, source) in data.items():
            learned = _prompts(folder, prompts, label, source, domain)
            if pipe is None:
                pipe = load_pipeline(model, learned, device, dtype, image_size, domain)
            pipe = pipe.with_options(prompts=learned, domain=domain)
            place = output / label / name.replace("/", "_")
            found[label][name] = evaluate(pipe, samples, batch_size=batch_size, output=place, progress=True)
    parts = [f"# {label}\n\n{table_1(by_name)}" for label, by_name in found.items() if len(data) > 1]
    text = "\n".join([*parts, *([table_8(found)] if len(found) > 1 or not parts else [])])
    write_atomically(output / "tables.md", text)
    print(text, end="")


def _prompts(folder: ModelFolder, text: str | None, model: str, source: str, domain: str) -> PromptMethod | None:
    """The prompts for a data set: those that are asked for, else the model's set trained on other data, else its own
    choice."""
    if text:
        for place, value in zip(PLACES, (model, source), strict=True):
            text = text.replace(place, value)
        return read_prompts(folder, text)
    if source in folder.prompt_sets() | released_prompts(folder):
        return read_prompts(folder, source)
    return default_prompts(folder, domain)
