"""The words that people call things by."""

from tipsomaly.errors import OptionError


def clean_class_name(name: str) -> str:
    """`metal_nut` and `metal-nut` are the words "metal nut"."""
    words = " ".join(name.replace("_", " ").replace("-", " ").split())
    if not words:
        raise OptionError("the class name is empty: say what is on the picture, or use 'object'")
    return words
