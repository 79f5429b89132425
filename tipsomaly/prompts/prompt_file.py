"""The file of learned prompts: safetensors whose metadata says the method. Whatever is in one is not trusted."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tipsomaly.errors import OptionError, one_line, printable
from tipsomaly.files import write_atomically

FORMAT = "tipsomaly-prompts-v2"
FIRST_FORMAT = "tipsomaly-prompts-v1"
"""Vectors of the method "tipsomaly", with the name of the ensemble in the metadata: read for ever."""

MAX_BYTES = 2**26
"""CoPS, the largest, has 57 MB at a width of 1536."""
MAX_TENSORS = 64
MAX_TEXT = 2**16


def prompts_file(path: str | Path) -> Path:
    """A path that prompts can be written to. OptionError for another suffix than .safetensors."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OptionError(
            f"{printable(path)}: a file of prompts must end in .safetensors, not in {path.suffix or 'nothing'}"
        )
    return path


@dataclass(frozen=True, eq=False)
class PromptFile:
    """What a file says."""

    method: str
    tensors: Mapping[str, Tensor]
    """float32, finite"""
    settings: Mapping[str, Any]
    """The method's own."""
    temperature: float | None
    """None: the backbone's own."""
    metadata: Mapping[str, str]
    """Where the numbers come from."""

    @classmethod
    def read(cls, path: str | Path) -> "PromptFile":
        """Read a file of either format. Raises ValueError, in one line, for anything else."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no prompt file at {path}")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} is too large for a prompt file: is it a model checkpoint?")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, names = dict(file.metadata() or {}), set(file.keys())
                known = metadata.pop("format", None)
                first = known == FIRST_FORMAT and names == {"normal", "abnormal"}
                if not (first or known == FORMAT) or len(names) > MAX_TENSORS:
                    raise ValueError(f"{path} is not a Tipsomaly prompt file (see `tipsomaly convert-prompts`)")
                tensors = {name: file.get_tensor(name) for name in sorted(names)}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {one_line(error)}") from None
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"{path}: the tensor {name!r} holds no numbers, NaN or infinity")
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        if sum(map(len, metadata.values())) > MAX_TEXT:
            raise ValueError(f"{path}: more than {MAX_TEXT} characters of metadata")
        if first:
            return cls("tipsomaly", tensors, {"ensemble": metadata.pop("ensemble", "industrial")}, None, metadata)
        try:
            settings = json.loads(metadata.pop("settings", "{}"))
            temperature = float(metadata.pop("temperature")) if "temperature" in metadata else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: its settings cannot be read: {one_line(error)}") from None
        if not isinstance(settings, dict):
            raise ValueError(f"{path}: its settings are {type(settings).__name__}, not an object")
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(f"{path}: the temperature must be positive, not {temperature}")
        return cls(metadata.pop("method", "tipsomaly"), tensors, settings, temperature, metadata)

    def write(self, path: str | Path) -> None:
        """Write it, whole or not at all; the same content gives the same bytes."""
        from safetensors.torch import save

        tensors = {name: value.detach().float().cpu().contiguous() for name, value in self.tensors.items()}
        metadata = {**self.metadata, "format": FORMAT, "method": self.method}
        metadata["settings"] = json.dumps(self.settings, sort_keys=True)
        if self.temperature is not None:
            metadata["temperature"] = repr(self.temperature)
        content = save(tensors, metadata=metadata)
        # The library writes metadata in an order that changes from run to run. After 8 bytes with its length comes the
        # header, in JSON and padded to whole 8 bytes; tensors are placed from its end on.
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.dumps(json.loads(content[8:end]), sort_keys=True).encode()
        header += b" " * (-len(header) % 8)
        write_atomically(Path(path), len(header).to_bytes(8, "little") + header + content[end:])
