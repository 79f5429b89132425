"""Names to files: a model folder, wherever it is, and what is in it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tipsomaly.tips import Tips, TipsConfig
from tipsomaly.tokenizer import Tokenizer

BUNDLED = {"nano": Path(__file__).parent / "nano"}


class ModelError(ValueError):
    """A model cannot be found or read; the message is one line that says which file and why."""


@dataclass(frozen=True)
class ModelFolder:
    """The files of a published model: config.json, model.safetensors, tokenizer.model, preprocessor_config.json and
    prompts/<name>.safetensors."""

    path: Path

    def read_config(self) -> TipsConfig:
        return TipsConfig.from_dict(self._json("config.json"))

    def read_image_size(self) -> int | tuple[int, int]:
        """The default input size in pixels: one side, or (height, width)."""
        if not (self.path / "preprocessor_config.json").exists():
            return self.read_config().vision.image_size
        size = self._json("preprocessor_config.json").get("size", {})
        if not {"height", "width"} <= size.keys():
            raise ModelError(f"{self.path / 'preprocessor_config.json'}: size must give height and width")
        return size["height"] if size["height"] == size["width"] else (size["height"], size["width"])

    def read_tokenizer(self, max_length: int) -> Tokenizer:
        return Tokenizer(self._file("tokenizer.model"), max_length)

    def read_tips(self, config: TipsConfig, device: torch.device, dtype: torch.dtype) -> Tips:
        """The towers on `device`, the vision tower in `dtype`, the text tower in float32: prototypes are computed once
        for each class, and the softmax magnifies their rounding errors by 1 / temperature."""
        from safetensors import SafetensorError, safe_open

        path = self._file("model.safetensors")
        state: dict[str, Tensor] = {}
        try:
            with safe_open(path, framework="pt") as file:  # memory-mapped: tensors go to the device one by one
                for key in file.keys():  # noqa: SIM118
                    wanted = torch.float32 if key.startswith("text_encoder.") else dtype
                    state[key] = file.get_tensor(key).to(device, wanted)
        except SafetensorError as error:
            raise ModelError(f"{path}: not a whole safetensors file ({error})") from None
        try:
            return Tips.from_state_dict(config, state)
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from None

    def prompt_sets(self) -> dict[str, Path]:
        """The learned prompts in the folder, by name."""
        return {path.stem: path for path in sorted((self.path / "prompts").glob("*.safetensors"))}

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise ModelError(f"{self.path} is not a model folder: it has no {name}")
        return path

    def _json(self, name: str) -> dict:
        path = self._file(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path}: not JSON ({error})") from None
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


def resolve(name: str | Path) -> ModelFolder:
    """A bundled name or a local folder."""
    if str(name) in BUNDLED:
        return ModelFolder(BUNDLED[str(name)])
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelFolder(path)
    raise ModelError(f"no model {str(name)!r}: give a bundled name ({', '.join(BUNDLED)}) or a model folder")
