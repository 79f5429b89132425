"""A few normal pictures, remembered: their memory, the thresholds of their own scores, and the file of both."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tipsomaly.detection.calibration import allowed, share_above
from tipsomaly.detection.combination import USES, Scale, Scales, Use
from tipsomaly.detection.memory import MEMORIES, Memory
from tipsomaly.errors import ModelError, OptionError, explained, printable, short
from tipsomaly.files import expand, is_file, sha256, write_atomically

Rule = Literal["rank", "percentile"]
RULES: tuple[Rule, ...] = ("rank", "percentile")

LIMIT, NUMBERS = 2**14, 2**24
"""Tokens of a memory, and numbers in them; of more a coreset is kept. At the sizes of L/14 a picture's search in so
many takes 4.5 % of the operations of the tower."""
SHALLOW = 6
"""Blocks of a tower below which the last one alone is remembered."""
UNLIKE = 3.0
"""Where a patch is this much farther from the other pictures than from the rest of its own, the prompts speak alone:
on photographs and drawings with composed defects both were better until about there."""


@dataclass(frozen=True)
class ReferenceOptions:
    """How normal pictures are remembered and what a verdict promises. Raises OptionError for what cannot be used.

    >>> ReferenceOptions().of_tower(depth=12).layers
    (-5, -1)
    """

    kind: str = "neighbours"
    """Of the memory: the distance to the nearest of the tokens, or to the subspace that they lie in."""
    layers: tuple[int, ...] | None = None
    """Blocks of the vision tower whose tokens are remembered (0-based, negative from the end). By default the last and
    the one after two thirds: on drawn products both together were better than either, as in PatchCore."""
    turns: bool = False
    """Remember the pictures' quarter turns and flips, too: for parts that lie in any direction."""
    limit: int | None = None
    """Tokens that are remembered at most, by greedy k-centre selection; by default LIMIT, or what holds NUMBERS."""
    target_fpr: float = 0.01
    """Share of normal pictures, and of their pixels, that may be called anomalous."""
    rule: Rule = "rank"
    """Of the thresholds: "rank", the smallest above all but the allowed share; "percentile", `factor` times the 95th
    percentile, as the winner of the VAND 4 challenge had it."""
    factor: float = 1.2

    def __post_init__(self) -> None:
        if self.kind not in MEMORIES:
            raise OptionError(f"unknown kind of memory {self.kind!r}: choose {', '.join(MEMORIES)}")
        if self.rule not in RULES:
            raise OptionError(f"unknown rule {self.rule!r}: choose {', '.join(RULES)}")
        layers = (-1,) if self.layers is None else self.layers
        if not 0 < len(layers) <= 64 or not all(type(layer) is int for layer in layers):
            raise OptionError(f"layers are numbers of blocks, at least one, not {self.layers}")
        if self.limit is not None and not self.limit >= 1:
            raise OptionError(f"a memory has at least one token, not {self.limit}")
        if not 0 < self.target_fpr < 1:
            raise OptionError(f"the target false-positive rate must be between 0 and 1, not {self.target_fpr}")
        if not 0 < self.factor < 100:
            raise OptionError(f"the factor must be above 0 and below 100, not {self.factor}")

    def of_tower(self, depth: int) -> "ReferenceOptions":
        """The same with layers of a tower of so many blocks."""
        if self.layers is not None:
            return self
        return replace(self, layers=(-1,) if depth < SHALLOW else (2 * depth // 3 - 1 - depth, -1))

    @property
    def blocks(self) -> tuple[int, ...]:
        """The layers, of a tower that is not known the last."""
        return self.layers or (-1,)


@dataclass(frozen=True, eq=False)
class References:
    """What a few normal pictures of a class say, for a pipeline of the same settings.

    >>> from tipsomaly import Pipeline
    >>> found = Pipeline.from_pretrained().make_references(["examples/pictures/tile-good.jpg"], "tile")
    >>> found.pictures, found.use
    (1, 'both')
    >>> found.p_value(2.5)  # no normal picture has such a score: 1 / (n + 1)
    0.5
    """

    memory: Memory
    scales: Scales
    scores: Mapping[Use, Tensor]
    """By what is used, (pictures,) float32 ascending: the normal pictures' image scores, each by a memory and scales
    without it."""
    pixels: Mapping[Use, tuple[float, float]]
    """By what is used: the smallest values that at most `target_fpr`, and at most 5 %, of the pixels of the normal
    pictures' maps reach."""
    options: ReferenceOptions
    class_name: str
    settings: Mapping[str, Any]
    """`Pipeline.settings` of the pipeline that made them."""
    weight: float
    """Of the memory, the prompts' being 1."""
    likeness: float | None = None
    """How far a patch is from the other normal pictures, divided by how far it is from the rest of its own: below 1 the
    pictures are of one product in one pose, or of one texture. None for a single picture."""
    forced: Use | None = None
    """What scores, if it is not to be chosen."""

    FORMAT = "tipsomaly-reference-v2"
    MAX_BYTES = 2**30

    @property
    def pictures(self) -> int:
        """How many normal pictures there were."""
        return len(self.scores["both"])

    @property
    def nbytes(self) -> int:
        """Of the memory."""
        return sum(tensor.nbytes for tensor in self.memory)

    @property
    def use(self) -> Use:
        """What scores: what was asked for, else both, or the prompts alone if the pictures are too unlike."""
        if self.forced:
            return self.forced
        return "prompts" if self.pictures > 2 and self.likeness is not None and self.likeness > UNLIKE else "both"

    @property
    def reason(self) -> str:
        """Why, in a line."""
        if self.forced:
            return f"{self.forced}: as asked for"
        if self.likeness is None:
            return f"both, the memory with weight {self.weight:.2f}: of one picture nothing can be left out"
        spread = (
            f"a patch is {self.likeness:.2f} times as far from the other normal pictures as from the rest of its own"
        )
        if self.use == "prompts":
            return f"prompts: {spread}; the normal pictures are too unlike each other"
        return f"both, the memory with weight {self.weight:.2f}: {spread}"

    @property
    def image_threshold(self) -> float:
        """A picture is anomalous if its score is at least this."""
        scores = self.scores[self.use].double()
        if self.options.rule == "percentile":
            return self.options.factor * float(scores.quantile(0.95))
        return math.nextafter(float(scores[-1 - allowed(self.options.target_fpr, self.pictures)]), math.inf)

    @property
    def pixel_threshold(self) -> float:
        """A pixel is anomalous if the anomaly map is at least this."""
        threshold, percentile = self.pixels[self.use]
        return threshold if self.options.rule == "rank" else self.options.factor * percentile

    @property
    def false_alarms(self) -> tuple[float, float, float]:
        """The share of other normal pictures that reach the image threshold: expected, and the ends of the interval
        that holds it in 95 % of draws of as many normal pictures. See `share_above`."""
        above = int((self.scores[self.use].double() >= self.image_threshold).sum())
        expected, low, high = share_above(above, self.pictures, 0.025, 0.975)
        return expected, low, high

    def p_value(self, score: float) -> float:
        """The probability that a normal picture has at least this image score, as far as so few can tell: in
        [1 / (n + 1), 1]; the conformal p-value."""
        reached = int((self.scores[self.use].double() >= score).sum())
        return (1 + reached) / (1 + self.pictures)

    def summary(self) -> str:
        """In a line: how many pictures, what scores and why, and what a verdict promises."""
        expected, low, high = self.false_alarms
        alarms = f"{expected:.1%} of normal pictures expected to be called anomalous ({low:.1%} to {high:.1%})"
        return f"{self.pictures} normal pictures; {self.reason}; {alarms}"

    def using(self, use: Use | None) -> "References":
        """The same, but what scores is forced; None: chosen."""
        if use is not None and use not in USES:
            raise OptionError(f"unknown evidence {use!r}: choose auto, {', '.join(USES)}")
        return replace(self, forced=use)

    def digest(self) -> str:
        """SHA-256 of all that a score depends on."""
        return sha256(json.dumps([self._record(), self.forced]), *self.memory)

    def check(self, settings: Mapping[str, Any], dim: int | None = None) -> None:
        """Raise ModelError, naming the difference, if they were made by another model, prompts or options, or
        their tokens are not `dim` wide."""
        for name, ours in settings.items():
            if name != "reference" and ours != (theirs := self.settings.get(name)):
                raise ModelError(f"these references were made with {name} {short(theirs)}, not {short(ours)}")
        width = self.memory[0].shape[-1]
        if dim and width != dim * len(self.options.blocks):
            raise ModelError(f"the tokens of these references are {width} wide, the model's {dim}")

    def _record(self) -> dict[str, Any]:
        return {
            "class_name": self.class_name,
            "settings": dict(self.settings),
            "weight": self.weight,
            "likeness": self.likeness,
            "options": {**asdict(self.options), "layers": list(self.options.blocks)},
            "scales": self.scales._asdict(),
            "pixels": {use: list(self.pixels[use]) for use in USES},
        }

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file, whole or not at all."""
        from safetensors.torch import save

        tensors = {name: value.cpu().contiguous() for name, value in self.memory._asdict().items()}
        tensors["scores"] = torch.stack([self.scores[use] for use in USES])
        metadata = {"format": self.FORMAT, "references": json.dumps(self._record())}
        write_atomically(Path(path), save(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> "References":
        """Read such a file; ModelError, in one line, if it is something else or its numbers cannot be used."""
        from safetensors import safe_open

        path = expand(path)
        name = printable(path)
        if not is_file(path):
            raise ModelError(f"{name}: no such file of references")
        if path.stat().st_size > cls.MAX_BYTES:
            raise ModelError(f"{name}: too large for references: is it a model checkpoint?")
        with explained(f"{name}: not a file of references"), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != cls.FORMAT:
                raise ValueError("see `tipsomaly reference`")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            return cls._checked(json.loads(metadata["references"]), tensors)

    @classmethod
    def _checked(cls, record: Mapping[str, Any], tensors: dict[str, Tensor]) -> "References":
        """Of what a file holds; ValueError, KeyError or TypeError for what no references are."""
        scores = tensors.pop("scores")
        if any(value.dtype != torch.float32 or not value.isfinite().all() for value in (scores, *tensors.values())):
            raise ValueError("its numbers are not all finite float32")
        if scores.ndim != 2 or scores.shape[0] != len(USES) or not scores.shape[1] or (scores.diff() < 0).any():
            raise ValueError("its scores are not there in order")
        memory = MEMORIES[record["options"]["kind"]](**tensors)
        memory.check()
        parts = {name: _pair(record["scales"][name]) for name in Scales._fields}
        scales = Scales(parts["tokens"], Scale(*parts["prompts"]), Scale(*parts["memory"]), parts["peaks"])
        if min(scales.prompts.deviation, scales.memory.deviation) <= 0:
            raise ValueError("a deviation is not above 0")
        pixels = {use: _pair(record["pixels"][use]) for use in USES}
        weight = _number(record["weight"])
        if not 0 <= weight <= 100:
            raise ValueError("its weight cannot be used")
        if not isinstance(record["class_name"], str) or not isinstance(record["settings"], dict):
            raise ValueError("its settings or class name are not there")
        try:
            options = ReferenceOptions(**{**record["options"], "layers": tuple(record["options"]["layers"])})
        except OptionError as error:
            raise ValueError(str(error)) from None
        return cls(
            memory=memory,
            scales=scales,
            scores=dict(zip(USES, scores, strict=True)),
            pixels=pixels,
            options=options,
            class_name=record["class_name"],
            settings=record["settings"],
            weight=weight,
            likeness=None if record["likeness"] is None else _number(record["likeness"]),
        )


def _pair(values: Sequence[object]) -> tuple[float, float]:
    first, second = values
    return _number(first), _number(second)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)
