"""Prompts and prototypes (section 3 of the paper): sentences of a normal and an abnormal state -> two unit vectors.

Fixed prompts are sentences about the class and serve the image score; learned prompts are vectors put before
class-agnostic sentences and serve the patch map.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tipsomaly.catalogue import ModelError
from tipsomaly.files import write_atomically
from tipsomaly.tips import TextTower
from tipsomaly.tokenizer import Tokenizer


@dataclass(frozen=True)
class PromptEnsemble:
    """Every state of the class in every template. Each string holds one `{}`: for the class name in a state, for the
    state in a template. Pass one of your own wherever a domain is asked for."""

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        for kind in ("normal", "abnormal", "templates"):
            strings = getattr(self, kind)
            if isinstance(strings, str) or not strings:
                raise ValueError(f"{kind} prompts: give at least one string in a list")
            object.__setattr__(self, kind, tuple(strings))
            for text in strings:
                if text.count("{}") != 1:
                    raise ValueError(f"{kind} prompt {text!r} must contain {{}} exactly once")

    def sentences(self, class_name: str) -> tuple[list[str], list[str]]:
        """The (normal, abnormal) sentences for a class."""
        name = clean_class_name(class_name)
        normal, abnormal = (
            [template.replace("{}", state.replace("{}", name)) for state in states for template in self.templates]
            for states in (self.normal, self.abnormal)
        )
        return normal, abnormal


ENSEMBLES: Mapping[str, PromptEnsemble] = {
    "industrial": PromptEnsemble(
        normal=(
            "{}",
            "flawless {}",
            "perfect {}",
            "unblemished {}",
            "{} without flaw",
            "{} without defect",
            "{} without damage",
        ),
        abnormal=("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"),
        templates=(
            "a bad photo of a {}.",
            "a low resolution photo of the {}.",
            "a bad photo of the {}.",
            "a cropped photo of the {}.",
        ),
    ),
    "medical": PromptEnsemble(
        normal=(
            "normal {}",
            "intact {}",
            "{} with uniform structure",
            "{} showing clear tissue",
            "{} with normal anatomy",
            "{} showing no distortion",
            "{} with symmetric appearance",
            "{} looking normal",
            "{} with even texture",
            "{} with regular shape",
        ),
        abnormal=(
            "abnormal {}",
            "{} with spot",
            "{} with abnormality",
            "diseased {}",
            "{} showing distortion",
            "{} with irregular area",
            "{} with irregular shape",
            "{} with uneven texture",
        ),
        templates=(
            "a medical image of a {}.",
            "a medical image of the {}.",
            "a diagnostic scan of a {}.",
            "a diagnostic scan of the {}.",
            "a slice showing a {}.",
            "a slice showing the {}.",
            "a scan of the {}.",
            "a clinical brain scan of a {}.",
        ),
    ),
    "object-agnostic": PromptEnsemble(normal=("{}",), abnormal=("damaged {}",)),
}
"""The fixed prompts of the released code, by domain."""


def ensemble(domain: str | PromptEnsemble) -> PromptEnsemble:
    """The ensemble of a domain name, or the one given. Raises ModelError for an unknown name."""
    if isinstance(domain, PromptEnsemble):
        return domain
    if domain not in ENSEMBLES:
        raise ModelError(f"unknown domain {domain!r}: choose {', '.join(ENSEMBLES)}, or pass a PromptEnsemble")
    return ENSEMBLES[domain]


def clean_class_name(name: str) -> str:
    """`metal_nut` and `metal-nut` are the words "metal nut"."""
    words = " ".join(name.replace("_", " ").replace("-", " ").split())
    if not words:
        raise ValueError("the class name is empty: say what is on the picture, or use 'object'")
    return words


@dataclass(frozen=True, eq=False)
class LearnedPrompts:
    """The vectors of section 3.2: `normal` and `abnormal`, each (E, D) float32, put before class-agnostic sentences.

    `ensemble` says which sentences they were trained before. The paper writes the set {[Tn, "object"],
    [Ta, "damaged"], [Ta, "object"]}, here "paper"; the released code uses every sentence of a fixed ensemble for the
    word "object", here the name of that ensemble. `metadata` says where the vectors come from.
    """

    normal: Tensor
    abnormal: Tensor
    ensemble: str = "industrial"
    metadata: Mapping[str, str] = field(default_factory=dict)

    FORMAT = "tipsomaly-prompts-v1"
    MAX_BYTES = 2**24

    def __post_init__(self) -> None:
        if self.normal.ndim != 2 or self.normal.shape != self.abnormal.shape or not self.normal.numel():
            raise ValueError(
                "learned prompts are two tensors (E, D) of one shape, "
                f"not {tuple(self.normal.shape)} and {tuple(self.abnormal.shape)}"
            )
        if not (self.normal.isfinite().all() and self.abnormal.isfinite().all()):
            raise ValueError("learned prompts hold NaN or infinity")
        if self.ensemble != "paper" and self.ensemble not in ENSEMBLES:
            raise ValueError(f"unknown prompt ensemble {self.ensemble!r}: choose paper, {', '.join(ENSEMBLES)}")

    def sentences(self) -> tuple[list[str], list[str]]:
        """The (normal, abnormal) sentences that the vectors are put before."""
        if self.ensemble == "paper":
            return ["object"], ["damaged", "object"]
        return ENSEMBLES[self.ensemble].sentences("object")

    @classmethod
    def load(cls, path: str | Path) -> "LearnedPrompts":
        """Read a prompts .safetensors file; ValueError when it is something else."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no prompt file at {path}")
        if path.stat().st_size > cls.MAX_BYTES:
            raise ValueError(f"{path} is too large for a prompt file: is it a model checkpoint?")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                if metadata.pop("format", None) != cls.FORMAT or set(file.keys()) != {"normal", "abnormal"}:
                    raise ValueError(f"{path} is not a Tipsomaly prompt file (see `tipsomaly convert-prompts`)")
                normal, abnormal = (file.get_tensor(state).float() for state in ("normal", "abnormal"))
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
        return cls(normal, abnormal, metadata.pop("ensemble", "industrial"), metadata)

    def save(self, path: str | Path) -> None:
        """Write a prompts .safetensors file, whole or not at all; the same prompts give the same bytes."""
        from safetensors.torch import save

        tensors = {"normal": self.normal, "abnormal": self.abnormal}
        tensors = {state: value.detach().float().cpu().contiguous() for state, value in tensors.items()}
        content = save(tensors, metadata={**self.metadata, "format": self.FORMAT, "ensemble": self.ensemble})
        # The library writes metadata in an order that changes from run to run. After 8 bytes with its length comes the
        # header, in JSON and padded to whole 8 bytes; tensors are placed from its end on.
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
        header += b" " * (-len(header) % 8)
        write_atomically(Path(path), len(header).to_bytes(8, "little") + header + content[end:])


def prototypes(
    tower: TextTower,
    tokenizer: Tokenizer,
    sentences: tuple[Sequence[str], Sequence[str]],
    learned: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(2, D) float32 prototypes, normal then abnormal: the mean of the unit sentence embeddings of a state, made a
    unit vector again. `learned` holds the vectors to put before the normal and the abnormal sentences.

    Gradients flow to `learned`, so that training and inference share this function.
    """
    learned = learned or (None, None)
    embeddings = (embed(tower, tokenizer, *state) for state in zip(sentences, learned, strict=True))
    return torch.stack([F.normalize(e.mean(0), dim=-1) for e in embeddings])


def embed(tower: TextTower, tokenizer: Tokenizer, texts: Sequence[str], learned: Tensor | None = None) -> Tensor:
    """(n, D) float32 unit embeddings of sentences, each with the `learned` vectors before it if there are some."""
    device = tower.token_embedding.weight.device
    ids, valid = tokenizer(texts)
    length = max(int(valid.sum(1).max()), 1)  # padding is masked everywhere: cutting it off changes only the time
    prompt = None if learned is None else learned.to(device)
    return F.normalize(tower(ids[:, :length].to(device), valid[:, :length].to(device), prompt).float(), dim=-1)
