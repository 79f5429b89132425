"""Which backbones there are: what reads and writes a model folder, by the `model_type` of its config.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tipsomaly.models import siglip2
from tipsomaly.models.encoder import Encoder, Words
from tipsomaly.models.folder import ModelFolder, write_model


class Family(NamedTuple):
    """Backbones of one kind. Both functions raise ModelError or OSError, in one line."""

    read: Callable[[ModelFolder, torch.device, torch.dtype], tuple[Encoder, Words]]
    """The towers on a device, the vision tower in a dtype, and their tokenizer."""
    write: Callable[[Path, Any, Any, tuple[int, int]], None]
    """A model folder of towers, tokenizer and image size (height, width)."""


FAMILIES = {
    "tipsv2": Family(ModelFolder.read_model, write_model),
    "siglip": Family(siglip2.read_model, siglip2.write_model),
}
"""A new backbone is a file that keeps the contract of `encoder.py`, and a line here."""


def family(folder: ModelFolder) -> Family:
    """Of a model folder. One of an unknown type is read as a TIPS, which says what is wrong with it."""
    return FAMILIES.get(str(folder.read_json("config.json").get("model_type")), FAMILIES["tipsv2"])
