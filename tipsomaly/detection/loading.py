"""From the name of a model to its towers, its tokenizer and its prompts."""

from pathlib import Path
from typing import NamedTuple

import torch

from tipsomaly.errors import ModelError
from tipsomaly.models.catalogue import BACKBONES
from tipsomaly.models.device import choose_device, choose_dtype
from tipsomaly.models.encoder import Encoder, Words
from tipsomaly.models.families import family
from tipsomaly.models.folder import ModelFolder
from tipsomaly.models.hub import resolve
from tipsomaly.prompts.find import default_prompts, read_prompts
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.prompts.strategy import Mode, no_prompts


class Loaded(NamedTuple):
    """What a pipeline is made of, and the folder that it came from."""

    tips: Encoder
    tokenizer: Words
    prompts: PromptMethod | None
    folder: ModelFolder
    image_size: int | tuple[int, int]


def load(
    model: str | Path,
    revision: str | None,
    prompts: str | Path | PromptMethod | None,
    device: str | torch.device,
    dtype: str | torch.dtype,
    mode: Mode | None,
    domain: object,
) -> Loaded:
    """See `Pipeline.from_pretrained`. Raises ModelError."""
    device = choose_device(device)
    tower_dtype = choose_dtype(dtype, device)
    folder = resolve(model, revision, weights=False)  # prompts first: gigabytes are not fetched in vain
    if prompts is None and mode != "fixed":
        prompts = default_prompts(folder, domain)
        if prompts is None:
            raise ModelError(no_prompts(folder.name or str(folder.path), mode or "decoupled"))
    elif isinstance(prompts, str | Path):
        prompts = read_prompts(folder, prompts)
    made_for = prompts.metadata.get("backbone") if prompts else None
    if made_for in BACKBONES and folder.name in BACKBONES and made_for != folder.name:
        raise ModelError(f"these prompts were trained on {made_for}, the model is {folder.name}")
    folder = resolve(model, revision)
    tips, tokenizer = family(folder).read(folder, device, tower_dtype)
    return Loaded(tips, tokenizer, prompts, folder, folder.read_image_size(tips.config))
