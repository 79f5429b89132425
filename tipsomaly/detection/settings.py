"""Every option that a score depends on: its check, its default, and what tells it apart from others."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tipsomaly.data.interest import MaskSource, RegionOfInterest
from tipsomaly.detection.scoring import SIGMA
from tipsomaly.detection.tiling import Tiling
from tipsomaly.errors import OptionError
from tipsomaly.files import digest
from tipsomaly.models.encoder import READOUTS, Readout
from tipsomaly.models.shapes import PATCH
from tipsomaly.names import clean_kinds
from tipsomaly.prompts.sentences import ENSEMBLES, PromptEnsemble, ensemble
from tipsomaly.prompts.strategy import MODES, Mode

LARGEST_SIDE = 4096
"""Pixels of the input: 86,000 patches are beyond any use, and more would only fill the memory."""

VERSION = 2
"""Of what `Settings.record` says; results and calibrations of another version are made again."""


@dataclass(frozen=True)
class Settings:
    """The options of a pipeline, besides its weights and prompts. Raises OptionError, in one line, for one that cannot
    be used. A new option is a field here, with its check, and an option of the command.

    >>> settings = Settings(448, domain="medical")
    >>> settings.size, settings.but(mode="fixed").mode
    ((448, 448), 'fixed')
    """

    image_size: int | tuple[int, int]
    """Side, or (height, width), in pixels that pictures are resized to before the vision tower; a pair once it is here.
    Multiples of the patch size."""
    domain: str | PromptEnsemble = "industrial"
    """The fixed prompts: a key of `ENSEMBLES`, or prompts of your own."""
    mode: Mode = "decoupled"
    """Which prompts make which prototypes (table 2a); `Pipeline` takes that of the prompts' method by default."""
    kinds: tuple[str, ...] | None = None
    """Names of the kinds of defects to tell apart, for prompts that know kinds; default: those that they learned."""
    sigma: float = SIGMA
    """Deviation in pixels, at the input size, of the Gaussian that smooths a map; 0 to below 1000."""
    tile: int | None = None
    """Side in pixels of the tiles that a larger picture is also cut into. Ours, not the paper's."""
    overlap: float | None = None
    """Share of a tile's side that the next one covers too, 0 to 0.75; with tiles 0.25 unless given."""
    keep_aspect: bool = False
    """Resize to about as many patches as `image_size` has, in the picture's own proportions. Ours, not the paper's."""
    readout: Readout = "tokens"
    """What patches are read from; `Pipeline` takes that which the prompts were trained with by default."""
    top: float | None = None
    """The local part of the image score is the mean of this share of the patches, those of the largest probability and
    at least one; None: the largest alone, as in the paper. SubspaceAD has 0.01."""
    roi: RegionOfInterest | MaskSource | None = field(default=None, repr=False)
    """What counts of a picture, a `RegionOfInterest` once it is here; None: all. With `top`, the share is one of the
    patches of its bounding box. Ours, not the paper's."""
    ignore: MaskSource | None = field(default=None, repr=False)
    """What does not count; it goes into `roi`."""
    min_area: int = 0
    """Of a map's regions, those of fewer pixels are left out; no score depends on it."""
    patch_size: int = field(default=PATCH, repr=False)
    """Of the backbone, in pixels."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _checked_size(self.image_size, self.patch_size))
        ensemble(self.domain)
        if self.kinds is not None:
            object.__setattr__(self, "kinds", clean_kinds(self.kinds))
        if self.ignore is not None or not isinstance(self.roi, RegionOfInterest | None):
            roi = self.roi.mask if isinstance(self.roi, RegionOfInterest) else self.roi
            object.__setattr__(self, "roi", RegionOfInterest.of(roi, self.ignore))
            object.__setattr__(self, "ignore", None)
        if type(self.min_area) is not int or self.min_area < 0:
            raise OptionError(f"the smallest area is a number of pixels, 0 or more, not {self.min_area!r}")
        if self.mode not in MODES:
            raise OptionError(f"unknown mode {self.mode!r}: choose {', '.join(MODES)}")
        if self.readout not in READOUTS:
            raise OptionError(f"unknown readout {self.readout!r}: choose {', '.join(READOUTS)}")
        if not isinstance(self.sigma, int | float) or not 0 <= self.sigma < 1000:
            raise OptionError(f"sigma must be a number of pixels from 0 to below 1000, not {self.sigma}")
        if self.top is not None and not (isinstance(self.top, int | float) and 0 < self.top <= 1):
            raise OptionError(f"top is a share of the patches, above 0 to 1, not {self.top!r}")
        if self.tile is None and self.overlap is not None:
            raise OptionError("an overlap is of tiles: give their side, too (tile=518)")
        _ = self.tiling  # checks both

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels that pictures are resized to."""
        assert isinstance(self.image_size, tuple)
        return self.image_size

    @property
    def ensemble(self) -> PromptEnsemble:
        """The fixed prompts themselves."""
        return ensemble(self.domain)

    @property
    def tiling(self) -> Tiling | None:
        """How larger pictures are cut, if they are."""
        if self.tile is None:
            return None
        return Tiling(self.tile) if self.overlap is None else Tiling(self.tile, self.overlap)

    @property
    def region(self) -> RegionOfInterest | None:
        """What counts of a picture, if not all of it does."""
        assert self.roi is None or isinstance(self.roi, RegionOfInterest)
        return self.roi

    def but(self, **options: Any) -> "Settings":
        """The same with other options; an overlap goes where its tiles go. Raises OptionError for unknown names."""
        known = self.options().keys()
        if unknown := options.keys() - known:
            raise OptionError(f"no option {', '.join(sorted(unknown))}: there are {', '.join(sorted(known))}")
        if options.get("tile", self.tile) is None:
            options.setdefault("overlap", None)
        return Settings(**{**self.options(), **options}, patch_size=self.patch_size)

    def options(self) -> dict[str, Any]:
        """The fields by name, as `Pipeline` takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "patch_size"}

    def record(self) -> Mapping[str, Any]:
        """For JSON; prompts of your own as a digest."""
        named = [name for name, known in ENSEMBLES.items() if known == self.ensemble]
        tiling = self.tiling
        return {
            "version": VERSION,
            "domain": named[0] if named else digest(asdict(self.ensemble)),
            "mode": self.mode,
            "kinds": self.kinds and list(self.kinds),
            "image_size": list(self.size),
            "sigma": float(self.sigma),
            "tiling": tiling and [tiling.tile, tiling.overlap],
            "keep_aspect": self.keep_aspect,
            "readout": self.readout,
            "top": self.top and float(self.top),
            "roi": self.region and self.region.digest(),
        }


def _checked_size(size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    if not isinstance(size, int) and (not isinstance(size, Sequence) or len(size) != 2):
        raise OptionError(f"the image size is a side or (height, width) in pixels, not {size!r}")
    height, width = (size, size) if isinstance(size, int) else size
    for side in (height, width):
        if type(side) is not int or side > LARGEST_SIDE:
            raise OptionError(f"the image size must be at most {LARGEST_SIDE} pixels a side, not {side}")
        if side < patch or side % patch:
            near = max(patch, round(side / patch) * patch)
            raise OptionError(f"the image size must be a multiple of {patch}, not {side}: try {near}")
    return height, width
