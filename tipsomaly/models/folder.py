"""A model folder: what `hf download` brings and `Pipeline.from_pretrained` reads."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tipsomaly.errors import ModelError, explained, one_line
from tipsomaly.files import expand, is_file
from tipsomaly.models.config import TipsConfig
from tipsomaly.models.shapes import DEFAULT_TEMPERATURE, read_config
from tipsomaly.models.tips import Tips, from_transformers
from tipsomaly.models.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
WORDS = "words.txt"
SMALL_FILES = ["config.json", "preprocessor_config.json", "tokenizer.model", "tokenizer_config.json", WORDS]
SMALL_FILES += ["tokenizer.json", "prompts/*.safetensors"]
FILES = [*SMALL_FILES, WEIGHTS, INDEX, "model-*-of-*.safetensors"]
"""What we need of a repository, and all that is fetched."""


@dataclass(frozen=True)
class ModelFolder:
    """The files of a published model: config.json, model.safetensors, tokenizer.model, preprocessor_config.json and
    prompts/<name>.safetensors; words.txt, where the text tower knows only the words in it, one a line. `name` is what
    the catalogue may know it by."""

    path: Path
    name: str = ""

    def read_config(self) -> TipsConfig:
        """The sizes of the towers. Raises ModelError, naming the file, if they are not those of a TIPS."""
        config = self.read_json("config.json")
        with explained(self.path / "config.json"):
            if config.get("model_type") == "tipsv2" and "vision_fn" in config:
                return self._read_flat_config(config)
            return TipsConfig.from_dict(config)

    def _read_flat_config(self, config: dict) -> TipsConfig:
        """Google's first config.json was flat and named the sizes for code of its own: the arrays say them as well."""
        vision: dict[str, Any] = {}
        text: dict[str, Any] = {}
        shapes = {"vision_encoder": vision, "text_encoder": text}
        for path in self._weight_files():
            with _open_safetensors(path) as file:
                for key in file.keys():  # noqa: SIM118
                    tower, _, name = key.partition(".")
                    shapes.get(tower, {})[name] = (tuple(file.get_slice(key).get_shape()), None)
        temperature = config.get("temperature", DEFAULT_TEMPERATURE)
        return read_config(vision, text, temperature, text_heads=config.get("text_num_heads"))

    def read_image_size(self, config: TipsConfig) -> int | tuple[int, int]:
        """The default input size in pixels: one side, or (height, width); where no file says it, the trained one."""
        if not (self.path / "preprocessor_config.json").exists():
            return config.vision.image_size
        size = self.read_json("preprocessor_config.json").get("size")
        if not isinstance(size, dict) or not all(isinstance(size.get(side), int) for side in ("height", "width")):
            raise ModelError(f"{self.path / 'preprocessor_config.json'}: size must give height and width in pixels")
        return size["height"] if size["height"] == size["width"] else (size["height"], size["width"])

    def read_tokenizer(self, max_length: int) -> Tokenizer:
        """Raises ModelError if there is none or if it is damaged."""
        path, known = self._file("tokenizer.model"), self.path / WORDS
        with explained(path):
            words = known.read_text(encoding="utf-8").split() if known.is_file() else None
            return Tokenizer(path, max_length, words)

    def read_tips(self, device: torch.device, dtype: torch.dtype) -> Tips:
        """The towers on `device`, the vision tower in `dtype`, the text tower in float32: prototypes are computed once
        for each class, and the softmax magnifies their rounding errors by 1 / temperature."""
        config = self.read_config()
        state: dict[str, Tensor] = {}
        for path in self._weight_files():
            with explained(path), _open_safetensors(path) as file:  # memory-mapped: tensors go to the device one by one
                for key in file.keys():  # noqa: SIM118
                    wanted = torch.float32 if key.startswith("text_") or key == "temperature" else dtype
                    state[key] = file.get_tensor(key).to(device, wanted)
                    if state[key].numel() and not torch.stack(state[key].aminmax()).isfinite().all():
                        raise ModelError(f"{path}: {key} has numbers that are not finite as {wanted}")
        with explained(path):
            temperature = state.pop("temperature", None)
            # transformers saves the trained temperature as a tensor, and only where training started in config.json.
            if temperature is not None and not math.isclose(temperature.item(), config.temperature, rel_tol=1e-6):
                config = replace(config, temperature=temperature.item())
            return Tips.from_state_dict(config, from_transformers(state))

    def read_model(self, device: torch.device, dtype: torch.dtype) -> tuple[Tips, Tokenizer]:
        """Both at once, as a family reads them."""
        tips = self.read_tips(device, dtype)
        return tips, self.read_tokenizer(tips.config.text.max_length)

    def _weight_files(self) -> list[Path]:
        """model.safetensors, or the shards that its index names."""
        if (self.path / WEIGHTS).is_file() or not (self.path / INDEX).is_file():
            return [self._file(WEIGHTS)]
        names = self.read_json(INDEX).get("weight_map")
        files = list(names.values()) if isinstance(names, dict) else []
        if not files or not all(isinstance(name, str) and Path(name).name == name for name in files):
            raise ModelError(f"{self.path / INDEX}: names no files of this folder")
        return [self._file(name) for name in sorted(set(files))]

    def prompt_sets(self) -> dict[str, Path]:
        """The learned prompts in the folder, by name."""
        return {path.stem: path for path in sorted((self.path / "prompts").glob("*.safetensors"))}

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not is_file(path):
            raise ModelError(f"{self.path} is not a model folder: it has no {name}")
        return path

    def read_json(self, name: str) -> dict:
        """A JSON object of the folder; ModelError, naming the file, if it is something else."""
        path = self._file(name)
        with explained(f"{path}: not JSON"):
            content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ModelError(f"{path}: expected a JSON object")
        return content


def write_configs(folder: Path, config: TipsConfig, image_size: tuple[int, int]) -> None:
    """config.json, preprocessor_config.json and tokenizer_config.json, as transformers writes and reads them."""
    preprocessor = {
        "image_processor_type": "Tipsv2ImageProcessor",
        "processor_class": "Tipsv2Processor",
        "size": {"height": image_size[0], "width": image_size[1]},
        "resample": 2,  # bilinear
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": False,
        "do_convert_rgb": True,
    }
    tokenizer = {
        "tokenizer_class": "Tipsv2Tokenizer",
        "model_max_length": config.text.max_length,
        "do_lower_case": True,
    }
    files = {"config": config.to_dict(), "preprocessor_config": preprocessor, "tokenizer_config": tokenizer}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_model(folder: Path, tips: Tips, tokenizer: Tokenizer, image_size: tuple[int, int]) -> None:
    """Write the files of a model folder but its prompts. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    write_configs(folder, tips.config, image_size)
    tensors = {name: value.cpu().contiguous() for name, value in tips.state_dict().items()}
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(one_line(error)) from None
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    if tokenizer.words is not None:
        write_words(folder, tokenizer.words)


def write_words(folder: Path, words: Iterable[str]) -> None:
    """words.txt: what a text tower knows that was trained on few words."""
    (folder / WORDS).write_text("\n".join(sorted(words)) + "\n", encoding="utf-8")


@contextmanager
def _open_safetensors(path: Path) -> Iterator:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelError(f"{path}: not a whole safetensors file ({one_line(error)})") from None


def existing(path: str | Path) -> Path:
    path = expand(path)
    if not is_file(path):
        raise ModelError(f"{path}: no such file")
    return path
