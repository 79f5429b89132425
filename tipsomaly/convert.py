"""Released files to ours: TIPS npz checkpoints to a model folder, Tipsomaly prompt pickles to safetensors."""

import json
import math
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tipsomaly.hub import ModelError, write_configs
from tipsomaly.prompts import LearnedPrompts
from tipsomaly.tips import TextConfig, Tips, TipsConfig, VisionConfig
from tipsomaly.tokenizer import Tokenizer

PATCH = 14
DEFAULT_TEMPERATURE = 0.005065968260169029
"""transformers' `temperature_init_value`, for text checkpoints that hold no temperature (TIPS v2)."""

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]


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
        tokenizer = Tokenizer(_existing(tokenizer_model), config.text.max_length)
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
        write_configs(out, config, (side, side))
        if Path(tokenizer_model).resolve() != (out / "tokenizer.model").resolve():
            shutil.copyfile(tokenizer_model, out / "tokenizer.model")
        _write_safetensors(out / "model.safetensors", sources, dtype)
    return config


def read_config(
    vision: Shapes, text: Shapes, temperature: float, heads: int | None = None, text_heads: int | None = None
) -> TipsConfig:
    """The configuration that a checkpoint's array shapes imply."""
    try:
        dim, depth = vision["cls_token"][0][-1], _depth(vision, "blocks.")
        grid = math.isqrt(vision["pos_embed"][0][1] - 1)
        swiglu = "blocks.0.mlp.w3.weight" in vision
        hidden = vision["blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc1.weight"][0][1 if swiglu else 0]
        vocab_size, text_dim = text["token_embedding.weight"][0]
        text_depth = _depth(text, "transformer.resblocks.")
        mlp_dim = text["transformer.resblocks.0.mlp.c_fc.weight"][0][0]
    except (KeyError, IndexError) as error:
        raise ModelError(f"not a TIPS checkpoint: it has no array {error}") from None
    heads = heads or default_heads(dim)
    ratio = _mlp_ratio(dim, hidden, swiglu)
    try:
        return TipsConfig(
            VisionConfig(dim, depth, heads, image_size=grid * PATCH, mlp_ratio=ratio, swiglu=swiglu),
            TextConfig(text_dim, text_depth, text_heads or heads, mlp_dim, vocab_size=vocab_size),
            temperature,
        )
    except ValueError as error:
        raise ModelError(f"{error}; give the right number with --heads") from None


def default_heads(dim: int) -> int:
    """TIPS has heads 64 wide, except SO400m: 1152 = 16 x 72."""
    if dim == 1152:
        return 16
    if dim % 64:
        raise ModelError(f"a width of {dim} is no multiple of 64: give the number of attention heads with --heads")
    return dim // 64


def convert_prompts(
    source: str | Path,
    out: str | Path,
    *,
    prompt_ensemble: str = "industrial",
    metadata: Mapping[str, str] | None = None,
) -> LearnedPrompts:
    """Write a prompts .safetensors file from a released `learnable_params_*.pth`, in either of its shapes.

    The pickle is read with torch's weights-only loader and nothing but `ParameterList` allowed beyond tensors, so it
    cannot run code. Raises ModelError for any other content.
    """
    source = _existing(source)
    try:
        with torch.serialization.safe_globals([torch.nn.ParameterList]):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the loader raise nearly anything
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"{source}: refused, not a plain file of tensors ({reason[0] if reason else 'empty'})"
        ) from None
    pair = content.get("learnable_prompts") if isinstance(content, dict) else content
    if not isinstance(pair, list | tuple | torch.nn.ParameterList) or len(pair) != 2:
        raise ModelError(f"{source}: expected the two prompts of a Tipsomaly checkpoint, normal and abnormal")
    if not all(isinstance(value, Tensor) and value.is_floating_point() for value in pair):
        raise ModelError(f"{source}: the prompts are not float tensors")
    normal, abnormal = (value.detach().float() for value in pair)
    metadata = {"source": source.name, "name": Path(out).stem, **(metadata or {})}
    try:
        prompts = LearnedPrompts(normal, abnormal, prompt_ensemble, metadata)
    except ValueError as error:
        raise ModelError(f"{source}: {error}") from None
    prompts.save(out)
    return prompts


class _Npz:
    """The arrays of an npz file: shapes from the headers at once, contents one at a time, never a pickle."""

    def __init__(self, path: str | Path) -> None:
        self.path = _existing(path)
        try:
            self._arrays = np.load(self.path, allow_pickle=False)
            self._zip = zipfile.ZipFile(self.path)
            self.shapes: Shapes = {name: self._header(name) for name in self._arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            raise ModelError(f"{self.path}: not an npz file ({error})") from None

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        with self._zip.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read(file)
        return shape, dtype

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name]
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zipfile.zlib.error) as error:
            raise ModelError(f"{self.path}: array {name!r} cannot be read ({error})") from None

    def __enter__(self) -> "_Npz":
        return self

    def __exit__(self, *_: object) -> None:
        self._arrays.close()
        self._zip.close()


KINDS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The names of the dtypes in a safetensors file."""


def _write_safetensors(path: Path, sources: Mapping[str, tuple[_Npz, str]], target: str | None = None) -> None:
    """The safetensors format is a length, a JSON header and the bytes, so arrays can be streamed; the library's own
    writer wants them all in memory. The file gets its name when it is whole."""
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
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for npz, key in sources.values():
                array = npz[key]
                if target:
                    array = _cast(array, target, f"{npz.path}: array {key!r}")
                file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _cast(array: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """The array rounded to a dtype; bfloat16 as the 16-bit integers of its bits."""
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    cast = torch.from_numpy(native).to(getattr(torch, dtype))
    if not cast.isfinite().all():
        raise ModelError(f"{what} has values that {dtype} cannot hold")
    return (cast.view(torch.int16) if dtype == "bfloat16" else cast).numpy()


def _temperature(text: _Npz) -> float:
    return float(text["temperature"]) if "temperature" in text.shapes else DEFAULT_TEMPERATURE


def _depth(shapes: Shapes, prefix: str) -> int:
    return 1 + max((int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix)), default=-1)


def _mlp_ratio(dim: int, hidden: int, swiglu: bool) -> float:
    """The ratio from which transformers computes exactly `hidden`; for SwiGLU it rounds 2/3 up to a multiple of 8."""
    ratio = hidden / dim * (1.5 if swiglu else 1)
    for candidate in (4.0, ratio, math.nextafter(ratio, math.inf), ratio - 1 / dim, ratio + 1 / dim):
        if VisionConfig(dim, 1, 1, mlp_ratio=candidate, swiglu=swiglu).mlp_dim == hidden:
            return candidate
    raise ModelError(f"an MLP of {hidden} for a width of {dim} cannot be written as a ratio")


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    return path
