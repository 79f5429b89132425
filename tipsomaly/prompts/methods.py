"""Every prompt method by name."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch

from tipsomaly.errors import OptionError, printable
from tipsomaly.prompts.cops import Cops
from tipsomaly.prompts.dapo import Dapo
from tipsomaly.prompts.direct import Direct
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.method import PromptMethod
from tipsomaly.prompts.prompt_file import PromptFile

METHODS: Mapping[str, type[PromptMethod]] = {method.NAME: method for method in (LearnedPrompts, Dapo, Cops, Direct)}


def load_prompts(path: str | Path) -> PromptMethod:
    """Read a prompt file of any method; ValueError, in one line, for anything else."""
    file = PromptFile.read(path)
    if file.method not in METHODS:
        raise ValueError(f"{path}: unknown method {printable(file.method)!r}: this version has {', '.join(METHODS)}")
    return METHODS[file.method].from_file(file, path)


def ready_method(
    prompts: PromptMethod | None, kinds: tuple[str, ...] | None, device: torch.device
) -> PromptMethod | None:
    """Prompts for these kinds of defects, on a device; those that are given stay as they are. Raises OptionError."""
    if kinds is not None:
        if prompts is None or not prompts.TELLS_KINDS:
            able = " or ".join(name for name, method in METHODS.items() if method.TELLS_KINDS)
            name = prompts.NAME if prompts else "none"
            raise OptionError(f"kinds of defects need prompts that know kinds ({able}), and these are of {name}")
        prompts = prompts.of_kinds(kinds)
    if prompts is None or device.type == "cpu":
        return prompts
    return copy.deepcopy(prompts).to(device)
