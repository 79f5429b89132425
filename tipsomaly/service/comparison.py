"""The paper's idea on one picture: table 2a as a 2 x 2 of what scores the picture by what draws the map."""

from collections.abc import Mapping
from dataclasses import replace
from html import escape

import numpy as np
from PIL import Image

from tipsomaly.detection import visualization
from tipsomaly.detection.result import Result
from tipsomaly.detection.scoring import STRATEGIES
from tipsomaly.service.exports import Comparison
from tipsomaly.studies.metrics import Metrics
from tipsomaly.studies.paper import MODEL, NOTES, published

CELLS = {
    ("fixed", "fixed"): "fixed",
    ("fixed", "learned"): "decoupled",
    ("learned", "fixed"): "reversed",
    ("learned", "learned"): "learned",
}
"""(prompts of the image score, prompts of the map) -> name. The paper does not try what is "reversed" here."""
DIFFERENCE = "RdBu_r"
"""A diverging matplotlib colour map: blue where the learned map is lower than the fixed one, red where it is higher."""
SUGGESTIONS: Mapping[str, tuple[str, str]] = {
    "Scratched or cracked": ("intact {}\nsmooth {}", "scratched {}\ncracked {}\n{} with a crack"),
    "Stained or dirty": ("clean {}\nspotless {}", "stained {}\ndirty {}\n{} with a stain"),
}
"""Phrases to begin with: for normal, for abnormal, one a line."""
SIDE = 480
"""The longer side in pixels of the pictures of a comparison."""

CSS = """
#comparison .said {font-size: 1.1rem; font-weight: 500}
#comparison figure {margin: 0; min-width: 0}
#comparison img {width: 100%; display: block; border-radius: 4px}
#comparison figcaption {font-size: .85rem; padding: .25rem 0}
#comparison .two {display: grid; grid-template-columns: minmax(5.5rem, .4fr) 1fr 1fr; gap: .5rem; max-width: 860px}
#comparison .head, #comparison .side {font-size: .85rem; align-self: end}
#comparison .side {align-self: center}
#comparison .cell {padding: 4px; border: 1px solid transparent; border-radius: 8px}
#comparison .decoupled.cell {border: 3px solid #4f46e5}
.wide tr.decoupled {background: var(--background-fill-secondary); font-weight: 600}
#comparison .more {display: grid; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(max(140px, 23%), 1fr)); gap: .5rem}
.card .note {font-size: .85rem}
.wide {overflow-x: auto} .wide table {border-collapse: collapse; font-size: .85rem; white-space: nowrap}
.wide td, .wide th {padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--border-color-primary)}
.wide th[scope=row] {text-align: left}
@media (max-width: 760px) {
  #comparison .two {grid-template-columns: 1fr 1fr}
  #comparison .two > div:first-child {display: none}
  #comparison .side {grid-column: 1 / -1}
}
"""


def cells(results: Mapping[str, Result]) -> dict[str, Result]:
    """The results with "reversed" after "learned": learned prompts for the image score, fixed ones for the map."""
    fixed, learned = results["fixed"], results["learned"]
    turned = replace(learned, patch_map=fixed.patch_map, tiles=fixed.tiles, kind_names=(), kind_map=None)
    order = [*CELLS.values(), *results]
    return {name: turned if name == "reversed" else results[name] for name in dict.fromkeys(order)}


def difference(results: Mapping[str, Result]) -> np.ndarray:
    """float32 (height, width) in [-1, 1]: the learned map less the fixed one."""
    return results["learned"].anomaly_map - results["fixed"].anomaly_map


def difference_picture(image: Image.Image, values: np.ndarray) -> tuple[Image.Image, float]:
    """The difference over the greyish picture, and the value at the ends of its colours, which is its largest size."""
    from matplotlib import colormaps

    most = max(float(np.abs(values).max()), 1e-6)
    colours = colormaps[DIFFERENCE](values / most / 2 + 0.5)[..., :3] * 255
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    weight = 0.35 + 0.5 * np.abs(values[..., None]) / most
    return Image.fromarray((grey + (colours - grey) * weight).round().astype(np.uint8)), most


def peaks_on(result: Result, truth: np.ndarray) -> bool:
    """Whether the map's highest value lies on the defect, `truth` bool (height, width), or within a patch of it, as a
    map has one value a patch."""
    y, x = np.unravel_index(int(result.anomaly_map.argmax()), result.anomaly_map.shape)
    rows, columns = result.patch_map.shape
    patch = max(result.height / rows, result.width / columns)
    ys, xs = np.nonzero(truth)
    return bool(len(ys)) and float(np.hypot(ys - y, xs - x).min()) <= patch


def place(result: Result) -> str:
    """Where a map peaks, in words."""
    y, x = np.unravel_index(int(result.anomaly_map.argmax()), result.anomaly_map.shape)
    row = ("top", "middle", "bottom")[3 * int(y) // result.height]
    column = ("left", "centre", "right")[3 * int(x) // result.width]
    return "in the centre" if (row, column) == ("middle", "centre") else f"at the {row} {column}"


def sentence(comparison: Comparison) -> str:
    """What the comparison shows on this picture, in words that follow from its numbers; what the maps find is said only
    where a mask tells."""
    results, truth = comparison.results, comparison.truth
    fixed, learned, decoupled = (results[name] for name in ("fixed", "learned", "decoupled"))
    keeps = (
        f"decoupled keeps the fixed prompts' global score, {fixed.global_score:.2f} (learned: "
        f"{learned.global_score:.2f}), and the learned map; its image score is {decoupled.score:.2f}."
    )
    if truth is None:
        same = place(fixed) == place(learned)
        where = f"Both maps peak {place(fixed)}" if same else (
            f"The fixed map peaks {place(fixed)}, the learned map {place(learned)}"
        )  # fmt: skip
        return f"{where}, and without a mask nothing says which is right; {keeps}"
    if not truth.any():
        return (
            f"Nothing is defective here: the fixed map reaches {fixed.anomaly_map.max():.2f}, the learned map "
            f"{learned.anomaly_map.max():.2f}; {keeps}"
        )
    on = {
        (False, True): "The fixed map peaks outside the defect, the learned map on it",
        (True, False): "The fixed map peaks on the defect, the learned map outside it",
        (True, True): "Both maps peak on the defect",
        (False, False): "Both maps peak outside the defect: neither finds it",
    }[peaks_on(fixed, truth), peaks_on(learned, truth)]
    areas = ""
    found, finds = (comparison.metrics.get(name, {}).get("aupro") for name in ("fixed", "learned"))
    if found is not None and finds is not None:
        areas = f" (AUPRO {percent(found)} and {percent(finds)})"
        areas += ": here decoupling does harm" if finds < found else ""
    return f"{on}{areas}; {keeps}"


def html(comparison: Comparison) -> str:
    """The 2 x 2, the difference, further columns and the table of strategies."""
    results = cells(comparison.results)
    pictures = {name: picture(result, comparison.truth) for name, result in comparison.results.items()}
    maps = {"fixed": pictures["fixed"], "learned": pictures["learned"]}
    heads = "".join(
        f'<div class="head"><b>{name} prompts</b> draw the map{measured(comparison.metrics.get(name))}</div>'
        for name in maps
    )
    rows = ""
    for score in ("fixed", "learned"):
        side = f"<b>{score} prompts</b> score the picture<br>global {results[score].global_score:.3f}"
        rows += f'<div class="side">{side}</div>'
        for drawn in maps:
            name = CELLS[score, drawn]
            rows += figure(name, results[name], maps[drawn], "decoupled" if name == "decoupled" else "")
    values = difference(results)
    shown, most = difference_picture(results["fixed"].image, values)
    note = f"The learned map less the fixed map, from {values.min():+.2f} to {values.max():+.2f}"
    ends = f'<span class="note">blue {-most:+.2f}: learned lower · red {most:+.2f}: learned higher</span>'
    apart = f'<figure><img src="{source(shown)}" alt="{note}."><figcaption>{note}. {ends}</figcaption></figure>'
    further = "".join(figure(n, r, pictures[n]) for n, r in results.items() if n not in CELLS.values())
    outline = " The line goes around the mask's defect." if comparison.truth is not None else ""
    return (
        f'<div class="card" id="comparison"><p class="said">{escape(sentence(comparison))}</p>'
        f'<div class="two"><div></div>{heads}{rows}</div>'
        f'{legend()}<p class="note">One scale of colours for all maps.{outline}</p>'
        f'<div class="more">{apart}{further}</div>{strategies(results, comparison)}</div>'
    )


def legend(low: float = 0.0, high: float = 1.0) -> str:
    """The map's colours, from `low` to `high`: from 0 to 1, or from a picture's own least to its most."""
    ends = ("normal", "abnormal") if (low, high) == (0, 1) else ("least here", "most here")
    colours = ", ".join("rgb({},{},{})".format(*c) for c in visualization.colours(9))
    return (
        f'<div class="legend"><span>{low:.2f} {ends[0]}</span>'
        f'<span class="ramp" style="background:linear-gradient(to right, {colours})"></span>'
        f"<span>{high:.2f} {ends[1]}</span></div>"
    )


def figure(name: str, result: Result, image: str, kind: str = "") -> str:
    """One cell: the map over the picture, and the image score with its parts."""
    title = f"{name} (the paper's)" if kind else name
    words = f"{result.score:.2f} = " + " + ".join(
        f"{'' if weight == 1 else f'{weight:.2g} x '}{words} {value:.2f}"
        for part, words, value in (
            ("object", "object", result.object_score),
            ("spatial", "global", result.global_score),
            ("local", "local", result.local_score),
        )
        if (weight := result.image_score.get(part, 0))
    )
    alt = f"{name}: image score {words}; the map peaks {place(result)}"
    return (
        f'<figure class="cell {kind}"><img src="{image}" alt="{escape(alt)}">'
        f"<figcaption><b>{escape(title)}</b><br>{words}</figcaption></figure>"
    )


def strategies(results: Mapping[str, Result], comparison: Comparison) -> str:
    """A table: the image score by S1 to S5, and the pixel metrics of the map where there are any."""
    names, metrics = comparison.strategies, comparison.metrics
    heads = "".join(f'<th scope="col">{name}<br>{escape(STRATEGIES[name])}</th>' for name in names)
    if metrics:
        heads += '<th scope="col">pixel AUROC</th><th scope="col">AUPRO</th>'
    rows = ""
    map_of = {name: drawn for (_, drawn), name in CELLS.items()}
    for name, result in results.items():
        values = [f"{value:.3f}" for value in map(result.strategies.get, names)]
        if metrics:
            found = metrics.get(map_of.get(name, name), {})
            values += [percent(found.get(key)) for key in ("pixel_auroc", "aupro")]
        cells = "".join(f"<td>{value}</td>" for value in values)
        kind = ' class="decoupled"' if name == "decoupled" else ""
        rows += f'<tr{kind}><th scope="row">{escape(name)}</th>{cells}</tr>'
    finds = ", and how well each map finds the mask's defect" if metrics else ""
    return wide(f"The image score by each strategy of table 2c (the paper's is S5){finds}", heads, rows)


def wide(caption: str, heads: str, rows: str) -> str:
    """A table that scrolls sideways where the page is narrow."""
    return (
        f'<p class="note">{escape(caption)}</p><div class="wide" tabindex="0" role="region" '
        f'aria-label="{escape(caption)}"><table><tr><td></td>{heads}</tr>{rows}</table></div>'
    )


def paper() -> str:
    """Tables 2a, 2b and 2c of the paper, whole."""
    words = {"image_auroc": "image AUROC", "image_ap": "AP", "pixel_auroc": "pixel AUROC", "aupro_200": "AUPRO"}
    kinds = {"2a": "which prompts", "2b": "the loss that the learned prompts are trained with", "2c": "the image score"}
    tables = ""
    for number, kind in kinds.items():
        sets = {name: published(number, name) for name in ("MVTec AD", "VisA")}
        names = list(next(iter(sets.values())))
        columns = [(name, metric) for name in sets for metric in words if metric in sets[name][names[0]]]
        heads = "".join(f'<th scope="col">{name}<br>{words[metric]}</th>' for name, metric in columns)
        rows = ""
        for row in names:
            numbers = "".join(f"<td>{100 * (sets[name][row][metric] or 0):.1f}</td>" for name, metric in columns)
            marked = ' class="decoupled"' if row in ("decoupled", "local", "S5") else ""
            rows += f'<tr{marked}><th scope="row">{row}</th>{numbers}</tr>'
        tables += wide(f"Table {number}: {kind} (the paper, {MODEL}, percent)", heads, rows)
        tables += f'<p class="note">{escape(NOTES[number])}</p>'
    return f'<div class="card" id="paper">{tables}</div>'


def measured(metrics: Metrics | None) -> str:
    """Pixel metrics in a line; nothing without them."""
    if not metrics:
        return ""
    return f"<br>pixel AUROC {percent(metrics['pixel_auroc'])}, AUPRO {percent(metrics['aupro'])}"


def percent(value: float | None) -> str:
    """A share in [0, 1] as a percentage."""
    return "n/a" if value is None else f"{100 * value:.1f}\u00a0%"


def picture(result: Result, truth: np.ndarray | None) -> str:
    """A map over its picture, with a line around the mask, as the source of an img."""
    image = result.overlay()
    if truth is not None and truth.any():
        from scipy.ndimage import binary_dilation

        around = binary_dilation(truth, iterations=max(truth.shape) // 60)  # a thin defect stays in sight
        image = visualization.contours(image, around)
    return source(image)


def source(image: Image.Image) -> str:
    """A picture as a data: address."""
    return visualization.data_uri(image, SIDE, quality=88)
