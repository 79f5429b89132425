"""Where `tipsomaly detect` has pictures from: files, and what pictures are read out of one by one."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from tipsomaly.cli.options import find_pictures
from tipsomaly.cli.outcomes import Outcomes
from tipsomaly.data.archives import Archive, is_archive
from tipsomaly.data.hugging_face import SCHEME, HubDataset
from tipsomaly.data.images import Named, source_name
from tipsomaly.files import is_file

Source = Path | Archive | HubDataset
"""A picture, or what has several."""


def find_sources(names: list[str]) -> list[Source]:
    """What the arguments of a command name, each once, in order. A picture is named there or lies in a folder that is;
    what has several is always named."""
    found: dict[object, Source] = {}
    for name in names:
        if name.startswith(SCHEME):
            found[name] = HubDataset(name)
        else:
            for path in find_pictures([name]):
                found[path] = Archive(path) if is_archive(path) and is_file(path) else path
    return list(found.values())


class Pictures:
    """The pictures of sources in order, but for those that need no result: overlays in the folder of the results and,
    with `skip`, pictures that have results."""

    def __init__(self, sources: Sequence[Source], outcomes: Outcomes, skip: bool) -> None:
        self.sources, self.records, self.skip = sources, outcomes.records, skip
        self.given, self.before = 0, 0
        """Pictures so far, and those among them that had results."""
        self.names: deque[str] = deque()
        """Of those that were given out and not taken from here."""
        files = sum(isinstance(source, Path) for source in sources)
        self.bar = tqdm(total=files if files == len(sources) else None, unit="picture", disable=None)

    def __iter__(self) -> Iterator[Path | Named]:
        for source in self.sources:
            for picture in (source,) if isinstance(source, Path) else source:
                name = source_name(picture) or ""
                if self.records and self.records.made(name):
                    continue
                self.given += 1
                if self.records and self.records.has(name):
                    self.before += 1
                    if self.skip:
                        self.bar.update()
                        continue
                self.names.append(name)
                yield picture
