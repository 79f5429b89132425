"""Drawn defects with exact masks: what goes wrong on surfaces, parts and scans, batched over pictures.

A defect's `draw` proposes a changed picture and a weight that is above one half where the change is; `apply` then
keeps the change on the foreground, makes sure that it can be seen, and turns the weight into a mask of zeros and ones.
"""

from . import cuts, damage, holes, lesions, stains
from .registry import Defect, apply

__all__ = ["DEFECTS", "Defect", "apply"]

# In a fixed order: what a seed draws depends on it.
DEFECTS: dict[str, Defect] = {
    **cuts.defect,
    **holes.defect,
    **stains.defect,
    **damage.defect,
    **lesions.defect,
}
