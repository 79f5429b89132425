"""Where `tipsomaly detect` has pictures from: files, and what pictures are read out of one by one."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tipsomaly.cli.options import find_pictures, matches
from tipsomaly.cli.outcomes import Outcomes
from tipsomaly.data.archives import Archive, is_archive
from tipsomaly.data.hugging_face import SCHEME, HubDataset
from tipsomaly.data.images import Named, source_name
from tipsomaly.data.video import Video
from tipsomaly.detection.formats import Stems
from tipsomaly.detection.records import RESULTS, Records, read_records
from tipsomaly.files import file_name, is_file, write_atomically

Source = Path | Archive | HubDataset | Video
"""A picture, or what has several."""
FPS = 1.0
"""Frames of a second of a video that are scored."""


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


def pictures_of(sources: Sequence[Source]) -> Iterable[Path | Named]:
    """The pictures themselves: of files a list, of what pictures are read out of one after the other."""
    files = [source for source in sources if isinstance(source, Path)]
    if len(files) == len(sources):
        return files
    return (picture for source in sources for picture in ((source,) if isinstance(source, Path) else source))


def spread(pictures: Iterable[Path | Named], most: int) -> tuple[list[Path | Named], int]:
    """`most` pictures or up to twice as many, evenly spread, if there are so many, else all; and how many there are. No
    more are in memory at once."""
    kept: list[Path | Named] = []
    count, step = 0, 1
    for picture in pictures:
        if count % step == 0:
            kept.append(picture)
        count += 1
        if len(kept) > 2 * most:
            kept, step = kept[::2], 2 * step
    return kept, count


def find_videos(names: list[str], fps: float | None) -> list[Source]:
    """What the arguments of a command with --video name, each once, in order."""
    places = [place for name in names for place in matches(name) or [name]]
    return [Video(place, FPS if fps is None else fps) for place in dict.fromkeys(places)]


def draw_scores(sources: Sequence[Source], records: Records, threshold: float | None) -> None:
    """Beside the results of videos, a strip of the scores over time for each: those of earlier runs, too."""
    from tipsomaly.studies.figures import over_time

    live = {file_name(source.place): source.live for source in sources if isinstance(source, Video)}
    videos: dict[str, list[tuple[float, float]]] = {place: [] for place in live}
    for record in read_records(records.folder / RESULTS) if videos else ():
        place = record["image"].rpartition("/")[0]
        if place in videos and "score" in record and "time" in record:
            videos[place].append((record["time"], record["score"]))
    stems = Stems()
    for place, scores in videos.items():
        stem = stems(place)
        if scores:
            seconds, values = np.array(sorted(scores)).T
            picture = over_time(seconds - seconds[0] if live[place] else seconds, values, threshold)
            write_atomically(records.folder / f"{stem}_scores.png", picture)


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
        for picture in pictures_of(self.sources):
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
