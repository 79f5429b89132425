"""What there is to download: the released backbones and learned prompts, where they are and what they are."""

import os
from dataclasses import dataclass, field
from difflib import get_close_matches

BUCKET = "https://storage.googleapis.com/tips_data"
"""Google's release of TIPS; TIPSOMALY_BUCKET_URL puts a mirror in its place."""

GITHUB = "https://raw.githubusercontent.com/AlirezaSalehy/Tipsomaly/HEAD"
"""The authors' repository; TIPSOMALY_PROMPTS_URL puts a mirror in its place."""


def organisation() -> str | None:
    """The Hub organisation that names are looked for in first, if TIPSOMALY_ORG names one. There is none by default: a
    name that anybody may register must not decide whose weights are taken for Google's."""
    return os.environ.get("TIPSOMALY_ORG") or None


@dataclass(frozen=True)
class Source:
    """A file of somebody's release. `sha256` is None where nobody has published one: then the size, and the MD5 that
    Google's bucket sends along, are what can be checked."""

    url: str
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class TrainingData:
    """A data set that prompts are learned on: the licence of its pictures, and a copy of it on the Hub."""

    licence: str
    repository: str

    @property
    def terms(self) -> str:
        """The licence, and whether it forbids commercial use."""
        return self.licence + (", not for commercial use" if "-NC" in self.licence else "")


TRAINING_DATA = {
    "MVTec AD": TrainingData("CC BY-NC-SA 4.0", "Voxel51/mvtec-ad"),
    "VisA": TrainingData("CC BY 4.0", "Voxel51/VisA"),
}
"""What released prompts were learned on, by the name that the paper gives it."""

SELLERS = (
    "Who sells inspection wants prompts learned on VisA, on pictures of their own or on drawn ones (`tipsomaly train`)."
)


@dataclass(frozen=True)
class Prompts:
    """Learned prompts of a release: they fit one backbone. The licence is that of the file, not of `trained_on`."""

    trained_on: str
    path: str
    sha256: str
    licence: str = "MIT"

    @property
    def origin(self) -> str:
        """What they were learned on, and its terms."""
        return f"{self.trained_on} ({TRAINING_DATA[self.trained_on].terms})"

    @property
    def source(self) -> Source:
        """Where the file is: in the authors' repository or its mirror."""
        return Source(f"{os.environ.get('TIPSOMALY_PROMPTS_URL') or GITHUB}/{self.path}", self.sha256)


@dataclass(frozen=True)
class Backbone:
    """A released TIPS model. `parameters` are those of the vision and the text tower in millions, `image_size` is the
    side in pixels that the vision tower was trained at, `default_size` the one that we resize pictures to."""

    name: str
    width: int
    depths: tuple[int, int]
    parameters: tuple[int, int]
    base: str
    image_size: int = 448
    prompts: dict[str, Prompts] = field(default_factory=dict)
    licence: str = "Apache-2.0 / CC-BY 4.0"
    patch: int = 14

    @property
    def version(self) -> int:
        """Of TIPS: 1 is released as files in a bucket, 2 on the Hub."""
        return 2 if self.name.startswith("tipsv2-") else 1

    @property
    def default_size(self) -> int:
        """518 is the paper's choice for the high-resolution checkpoints of the first version."""
        return 518 if self.version == 1 and self.image_size == 448 else self.image_size

    @property
    def google_repository(self) -> str | None:
        """Google has the second version on the Hub in our own format; the first only as npz files."""
        return f"google/{self.name}" if self.version == 2 else None

    @property
    def sources(self) -> tuple[Source, Source, Source]:
        """Vision tower, text tower and tokenizer; one tokenizer serves all."""
        bucket = os.environ.get("TIPSOMALY_BUCKET_URL") or BUCKET
        files = f"{bucket}/v{self.version}_0/checkpoints/pytorch/{self.base}"
        tokenizer = f"{bucket}/v1_0/checkpoints/tokenizer.model"
        return Source(f"{files}_vision.npz"), Source(f"{files}_text.npz"), Source(tokenizer)


_LEARNED = "workspaces/trained_on_{}_default/vegan-arkansas/checkpoints/learnable_params_2.pth"
_MVTEC = "15546df6300fe8d9e272ee6cba5844f78bf2e1579d69eaf3fdf4f4c81b7a5fbb"
_VISA = "9758adc7e1303ffe991c0ab0052e26067d120b8036a864c9fd9aabc8212ac055"
_RELEASED = {
    "mvtec": Prompts("MVTec AD", _LEARNED.format("mvtec"), _MVTEC),
    "visa": Prompts("VisA", _LEARNED.format("visa"), _VISA),
}

BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("tips-s14-hr", 384, (12, 12), (22, 34), "tips_oss_s14_highres_distilled"),
        Backbone("tips-b14-hr", 768, (12, 12), (86, 110), "tips_oss_b14_highres_distilled"),
        Backbone("tips-l14-hr", 1024, (24, 12), (304, 184), "tips_oss_l14_highres_distilled", prompts=_RELEASED),
        Backbone("tips-so400m14-hr", 1152, (27, 27), (413, 448), "tips_oss_so400m14_highres_largetext_distilled"),
        Backbone("tips-g14-lr", 1536, (40, 12), (1135, 389), "tips_oss_g14_lowres", image_size=224),
        Backbone("tips-g14-hr", 1536, (40, 12), (1136, 389), "tips_oss_g14_highres"),
        Backbone("tipsv2-b14", 768, (12, 12), (86, 110), "tips_v2_oss_b14"),
        Backbone("tipsv2-l14", 1024, (24, 12), (304, 184), "tips_v2_oss_l14"),
        Backbone("tipsv2-so400m14", 1152, (27, 27), (413, 448), "tips_v2_oss_so14"),
        Backbone("tipsv2-g14", 1536, (40, 12), (1136, 389), "tips_v2_oss_g14"),
    )
}
"""The released backbones by name, smallest first within a version."""


@dataclass(frozen=True)
class Other:
    """A backbone of another family, as its authors have it on the Hub: `families.py` says what reads it. The numbers
    are those of `Backbone`."""

    repository: str
    width: int
    parameters: tuple[int, int]
    default_size: int
    licence: str
    patch: int
    prompts: dict[str, Prompts] = field(default_factory=dict)


OTHERS = {
    "siglip2-large-patch16-512": Other("google/siglip2-large-patch16-512", 1024, (317, 566), 512, "Apache-2.0", 16),
}
"""Other backbones that have a name."""


def near(name: str, names: list[str]) -> str:
    """A hint for an unknown name: the near ones, or all of them."""
    close = get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
