"""Options that several commands share, each written once."""

import glob
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args

import typer

from tipsomaly.data.images import SUFFIXES, pictures_in
from tipsomaly.data.layouts import LAYOUTS, find_layout, read_dataset
from tipsomaly.data.samples import Sample
from tipsomaly.data.words import call
from tipsomaly.data.words import domain as domain_of
from tipsomaly.detection.calibration import MapBy
from tipsomaly.detection.combination import USES
from tipsomaly.detection.exported import is_export
from tipsomaly.detection.formats import FORMATS
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.scoring import SIGMA
from tipsomaly.detection.tiling import SMALLEST
from tipsomaly.errors import one_line, printable
from tipsomaly.files import expand
from tipsomaly.models.device import DTYPES
from tipsomaly.models.encoder import READOUTS, Readout
from tipsomaly.names import clean_class_name, clean_kinds
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.prompts.prompt_file import prompts_file
from tipsomaly.prompts.sentences import ENSEMBLES
from tipsomaly.prompts.strategy import MODES, Mode

app = typer.Typer(
    help="Zero-shot visual anomaly detection: is the thing on this picture defective, and where?",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


Given = TypeVar("Given", bound=str | list[str] | None)


def _class_name(name: str) -> str:
    try:
        return clean_class_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def not_empty(value: Given) -> Given:
    """An empty name would be the folder that one is in."""
    if value == "" or (isinstance(value, list) and "" in value):
        raise typer.BadParameter("an empty name")
    return value


def folder_path(name: str) -> Path:
    """What --output DIR is: a folder, there or not."""
    path = expand(not_empty(name))
    if path.suffix in FILE_SUFFIXES and not os.path.isdir(path):
        raise typer.BadParameter(f"{printable(path)} is a file's name; it must be a folder's")
    return path


def prompts_path(name: str) -> Path:
    """What `train --output OUT.safetensors` is."""
    try:
        return prompts_file(expand(not_empty(name)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def one_of(names: Collection[str], help: str, *flags: str) -> Any:
    """An option whose value is one of the names of a table: what is new there is a new choice here."""

    def check(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, names))}.")
        return value

    return typer.Option(*flags, parser=check, metavar=f"[{'|'.join(names)}]", help=help)


FILE_SUFFIXES = (".csv", ".json", ".jsonl", ".md", ".npy", ".parquet", ".png", ".safetensors", *SUFFIXES)


ModelOption = Annotated[
    str, typer.Option(help="A name of `tipsomaly models`, a model folder, or org/name[@revision] or URL on the Hub.")
]
PromptsOption = Annotated[
    str | None, typer.Option(help="A prompt set of the model, a .safetensors file, or org/name[:set] on the Hub.")
]
ClassOption = Annotated[str, typer.Option(help="What is on the pictures, in a word or two.", callback=_class_name)]
DomainOption = Annotated[str, one_of(ENSEMBLES, "Which fixed prompts describe normal and abnormal.")]
SizeOption = Annotated[
    int | None, typer.Option(metavar="PX", help="Side that pictures are resized to; default: the model's.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
DTypeOption = Annotated[str, one_of(("auto", "fastest", *DTYPES), "Number format of the vision tower.")]
ModeOption = Annotated[
    Mode | None, one_of(MODES, "Which prompts score; default: decoupled, as in the paper, or the method's own.")
]
MapByOption = Annotated[
    MapBy,
    one_of(get_args(MapBy), "What that share is of in the maps: all pixels, or pictures with any such pixel."),
]
ReadoutOption = Annotated[
    Readout | None,
    one_of(READOUTS, "What patches are read from: the last block's tokens or its values; default: as trained."),
]
KindsOption = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Kinds of defects to tell apart, for prompts that know kinds (dapo)."),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures encoded at once.")]
SigmaOption = Annotated[float, typer.Option(min=0, help="Smoothing of the map, in pixels of the input size.")]
TopOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help="Image score: the mean of this share of the patches (0.01) for the largest of them."
    ),
]
TileOption = Annotated[
    int | None,
    typer.Option(metavar="PX", min=SMALLEST, help="Also cut larger pictures into tiles of this side, blended."),
]
OverlapOption = Annotated[
    float | None, typer.Option(min=0, max=0.75, help="Share of a tile that the next one covers too; default: 0.25.")
]
AspectOption = Annotated[
    bool, typer.Option("--keep-aspect", help="Do not squash pictures to a square, as the paper does.")
]
RoiOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Only what is white there counts: a picture like the others, or .json of polygons."
    ),
]
IgnoreOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What is white there does not count; as --roi.")
]
AreaOption = Annotated[
    int, typer.Option(metavar="PX", min=0, help="Leave out regions of the map of fewer pixels of the picture.")
]
RootArgument = Annotated[Path, typer.Argument(help="The folder of a data set.")]
LayoutOption = Annotated[str | None, one_of(LAYOUTS, "How the data set lies on disk; default: recognised.")]
SplitOption = Annotated[str, one_of(("test", "train"), "The paper also trains on the test split, of another data set.")]
ClassesOption = Annotated[list[str] | None, typer.Option("--class", help="Only this class of it; may be repeated.")]
ClassNamesOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|A=B,...", help="Words for classes in the sentences: 01=floor tile,02=wood, or a .json of them."
    ),
]
DataDomainOption = Annotated[str | None, one_of(ENSEMBLES, "Default: industrial or medical, after the classes.")]
OUTPUT = typer.Option(metavar="DIR", parser=folder_path, help="Folder for the results.")
OutputOption = Annotated[Path, OUTPUT]
PromptsFileOption = Annotated[
    Path, typer.Option("--output", metavar="OUT.safetensors", parser=prompts_path, help="Where the prompts go.")
]


FormatsOption = Annotated[
    list[str] | None,
    one_of(
        (*FORMATS, "parquet", "jsonl"),
        "Also write results so; may be repeated. With ray: parquet (the default) or jsonl.",
        "--format",
    ),
]


ReferenceOption = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|FILE",
        help="Normal pictures to compare with, or the file of `tipsomaly reference`.",
        callback=not_empty,
    ),
]
EvidenceOption = Annotated[str, one_of(("auto", *USES), "With --reference: what scores. auto chooses, and says why.")]


def reference_options(reference: str | None, evidence: str) -> dict[str, Any]:
    """What `Pipeline` takes for --reference and --evidence."""
    if reference is None:
        if evidence != "auto":
            fail("--evidence goes with --reference", 2)
        return {}
    return {"reference": reference, "evidence": None if evidence == "auto" else evidence}


def choose_formats(names: list[str] | None, output: object) -> list[str]:
    """The formats of pictures' results that were asked for, each once; wrong usage without a folder."""
    chosen = list(dict.fromkeys(names or ()))
    if wrong := [name for name in chosen if name not in FORMATS]:
        fail(f"--format {wrong[0]} is for --engine ray; others: {', '.join(FORMATS)}", 2)
    if chosen and not output:
        fail(f"--format {chosen[0]} needs --output DIR", 2)
    return chosen


def load_pipeline(
    model: str,
    prompts: str | Path | PromptMethod | None,
    device: str,
    dtype: str,
    image_size: int | None,
    domain: str,
    mode: Mode | None = None,
    sigma: float = SIGMA,
    calibration: Path | None = None,
    *,
    context: typer.Context | None = None,
    **more: Any,
) -> Pipeline:
    """The pipeline that a command's options ask for; with the command's context it may be an exported folder."""
    options: dict[str, Any] = {
        "prompts": prompts,
        "device": device,
        "dtype": dtype,
        "image_size": image_size,
        "domain": domain,
        "mode": mode,
        "sigma": sigma,
        "calibration": calibration,
        **more,
    }
    if is_export(model):  # it has options of its own: those that were not given are not the defaults
        if context is None:
            fail(f"{printable(model)} is an export, which detect and calibrate take: give the model itself", 2)
        source = {name: context.get_parameter_source(name) for name in options}
        options = {name: value for name, value in options.items() if getattr(source[name], "name", "") == "COMMANDLINE"}
    return Pipeline.from_pretrained(model, **options)


def read_samples(
    root: Path,
    layout: str | None,
    split: str,
    classes: list[str] | None,
    domain: str | None,
    class_names: str | None = None,
) -> tuple[list[Sample], str, str]:
    """The samples of a data set, the name of its layout, and the domain of its classes if none is given."""
    name = find_layout(root, layout)[0]
    samples = call(read_dataset(root, name, split, classes), class_words(class_names))
    domains = {domain_of(sample.class_name) for sample in samples}
    if domain is None and len(domains) > 1:
        fail("some of these classes are medical and some industrial: choose with --class, or name the --domain", 2)
    return samples, name, domain or domains.pop()


def split_kinds(kinds: str | None) -> tuple[str, ...] | None:
    """The names in a list with commas. Raises OptionError."""
    return None if kinds is None else clean_kinds(kinds.split(","))


def class_words(text: str | None) -> dict[str, str]:
    """Words by class, from `01=floor tile,02=wood` or a JSON file {"01": "floor tile"}."""
    if text is None:
        return {}
    try:
        if text.endswith(".json"):
            words = dict(json.loads(Path(text).read_text(encoding="utf-8")))
        else:
            words = dict(part.split("=") for part in text.split(","))
        return {name.strip(): clean_class_name(called) for name, called in words.items()}
    except OSError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        fail(f'--class-names: neither A=words,B=words nor a .json file {{"A": "words"}} ({one_line(error)})', 2)


def find_pictures(patterns: list[str]) -> list[Path]:
    """The pictures that files, folders and globs name, each once. A file named by itself is taken whatever its suffix
    is. What cannot be read, be it a folder in a folder, stays in the list, so that it gets its line of error."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if os.path.isdir(path):
            found |= dict.fromkeys(pictures_in(path) or fail(f"{printable(path)}: no pictures in this folder", 2))
        elif (names := matches(pattern)) is not None:
            found |= dict.fromkeys(Path(name) for name in names if not os.path.isdir(name))
        else:
            found[path] = None
    return list(found)


def matches(pattern: str) -> list[str] | None:
    """The names that match a glob, sorted, at least one; None for what is no glob or a name that exists."""
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return None
    return sorted(glob.glob(pattern, recursive=True)) or fail(f"{pattern}: nothing matches", 2)


def fail(error: object, status: int) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(status)
