"""The regions of a map as HTML: the picture with their outlines, the mask, and a table.

Row and box point at each other. Which region is pointed at is the browser's alone (SCRIPT).
"""

from html import escape

from tipsomaly.detection import visualization
from tipsomaly.service import exports
from tipsomaly.service.comparison import source, wide
from tipsomaly.service.exports import Inspection

FILES = ("overlay.png", "mask.png", "map.npy", "map_16bit.png", "regions.json", "coco.json")
"""What `exports.write_files` writes."""
MOST = 50
"""Regions in the table."""

CSS = """
#regions .views {display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: .5rem}
#regions figure {position: relative; margin: 0; justify-self: start}
#regions img {display: block; max-width: 100%; max-height: 480px; border-radius: 4px}
#regions svg {position: absolute; top: 0; left: 0; width: 100%; height: 100%}
#regions rect {fill: transparent; stroke: transparent; vector-effect: non-scaling-stroke; pointer-events: all}
#regions rect.on {stroke: #facc15; stroke-width: 3px}
#regions tr.on {background: #fef08a; color: #1e293b}
#regions th button {min-width: 24px; min-height: 24px; color: inherit; text-align: left}
"""

SCRIPT = """
function point(event) {
  const at = event.target.closest('[data-region]');
  for (const each of element.querySelectorAll('[data-region]'))
    each.classList.toggle('on', Boolean(at) && each.dataset.region == at.dataset.region);
}
for (const kind of ['pointerover', 'focusin', 'click']) element.addEventListener(kind, point);
element.addEventListener('pointerleave', point);
"""


def html(inspection: Inspection, threshold: float) -> str:
    """The regions above a threshold, strongest first, in pixels of the picture."""
    result, shown = inspection.result, inspection.shown
    regions = result.regions(threshold)
    boxes = ""
    for i, region in sorted(enumerate(regions[:MOST], 1), key=lambda each: -each[1].area):  # small ones on top
        left, top, right, bottom = region.box
        boxes += f'<rect data-region="{i}" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>'
    over = (
        f'<svg viewBox="0 0 {result.width} {result.height}" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg>'
    )
    count = f"{len(regions) or 'no'} region{'' if len(regions) == 1 else 's'}"
    views = (
        ("Regions above the threshold", exports.filled(shown, threshold), f"The picture with {count} outlined"),
        ("Mask", visualization.black_and_white(shown.mask(threshold)), f"{count} in white on black"),
    )
    figures = "".join(
        f'<div><p class="note">{title}</p><figure><img src="{source(image, exports.SHOWN)}" alt="{alt}">{over}</figure>'
        "</div>"
        for title, image, alt in views
    )
    if not regions:
        return f'<div class="card" id="regions"><div class="views">{figures}</div><p>Nothing reaches it.</p></div>'
    names = ["peak", "area (px)", "left", "top", "right", "bottom", *(["kind"] if result.kind_names else [])]
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = ""
    for i, region in enumerate(regions[:MOST], 1):
        values = [f"{region.peak:.3f}", region.area, *region.box, *([region.kind or ""] if result.kind_names else [])]
        cells = "".join(f"<td>{escape(str(value))}</td>" for value in values)
        rows += f'<tr data-region="{i}"><th scope="row"><button>{i}</button></th>{cells}</tr>'
    more = f"; {len(regions) - MOST} more are in regions.json" if len(regions) > MOST else ""
    table = wide(f"{count}, strongest first, in pixels of the picture{more}", heads, rows)
    return f'<div class="card" id="regions"><div class="views">{figures}</div>{table}</div>'
