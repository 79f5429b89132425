"""Which prompts make the prototypes (table 2a, section 3.3)."""

from typing import Literal

Mode = Literal["fixed", "learned", "decoupled"]
MODES: tuple[Mode, ...] = ("fixed", "learned", "decoupled")
"""Which prompts make the prototypes (table 2a): fixed ones for both scores, learned ones for both, or, as the paper
proposes, fixed ones for the image score and learned ones for the patch map."""


def no_prompts(model: str, mode: Mode) -> str:
    return (
        f"the mode {mode!r} needs learned prompts and {model} has none: pass prompts=..., make some with "
        "`tipsomaly train`, or ask for mode='fixed', which localizes poorly (table 2a of the paper)"
    )
