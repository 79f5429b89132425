"""What makes the repository's Markdown a site: it is taken as it is, with the pictures and files that it links to."""

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import tipsomaly

ROOT = Path(__file__).parents[2]
HOME, GUIDES = "README.md", "hub/site/pages/"
PAGES = (
    HOME,
    "examples/REPRODUCE.md",
    "examples/SCALE.md",
    "tipsomaly/nano/README.md",
    "CHANGELOG.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
)
LINK = re.compile(r"(\[(?:!\[[^\]]*\]\([^)]*\)|[^\]])*\]\()(?!https?:|#|mailto:)([^)#\s]+)([^)\s]*\))")
"""A link to a file here; its text may be a picture."""
HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
"""What the Hub reads above a README."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, the reference, and whatever files the pages link to."""
    linked: set[str] = set()
    names = [*PAGES, *(f"{GUIDES}{page.src_uri}" for page in files.documentation_pages())]
    for name in names:

        def there(link: re.Match[str], name: str = name) -> str:
            path = ((ROOT / name).parent / link[2]).resolve()
            if path.is_dir():  # which a site does not show
                return link[1].removeprefix("[").removesuffix("](")
            if not path.is_file():
                return link[0]  # of which mkdocs warns
            target = path.relative_to(ROOT).as_posix()
            linked.add(target)
            return link[1] + os.path.relpath(place(target), Path(place(name)).parent).replace(os.sep, "/") + link[3]

        content = LINK.sub(there, HEADER.sub("", (ROOT / name).read_text(encoding="utf-8")))
        put(files, File.generated(config, place(name), content=content))
    reference = "# Reference\n\n" + "\n".join(f"::: tipsomaly.{name}\n" for name in tipsomaly.__all__)
    put(files, File.generated(config, "reference.md", content=reference))
    for name in sorted(linked - {*names}):
        put(files, File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def place(name: str) -> str:
    """Where a file of the repository is on the site."""
    return "index.md" if name == HOME else name.removeprefix(GUIDES)


def put(files: Files, file: File) -> None:
    if older := files.get_file_from_path(file.src_uri):
        files.remove(older)
    files.append(file)
