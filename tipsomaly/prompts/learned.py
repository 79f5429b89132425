"""Learned prompts (section 2.4): vectors put before class-agnostic sentences, and their file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tipsomaly.errors import OptionError, printable
from tipsomaly.files import sha256, write_atomically
from tipsomaly.prompts.sentences import ENSEMBLES


def prompts_file(path: str | Path) -> Path:
    """A path that prompts can be written to. OptionError for another suffix than .safetensors."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OptionError(
            f"{printable(path)}: a file of prompts must end in .safetensors, not in {path.suffix or 'nothing'}"
        )
    return path


@dataclass(frozen=True, eq=False)
class LearnedPrompts:
    """The vectors of section 2.4: `normal` and `abnormal`, each (E, D) float32, put before class-agnostic sentences.

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

    def digest(self) -> str:
        """SHA-256 of all that a score depends on."""
        return sha256(self.ensemble, self.normal, self.abnormal)

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
