"""What makes the repository's Markdown a site: it is taken as it is, with the pictures and files that it links to."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import tipsomaly

ROOT = Path(__file__).parents[2]
PAGES = (
    "examples/REPRODUCE.md",
    "examples/SCALE.md",
    "tipsomaly/nano/README.md",
    "CHANGELOG.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
)
HOME = "README.md"
LINK = re.compile(r"\[((?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\((?!https?:|#|mailto:)([^)#\s]+)\)")
"""A link to a file here; its text may be a picture."""
HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
"""What the Hub reads above a README."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, the reference, and whatever files the pages link to."""
    texts = {name: HEADER.sub("", (ROOT / name).read_text(encoding="utf-8")) for name in (HOME, *PAGES)}
    texts["reference.md"] = "# Reference\n\n" + "\n".join(f"::: tipsomaly.{name}\n" for name in tipsomaly.__all__)
    linked: set[str] = set()
    for name, text in texts.items():

        def there(link: re.Match[str], folder: Path = (ROOT / name).parent) -> str:
            path = (folder / link[2]).resolve()
            if path.is_dir():  # which a site does not show
                return link[1]
            if path.is_file():
                linked.add(path.relative_to(ROOT).as_posix())
            return link[0].replace("README.md)", "index.md)") if path == ROOT / HOME else link[0]

        content = LINK.sub(there, text)
        files.append(File.generated(config, "index.md" if name == HOME else name, content=content))
    for name in sorted(linked - texts.keys()):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files
