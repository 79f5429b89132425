"""The page's texts and its style sheet, which lie beside this file."""

from pathlib import Path

_HERE = Path(__file__).parent

CSS, METHOD, ABOUT = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "method.md", "about.md"))
CLASSES = (
    *("object", "bottle", "cable", "capsule", "carpet", "fabric", "hazelnut", "leather", "magnetic tile", "metal nut"),
    *("metal plate", "pcb", "perforated plate", "pill", "printed label", "screw", "skin", "solar cell", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),
)
"""Offered in the list of classes; a visitor may write any other."""
