"""Released files to ours: TIPS npz checkpoints to a model folder, Tipsomaly prompt pickles to safetensors."""

import json
import math
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from tipsomaly.errors import ModelError, explained
from tipsomaly.files import staged_folder
from tipsomaly.models.config import TipsConfig
from tipsomaly.models.folder import existing, write_configs
from tipsomaly.models.shapes import DEFAULT_TEMPERATURE, PATCH, Shapes, read_config
from tipsomaly.models.tips import Tips
from tipsomaly.models.tokenizer import Tokenizer


def convert(
    vision_npz: str | Path,
    text_npz: str | Path,
    tokenizer_model: str | Path,
    out: str | Path,
    *,
    heads: int | None = None,
    text_heads: int | None = None,
    image_size: int | None = None,
    dtype: str | None = None,
) -> TipsConfig:
    """Write the model folder `out` from a released TIPS checkpoint; every size is read from the arrays.

    heads: attention heads of both towers; without it width / 64, or 16 for the 1152-wide SO400m.
    text_heads: those of the text tower, where they differ.
    image_size: default input side in pixels; without it 518 for a checkpoint trained at 448 (the paper's choice), else
        the side it was trained at.
    dtype: "float32", "bfloat16" or "float16" for every array; without it each keeps its own. The half-precision ones
        halve the file and round the text tower's weights too, which prototypes are sensitive to.

    Arrays are copied one by one, so memory stays at the largest of them. Raises ModelError.
    """
    if dtype not in (None, *KINDS):
        raise ModelError(f"unknown dtype {dtype!r}: choose {', '.join(KINDS)}")
    out = Path(out)
    with _Npz(vision_npz) as vision, _Npz(text_npz) as text:
        config = read_config(vision.shapes, text.shapes, _temperature(text), heads, text_heads)
        with explained(tokenizer_model):
            tokenizer = Tokenizer(existing(tokenizer_model), config.text.max_length)
        if tokenizer.vocab_size > config.text.vocab_size:
            raise ModelError(f"{tokenizer_model} has {tokenizer.vocab_size} pieces, the model {config.text.vocab_size}")
        sources = {f"vision_encoder.{name}": (vision, name) for name in vision.shapes}
        sources |= {f"text_encoder.{name}": (text, name) for name in text.shapes if name != "temperature"}
        with torch.device("meta"):
            expected = {name: tuple(value.shape) for name, value in Tips(config).state_dict().items()}
        found = {name: source.shapes[key][0] for name, (source, key) in sources.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ModelError(f"{name}: the file has {found.get(name)}, the towers want {expected.get(name)}")
        side = image_size or (518 if config.vision.image_size == 448 else config.vision.image_size)
        if side % PATCH:
            raise ModelError(f"the image size must be a multiple of {PATCH}, not {side}")
        with staged_folder(out) as staging:
            write_configs(staging, config, (side, side))
            shutil.copyfile(tokenizer_model, staging / "tokenizer.model")
            _write_safetensors(staging / "model.safetensors", sources, dtype)
    return config


class _Npz:
    """The arrays of an npz file: shapes from the headers at once, contents one at a time, never a pickle."""

    def __init__(self, path: str | Path) -> None:
        self.path = existing(path)
        with explained(f"{self.path}: not an npz file"):
            self._arrays = np.load(self.path, allow_pickle=False)
            self._zip = zipfile.ZipFile(self.path)
            self.shapes: Shapes = {name: self._header(name) for name in self._arrays.files}

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        with self._zip.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"array {name!r} has a header of version {version}")
            shape, _, dtype = readers[version](file)
        return shape, dtype

    def __getitem__(self, name: str) -> np.ndarray:
        with explained(f"{self.path}: array {name!r} cannot be read"):
            return self._arrays[name]

    def __enter__(self) -> "_Npz":
        return self

    def __exit__(self, *_: object) -> None:
        self._arrays.close()
        self._zip.close()


KINDS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The names of the dtypes in a safetensors file."""


def _write_safetensors(path: Path, sources: Mapping[str, tuple[_Npz, str]], target: str | None = None) -> None:
    """The safetensors format is a length, a JSON header and the bytes, so arrays can be streamed; the library's own
    writer wants them all in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (npz, key) in sources.items():
        shape, dtype = npz.shapes[key]
        if dtype.name not in ("float32", "float16"):  # numpy has no bfloat16
            raise ModelError(f"{npz.path}: array {key!r} is {dtype.name}, expected float32 or float16")
        kind = target or dtype.name
        end = offset + math.prod(shape) * (4 if kind == "float32" else 2)
        header[name] = {"dtype": KINDS[kind], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for npz, key in sources.values():
            array = npz[key]
            if target:
                array = _cast(array, target, f"{npz.path}: array {key!r}")
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


def _cast(array: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """The array rounded to a dtype; bfloat16 as the 16-bit integers of its bits."""
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    cast = torch.from_numpy(native).to(getattr(torch, dtype))
    if not cast.isfinite().all():
        raise ModelError(f"{what} has values that {dtype} cannot hold")
    return (cast.view(torch.int16) if dtype == "bfloat16" else cast).numpy()


def _temperature(text: _Npz) -> float:
    if "temperature" not in text.shapes:
        return DEFAULT_TEMPERATURE
    with explained(f"{text.path}: temperature"):
        return float(text["temperature"].item())
