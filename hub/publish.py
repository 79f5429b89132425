"""Build and publish what belongs on the Hub: `python hub/publish.py --org ORG [--dry-run] [NAME ...]`.

A NAME is a backbone of TIPS v1, `nano`, or `space` for the web demo; without any it is all of these. It may also be a
prompt file that `tipsomaly train` wrote, which is published alone with a card of its own. Backbones are made
from Google's release and get the learned prompts that were released for them; TIPS v2 is on the Hub already, from
Google itself. `--dry-run` builds the folders and lists what would go where, and uploads nothing.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template

from tipsomaly.models.catalogue import BACKBONES, Backbone, organisation
from tipsomaly.models.folder import WEIGHTS, ModelFolder
from tipsomaly.models.hub import BUNDLED, convert_release
from tipsomaly.models.publish import find_token, upload
from tipsomaly.prompts.find import find_prompts
from tipsomaly.prompts.methods import load_prompts
from tipsomaly.studies.paper import DATA_SETS, OURS, published
from tipsomaly.studies.tables import table

HUB = Path(__file__).parent
ROOT = HUB.parent
SPACE = ["app.py", "requirements.txt", "pyproject.toml", "README.md", "LICENSE", "tipsomaly/**/*", "examples/**/*"]

ABOUT = {
    "tipsomaly": (
        "Tipsomaly (*TIPS Over Tricks*, arXiv 2602.03594)",
        "Learned vectors stand before sentences of a normal and of an abnormal state, whatever the class. The map\n"
        "comes from them, the image score from fixed sentences about the class.",
        "Its numbers are for prompts that its authors trained.",
    ),
    "dapo": (
        "DAPO (*Defect-aware Prompt Optimization*, arXiv 2512.09446)",
        "There is one normal prompt and one for each kind of defect, so that a result names the kind. A kind that was\n"
        "not trained is used by writing its name: `kinds=[...]`, `--kinds`.",
        "It has CLIP for a backbone; this is our own implementation, on TIPS.",
    ),
    "cops": (
        "CoPS (*Conditional Prompt Synthesis*, arXiv 2508.03447)",
        "The prompts are made for each picture, from what its patches look like. The class name changes nothing, and\n"
        "pictures cannot be tiled.",
        "It has CLIP for a backbone; this is our own implementation, on TIPS.",
    ),
    "direct": (
        "direct prototypes, which are ours",
        "The two prototypes of the map are learned as they are, without words. The image score comes from fixed\n"
        "sentences about the class.",
        "There is none.",
    ),
}
"""By the method: its name, what it does, and what the numbers of its paper are of."""

NO_PROMPTS = """
No learned prompts were released for this backbone, and the map needs some: train them (`tipsomaly train`) and pass
them as `prompts="mine.safetensors"`. Fixed prompts alone, `mode="fixed"`, score pictures but localize poorly.
"""


def build(name: str, org: str, out: Path) -> Path:
    """The folder of a model as it is published, under `out`; ModelError if the release cannot be fetched."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    if name in BUNDLED:
        shutil.copytree(BUNDLED[name], folder)
        return folder
    shutil.copytree(convert_release(name), folder, copy_function=link)
    for prompts in BACKBONES[name].prompts:
        path = folder / "prompts" / f"{prompts}.safetensors"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(find_prompts(ModelFolder(folder, name), prompts), path)
    (folder / "README.md").write_text(card(BACKBONES[name], f"{org}/{name}", folder), encoding="utf-8")
    return folder


def card(backbone: Backbone, repository: str, folder: Path) -> str:
    """The model card. What it says of files is read from the folder."""
    records = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    records += [{"url": p.source.url, "size": None, "sha256": p.sha256} for p in backbone.prompts.values()]
    first = next(iter(backbone.prompts), None)
    tags = ["apache-2.0", "cc-by-4.0", *(["mit"] if first else [])]
    licence = "Google releases TIPS under Apache-2.0 (software) and CC-BY 4.0 (all other material)."
    if first:
        licence += "\nThe learned prompts are by the paper's authors (github.com/AlirezaSalehy/Tipsomaly), MIT."
    measured = HUB / "measured" / f"{backbone.name}.md"
    with (folder / WEIGHTS).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Template((HUB / "card.md").read_text(encoding="utf-8")).substitute(
        name=backbone.name,
        repository=repository,
        title=f"TIPS {backbone.name.removeprefix('tips-')}",
        licence_tags="\n".join(f"- {tag}" for tag in tags),
        vision_depth=backbone.depths[0],
        text_depth=backbone.depths[1],
        vision_parameters=backbone.parameters[0],
        text_parameters=backbone.parameters[1],
        width=backbone.width,
        image_size=backbone.image_size,
        default_size=backbone.default_size,
        prompts=", ".join(f"`{n}` (trained on {p.trained_on})" for n, p in backbone.prompts.items()) or "none",
        options=f', prompts="{first}"' if first else ', mode="fixed"',
        flags=f" --prompts {first}" if first else " --mode fixed",
        without_prompts="" if first else NO_PROMPTS,
        sources="\n".join(f"| {r['url']} | {r['size'] or ''} | `{r['sha256']}` |" for r in records),
        sha256=sha256,
        licence=licence,
        paper=paper_numbers(backbone.name),
        measured=measured.read_text(encoding="utf-8").strip() if measured.exists() else "Nothing yet.",
    )


def build_prompts(file: Path, org: str, out: Path, licence: str | None, measured: Path | None) -> Path:
    """The folder of a prompt set as it is published, under `out`, with the log and the curve of its training."""
    name, folder = file.stem, out / file.stem
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "prompts").mkdir(parents=True)
    for path in (file, *(p for p in (file.with_suffix(".log.jsonl"), file.with_suffix(".png")) if p.is_file())):
        shutil.copyfile(path, folder / "prompts" / path.name)
    text = prompts_card(file, f"{org}/{name}", licence, measured)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def prompts_card(file: Path, repository: str, licence: str | None, measured: Path | None) -> str:
    """The card of a prompt set. What it says is read from the file, from the log beside it and from `measured`, the
    results.md of an evaluation. Raises ValueError for another file."""
    prompts, content = load_prompts(file), file.read_bytes()
    title, about, paper = ABOUT.get(prompts.NAME, (prompts.NAME, prompts.__doc__, "There is none."))
    tensors, metadata = prompts.tensors(), dict(prompts.metadata)
    return Template((HUB / "prompts.md").read_text(encoding="utf-8")).substitute(
        name=file.stem,
        repository=repository,
        method=prompts.NAME,
        title=title,
        about=about,
        paper=paper,
        backbone=metadata.get("backbone", "(the file does not say)"),
        numbers=f"{sum(tensor.numel() for tensor in tensors.values()):,}",
        tensors=f"{len(tensors)} tensors",
        bytes=f"{len(content):,}",
        sha256=hashlib.sha256(content).hexdigest(),
        temperature=prompts.temperature or "the backbone's own",
        settings=lines(prompts.settings()),
        metadata=lines(metadata),
        losses=last_losses(file.with_suffix(".log.jsonl")),
        measured=measured.read_text(encoding="utf-8").strip() if measured else "Nothing yet.",
        licence_line=f"license: {licence}" if licence else "license: other",
        licence=f"{licence}. " * bool(licence) + "The pictures that they were trained on have licences of their own.",
    )


def last_losses(log: Path) -> str:
    """The mean of each term of the loss in the last epoch of a training's log."""
    if not log.is_file():
        return "There is no log of the training."
    steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    last = [step for step in steps if step["epoch"] == steps[-1]["epoch"]]
    terms = [name for name in last[0] if name not in ("epoch", "step")]
    means = [f"{sum(step[term] for step in last) / len(last):.4f}" for term in terms]
    return f"Loss of the last epoch, mean of its {len(last)} steps:\n\n{table(terms, [means])}".strip()


def lines(content: Mapping[str, object]) -> str:
    """Names and values as the rows of a table, whatever somebody wrote into a file, in alphabetical order."""

    def cell(value: object) -> str:
        return " ".join((value if isinstance(value, str) else json.dumps(value)).split()).replace("|", "\\|")

    return "\n".join(f"| {cell(name)} | {cell(content[name])} |" for name in sorted(content))


def paper_numbers(model: str) -> str:
    """The paper's claims for a backbone: table 1 for the one of its main results, else table 8; "None." without any."""
    columns = {"image_auroc": "image AUROC", "image_ap": "image AP", "image_f1max": "image F1-max"}
    columns |= {"pixel_auroc": "pixel AUROC", "aupro_200": "AUPRO", "pixel_f1max": "pixel F1-max"}
    number, row = ("1", OURS) if model == "tips-l14-hr" else ("8", model)
    rows = [
        [name, *(found[row].get(metric, "-") for metric in columns)]
        for name in DATA_SETS
        if row in (found := published(number, name))
    ]
    if not rows:
        return "None."
    return (
        f"{table(['data set', *columns.values()], rows)}\n"
        f"The claims of the paper's table {number}, in percent, with prompts trained on VisA for MVTec AD and on\n"
        "MVTec AD for all others, at 518 x 518 pixels. We did not measure them."
    )


def contents(folder: Path, patterns: list[str]) -> list[str]:
    """The files of a folder that match, without Python's own leavings."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in paths if "__pycache__" not in path.parts)


def link(source: str, target: str) -> None:
    """A hard link where the file system can, else a copy: the weights have gigabytes."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def main() -> None:
    names = [*BUNDLED, *(name for name, backbone in BACKBONES.items() if backbone.version == 1), "space"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}, or a prompt file; default: all")
    who = "who publishes: an organisation or a user; default: TIPSOMALY_ORG"
    parser.add_argument("--org", default=organisation(), required=not organisation(), help=who)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "hub", help="where folders are built")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--dry-run", action="store_true", help="list what would go where; upload nothing")
    parser.add_argument("--licence", help="of a prompt file, as the Hub calls it: mit, cc-by-nc-sa-4.0 ...")
    parser.add_argument("--measured", type=Path, metavar="MD", help="for a prompt file's card: results.md of evaluate")
    options = parser.parse_args()
    files = {name: Path(name) for name in options.names if name.endswith(".safetensors")}
    if unknown := sorted(set(options.names) - set(names) - set(files)):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(names)}")
    try:
        if not options.dry_run:
            find_token()  # before gigabytes are fetched in vain
        for name in options.names or names:
            kind = "space" if name == "space" else "model"
            if name in files:
                folder = build_prompts(files[name], options.org, options.build, options.licence, options.measured)
            else:
                folder = ROOT if kind == "space" else build(name, options.org, options.build)
            repository = f"{options.org}/{'tipsomaly' if kind == 'space' else folder.name}"
            content = contents(folder, SPACE if kind == "space" else ["**/*"])
            print(f"{kind} {repository}")
            for file in content:
                print(f"  {(folder / file).stat().st_size:>13,}  {file}")
            if options.dry_run:
                print("  (dry run: nothing was uploaded)")
            else:
                print(f"  {upload(folder, repository, content, kind=kind, private=options.private or None)}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
