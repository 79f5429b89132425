"""Normal surfaces and simple objects, drawn from random numbers: what a picture looks like before anything is wrong.

A family is a short function from a canvas to a picture (a texture) or to a picture and its foreground (an object).
Each picture of a batch has its own scale, contrast, colour, orientation and regularity. Much that is drawn here is
salient yet normal - holes, seams, knots, highlights, print - so that being salient alone does not make a defect.
"""

from . import cloth, metal, parts, plastic, printed, regular, scans, stone
from .registry import Surface

__all__ = ["HELD_OUT", "SURFACES", "Surface"]

# In a fixed order: which families a seed draws depends on it.
SURFACES: dict[str, Surface] = {
    **metal.family,
    **stone.family,
    **cloth.family,
    **plastic.family,
    **regular.family,
    **printed.family,
    **parts.family,
    **scans.family,
}

# Kept out of training for validation: a texture, a grid, print, a compact object, a long object, a medical picture.
HELD_OUT: tuple[str, ...] = ("felt", "perforated plate", "printed label", "nut", "zipper", "skin")
