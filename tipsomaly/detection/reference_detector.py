"""Normal pictures through the model, and the detector that compares others with them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tipsomaly.data.images import ImageSource, pictures_in
from tipsomaly.detection.combination import USES, Use, combine
from tipsomaly.detection.detector import Evidence, PromptDetector, PromptedDetector
from tipsomaly.detection.engine import Engine
from tipsomaly.detection.leave_one_out import TURNS, Normal, turn
from tipsomaly.detection.memory import unit_tokens
from tipsomaly.detection.references import ReferenceOptions, References
from tipsomaly.detection.views import View
from tipsomaly.errors import ImageError, ModelError, OptionError, printable
from tipsomaly.files import digest, expand, sha256
from tipsomaly.models.encoder import ImageTokens
from tipsomaly.names import clean_class_name

MAX_NORMALS = 200
"""Normal pictures that are remembered at most: more add little to a memory of a limited size."""


class ReferenceDetector(PromptedDetector):
    """What the prompts say and how far each patch is from the memory, as the references have them go together."""

    def __init__(self, prompts: PromptDetector, references: References, device: torch.device) -> None:
        super().__init__(prompts)
        self.references = references
        self.memory = type(references.memory)(*(tensor.to(device) for tensor in references.memory))

    @property
    def identity(self) -> object:
        """Equal for detectors that make the same map."""
        return self.references.digest(), self.prompts.identity

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks whose patch tokens it compares with the memory."""
        return () if self.references.use == "prompts" else self.references.options.blocks

    def score(self, tokens: ImageTokens, *layers: Tensor) -> Evidence:
        """The evidence of a batch; `layers` (B, h, w, D) are the patch tokens of the blocks `layers`."""
        said = self.prompts.score(tokens)
        if not layers:
            return said
        distances = self.memory.distances(unit_tokens(layers))
        found = self.references
        evidence = combine(said.images, said.patches, distances, found.scales, found.weight, found.use)
        return evidence._replace(kinds=said.kinds)


class ReferenceSource:
    """Where references come from: made already, or made for each class of normal pictures."""

    def __init__(
        self,
        source: References | str | Path | Sequence[ImageSource],
        evidence: Use | None = None,
        options: ReferenceOptions | None = None,
    ) -> None:
        """References, their file, a folder of normal pictures, or of such folders named after classes, or the pictures
        themselves. `evidence` forces what scores.

        Raises ModelError for a file that is none or a folder without pictures, OptionError for unknown evidence."""
        self._folders: dict[str, Path] = {}
        if isinstance(source, str | Path):
            path = expand(source)
            if not os.path.isdir(path):
                source = References.load(path)
            elif not (source := pictures_in(path)):
                raise ModelError(f"{printable(path)}: no normal pictures in this folder")
            else:
                self._folders = {clean_class_name(folder.name): folder for folder in path.iterdir() if folder.is_dir()}
        if evidence is not None and evidence not in USES:
            raise OptionError(f"unknown evidence {evidence!r}: choose {', '.join(USES)}")
        if isinstance(source, References):
            if options is not None:
                raise OptionError("references that are made have their options already")
            source = source.using(evidence) if evidence else source
        elif not source:
            raise OptionError("references are normal pictures: give at least one")
        self.source: References | list[ImageSource] = source if isinstance(source, References) else list(source)
        self.evidence, self.options = evidence, options or ReferenceOptions()
        self._made: dict[str, References] = {}

    def digest(self) -> str:
        """SHA-256 of what a score depends on; of picture files their names, sizes and times."""
        if isinstance(self.source, References):
            return self.source.digest()
        pictures = [_state(picture) for picture in self.source]
        return digest(["normals", pictures, self.evidence, asdict(self.options)])

    def of(
        self, class_name: str, make: Callable[[Sequence[ImageSource], str, ReferenceOptions], References]
    ) -> References:
        """The references for a class, made by `make` when they are asked for first. Raises ModelError if they were made
        for another."""
        if isinstance(self.source, References):
            if self.source.class_name != class_name:
                raise ModelError(f"these references are of the class {self.source.class_name!r}, not {class_name!r}")
            return self.source
        if class_name not in self._made:
            pictures = pictures_in(self._folders[class_name]) if class_name in self._folders else self.source
            self._made[class_name] = make(pictures, class_name, self.options).using(self.evidence)
        return self._made[class_name]


def _state(picture: ImageSource) -> object:
    if isinstance(picture, str | Path):
        try:
            stat = os.stat(picture)
        except (OSError, ValueError):
            return str(picture)
        return [os.path.abspath(picture), stat.st_size, stat.st_mtime_ns]
    if isinstance(picture, bytes):
        return sha256(picture)
    array = np.ascontiguousarray(np.asarray(picture))
    return [list(array.shape), str(array.dtype), sha256(array.tobytes())]


@torch.inference_mode()
def observe(
    engine: Engine,
    images: Iterable[ImageSource],
    prompts: PromptDetector,
    options: ReferenceOptions,
    batch_size: int,
) -> Iterator[Normal]:
    """What the model says of normal pictures, in order, with tokens on its device. Raises ImageError, naming the
    picture, for one that cannot be used, and OptionError for blocks that the tower has not."""
    depth = engine.tips.config.vision.depth
    if bad := [layer for layer in options.blocks if not -depth <= layer < depth]:
        raise OptionError(f"the tower has blocks {-depth} to {depth - 1}, not {bad[0]}")
    views = engine.viewer.views(images, batch_size)
    begun: list[_Seen] = []
    while batch := list(islice(views, batch_size)):
        usable: list[View] = []
        for found in batch:
            if isinstance(found, ImageError):
                raise found
            usable.append(found)
        for view, seen in _see(engine, usable, prompts, options):
            begun.append(seen)
            if view.is_last:
                turned = [copy for part in begun for copy in part.turned]
                yield Normal([p.tokens for p in begun], begun[0].images, [p.patches for p in begun], turned)
                begun = []


class _Seen:
    """One view."""

    def __init__(self, tokens: Tensor, images: Tensor, patches: Tensor) -> None:
        self.tokens, self.images, self.patches = tokens, images, patches
        self.turned: list[tuple[int, Tensor]] = []

    def spoken_by(self, speakers: Tensor | None) -> "_Seen":
        """The same with a region of interest, see `Place.speakers`: nothing outside is remembered."""
        if speakers is None:
            return self
        tokens, patches = (x.flatten(0, 1)[speakers.to(x.device)] for x in (self.tokens, self.patches))
        seen = _Seen(tokens, self.images, patches)
        for number, copy in self.turned:
            turned = turn(torch.arange(speakers.numel()).view_as(speakers), number)  # the patch that each place shows
            back = torch.empty_like(turned.flatten()).scatter_(0, turned.flatten(), torch.arange(turned.numel()))
            chosen = back[speakers.flatten()[turned]]
            seen.turned.append((number, copy.flatten(0, 1)[chosen.to(copy.device)]))
        return seen


def _see(
    engine: Engine, batch: list[View], prompts: PromptDetector, options: ReferenceOptions
) -> Iterator[tuple[View, _Seen]]:
    groups: dict[torch.Size, list[int]] = {}
    for i, view in enumerate(batch):
        groups.setdefault(view.pixels.shape, []).append(i)
    seen: dict[int, _Seen] = {}
    for members in groups.values():
        pixels = torch.stack([batch[i].pixels for i in members])
        for number in range(TURNS if options.turns else 1):
            last, *layers = engine.encode_layers(turn(pixels, number), [-1, *options.blocks], prompts.image_tokens)
            tokens = unit_tokens([layer.patches for layer in layers])
            if number == 0:
                said = prompts.score(last)
                rows = zip(tokens, said.images.cpu(), said.patches.cpu(), strict=True)
                seen |= {i: _Seen(*row) for i, row in zip(members, rows, strict=True)}
            else:
                for i, copy in zip(members, tokens, strict=True):
                    seen[i].turned.append((number, copy))
    for i, view in enumerate(batch):
        yield view, seen[i].spoken_by(view.speakers)
