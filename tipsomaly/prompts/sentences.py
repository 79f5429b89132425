"""Fixed prompts (section 2.3 of the paper): sentences of a normal and an abnormal state.

Fixed prompts are sentences about the class and serve the image score; learned prompts are vectors put before
class-agnostic sentences and serve the patch map.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tipsomaly.errors import OptionError
from tipsomaly.names import clean_class_name


@dataclass(frozen=True)
class PromptEnsemble:
    """Every state of the class in every template. Each string holds one `{}`: for the class name in a state, for the
    state in a template. Pass one of your own wherever a domain is asked for.

    >>> from tipsomaly import PromptEnsemble
    >>> own = PromptEnsemble(normal=["clean {}"], abnormal=["dirty {}", "{} with rust"], templates=["a photo of a {}."])
    >>> own.sentences("metal_nut")
    (['a photo of a clean metal nut.'], ['a photo of a dirty metal nut.', 'a photo of a metal nut with rust.'])
    """

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        for kind in ("normal", "abnormal", "templates"):
            strings = getattr(self, kind)
            if isinstance(strings, str) or not strings:
                raise ValueError(f"{kind} prompts: give at least one string in a list")
            object.__setattr__(self, kind, tuple(strings))
            for text in strings:
                if text.count("{}") != 1:
                    raise ValueError(f"{kind} prompt {text!r} must contain {{}} exactly once")

    def sentences(self, class_name: str) -> tuple[list[str], list[str]]:
        """The (normal, abnormal) sentences for a class."""
        name = clean_class_name(class_name)
        normal, abnormal = (
            [template.replace("{}", state.replace("{}", name)) for state in states for template in self.templates]
            for states in (self.normal, self.abnormal)
        )
        return normal, abnormal


ENSEMBLES: Mapping[str, PromptEnsemble] = {
    "industrial": PromptEnsemble(
        normal=(
            "{}",
            "flawless {}",
            "perfect {}",
            "unblemished {}",
            "{} without flaw",
            "{} without defect",
            "{} without damage",
        ),
        abnormal=("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"),
        templates=(
            "a bad photo of a {}.",
            "a low resolution photo of the {}.",
            "a bad photo of the {}.",
            "a cropped photo of the {}.",
        ),
    ),
    "medical": PromptEnsemble(
        normal=(
            "normal {}",
            "intact {}",
            "{} with uniform structure",
            "{} showing clear tissue",
            "{} with normal anatomy",
            "{} showing no distortion",
            "{} with symmetric appearance",
            "{} looking normal",
            "{} with even texture",
            "{} with regular shape",
        ),
        abnormal=(
            "abnormal {}",
            "{} with spot",
            "{} with abnormality",
            "diseased {}",
            "{} showing distortion",
            "{} with irregular area",
            "{} with irregular shape",
            "{} with uneven texture",
        ),
        templates=(
            "a medical image of a {}.",
            "a medical image of the {}.",
            "a diagnostic scan of a {}.",
            "a diagnostic scan of the {}.",
            "a slice showing a {}.",
            "a slice showing the {}.",
            "a scan of the {}.",
            "a clinical brain scan of a {}.",
        ),
    ),
    "object-agnostic": PromptEnsemble(normal=("{}",), abnormal=("damaged {}",)),
}
"""The fixed prompts of the released code, by domain."""


def ensemble(domain: str | PromptEnsemble) -> PromptEnsemble:
    """The ensemble of a domain name, or the one given. Raises ModelError for an unknown name."""
    if isinstance(domain, PromptEnsemble):
        return domain
    if domain not in ENSEMBLES:
        raise OptionError(f"unknown domain {domain!r}: choose {', '.join(ENSEMBLES)}, or pass a PromptEnsemble")
    return ENSEMBLES[domain]
