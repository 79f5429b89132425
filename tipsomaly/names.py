"""The words that people call things by."""

from collections.abc import Sequence

from tipsomaly.errors import OptionError

MAX_KINDS, MAX_KIND = 256, 100


def clean_class_name(name: str) -> str:
    """The words of a class name.

    >>> clean_class_name("metal_nut"), clean_class_name("metal-nut")
    ('metal nut', 'metal nut')
    """
    words = _words(name)
    if not words:
        raise OptionError("the class name is empty: say what is on the picture, or use 'object'")
    return words


def clean_kind(name: str) -> str:
    """The words of a kind of defect; of what has none, "anomaly".

    >>> clean_kind("Faulty_imprint"), clean_kind("_")
    ('faulty imprint', 'anomaly')
    """
    return _words(name).lower()[:MAX_KIND].strip() or "anomaly"


def clean_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The words of kinds of defects that somebody asks for, each once. Raises OptionError without any."""
    a_list = isinstance(kinds, list | tuple) and all(isinstance(kind, str) and _words(kind) for kind in kinds)
    if not a_list or not kinds:
        raise OptionError("kinds of defects: give at least one in a list, and none that is empty")
    if len(kinds) > MAX_KINDS or max(map(len, kinds)) > MAX_KIND:
        raise OptionError(f"kinds of defects: at most {MAX_KINDS}, of at most {MAX_KIND} characters each")
    return tuple(dict.fromkeys(map(clean_kind, kinds)))


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split())
