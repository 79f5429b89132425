"""Build and publish what belongs on the Hub: `python hub/publish.py --org ORG [--dry-run] [NAME ...]`.

A NAME is a backbone of TIPS v1, `nano`, or `space` for the web demo (or `--space`); without any it is all of these. It
may also be a prompt file that `tipsomaly train` wrote, which is published alone with a card of its own. Backbones are
made from Google's release and get the learned prompts that were released for them; TIPS v2 is on the Hub already, from
Google itself. `--dry-run` builds the folders and lists what would go where, and uploads nothing. `--table` is the
table of all of them.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the namespace package hub

from hub.cards import card, nano_card, prompts_card
from hub.overview import overview, put
from tipsomaly.models.catalogue import BACKBONES, organisation
from tipsomaly.models.folder import ModelFolder
from tipsomaly.models.hub import BUNDLED, convert_release
from tipsomaly.models.publish import find_token, upload
from tipsomaly.prompts.find import find_prompts

ROOT = Path(__file__).parents[1]
SPACE = [
    *("app.py", "requirements.txt", "README.md", "LICENSE", "tipsomaly/**/*"),
    *("examples/examples.json", "examples/pictures/*", "examples/masks/*"),
]
"""What app.py needs, and the README, in whose front matter the Hub reads what kind of Space it is."""
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
"""A link, or a picture, of a file here."""


def build(name: str, org: str, out: Path) -> Path:
    """The folder of a model, or of the Space, as it is published, under `out`; ModelError if the release cannot be
    fetched."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    if name == "space":
        shown = linked("README.md")
        guides = [linked(name) for name in shown if name.startswith("hub/site/")]
        for file in contents(ROOT, [*SPACE, *shown.union(*guides)]):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, folder / file)
        return folder
    if name in BUNDLED:
        shutil.copytree(BUNDLED[name], folder)
        text = (folder / "README.md").read_text(encoding="utf-8")
        (folder / "README.md").write_text(nano_card(text), encoding="utf-8")
        return folder
    shutil.copytree(convert_release(name), folder, copy_function=link)
    for prompts in BACKBONES[name].prompts:
        path = folder / "prompts" / f"{prompts}.safetensors"
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(find_prompts(ModelFolder(folder, name), prompts), path)
    (folder / "README.md").write_text(card(BACKBONES[name], f"{org}/{name}", folder), encoding="utf-8")
    return folder


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


def contents(folder: Path, patterns: list[str]) -> list[str]:
    """The files of a folder that match, without Python's own leavings."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in paths if "__pycache__" not in path.parts)


def linked(page: str) -> set[str]:
    """The files that a page of the repository links to."""
    targets = LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    return {(ROOT / page).parent.joinpath(target).resolve().relative_to(ROOT).as_posix() for target in targets}


def link(source: str, target: str) -> None:
    """A hard link where the file system can, else a copy: the weights have gigabytes."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def show_table(page: Path) -> None:
    """Print the overview, or put it into a page other than "-"."""
    if page == Path("-"):
        print(overview(), end="")
        return
    try:
        put(page, overview())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def main() -> None:
    names = [*BUNDLED, *(name for name, backbone in BACKBONES.items() if backbone.version == 1), "space"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}, or a prompt file; default: all")
    who = "who publishes: an organisation or a user; default: TIPSOMALY_ORG"
    parser.add_argument("--org", default=organisation(), help=who)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "hub", help="where folders are built")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    parser.add_argument("--dry-run", action="store_true", help="list what would go where; upload nothing")
    parser.add_argument("--licence", help="of a prompt file, as the Hub calls it: mit, cc-by-nc-sa-4.0 ...")
    parser.add_argument("--measured", type=Path, metavar="MD", help="for a prompt file's card: results.md of evaluate")
    parser.add_argument("--space", action="store_const", const=["space"], default=[], help="the same as the NAME space")
    where = "print the table of all models and prompt sets, or put it into a page, between its marks"
    parser.add_argument("--table", nargs="?", type=Path, const=Path("-"), metavar="PAGE", help=where)
    options = parser.parse_args()
    if options.table:
        show_table(options.table)
        return
    if not options.org:
        parser.error("--org or TIPSOMALY_ORG must say who publishes")
    options.names += options.space
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
                folder = build(name, options.org, options.build)
            repository = f"{options.org}/{'tipsomaly' if kind == 'space' else folder.name}"
            content = contents(folder, ["**/*"])
            print(f"{kind} {repository}")
            for file in content:
                print(f"  {(folder / file).stat().st_size:>13,}  {file}")
            if options.dry_run:
                print("  (dry run: nothing was uploaded)")
            else:
                private = options.private or None
                address = upload(folder, repository, content, kind=kind, private=private, whole=kind == "space")
                print(f"  {address}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
