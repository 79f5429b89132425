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

FINDS, PARTLY = 0.6, 0.3
"""AUPRO from which a map is said to find a defect, and from which a part of it."""

CSS = """
#comparison .said {font-size: 1.15rem; font-weight: 500; line-height: 1.4}
#comparison figure {margin: 0; min-width: 0; padding: 5px; border: 1px solid var(--border-color-primary);
  border-radius: 8px; font-size: .85rem}
#comparison figure.decoupled {border: 3px solid #4f46e5; padding: 3px}
#comparison figure img {width: 100%; display: block; border-radius: 4px}
#comparison figcaption > b {display: block; padding: .35rem 0 .1rem; font-size: .95rem}
#comparison .three {display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; margin: .75rem 0 .5rem}
#comparison .more {display: grid; margin: .5rem 0;
  grid-template-columns: repeat(auto-fill, minmax(max(140px, 23%), 1fr)); gap: .5rem}
.meter {display: grid; grid-template-columns: 3.2rem 1fr 4.4rem; gap: .4rem; align-items: center; line-height: 1.5;
  font-variant-numeric: tabular-nums}
.meter > :last-child {text-align: right; font-weight: 600}
.meter > div {display: flex; height: .7rem; border-radius: 4px; overflow: hidden;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary)}
.meter .global {background: #4f46e5} .meter .local {background: #d97706} .meter .aupro {background: #0f766e}
.key .aupro i {background: #0f766e}
.card .note {font-size: .85rem}
.wide {overflow-x: auto; margin-bottom: .5rem}
.wide table {border-collapse: collapse; font-size: .85rem; white-space: nowrap}
.wide td, .wide th {padding: .2rem .55rem; text-align: right; border-bottom: 1px solid var(--border-color-primary)}
.wide th[scope=row] {text-align: left}
.wide th[scope=colgroup] {text-align: center} .wide .first {border-left: 1px solid var(--border-color-primary)}
.wide tr.decoupled, .wide td.decoupled {background: var(--background-fill-secondary); font-weight: 600}
@media (max-width: 760px) { /* the three stay side by side: that is the comparison */
  #comparison .three {gap: .25rem} #comparison .three figure {font-size: .75rem; padding: 2px}
  #comparison .three figure.decoupled {padding: 0}
  .meter {grid-template-columns: 1fr auto; gap: 0 .25rem} .meter > div {grid-row: 2; grid-column: 1 / -1}
  #comparison .three .of {display: none}
  .wide td, .wide th {padding: .2rem .3rem}
  #comparison .said {font-size: 1rem}
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


def place(result: Result) -> str:
    """Where a map peaks, in words."""
    y, x = np.unravel_index(int(result.anomaly_map.argmax()), result.anomaly_map.shape)
    row = ("top", "middle", "bottom")[3 * int(y) // result.height]
    column = ("left", "centre", "right")[3 * int(x) // result.width]
    return "in the centre" if (row, column) == ("middle", "centre") else f"at the {row} {column}"


def sentence(comparison: Comparison) -> str:
    """What the comparison shows on this picture, in words that follow from its numbers; what the maps find is said only
    where a mask tells."""
    fixed, learned, decoupled = (comparison.results[name] for name in ("fixed", "learned", "decoupled"))
    said = (
        f"Decoupled takes the learned map, and the fixed prompts' word on the whole picture: "
        f"{fixed.global_score:.2f}, where the learned ones say {learned.global_score:.2f}. "
        f"Its image score is {decoupled.score:.2f} of {sum(decoupled.image_score.values()):g}."
    )
    if comparison.truth is None:
        same = place(fixed) == place(learned)
        where = f"Both maps peak {place(fixed)}" if same else (
            f"The fixed prompts' map peaks {place(fixed)}, the learned prompts' {place(learned)}"
        )  # fmt: skip
        return f"{where}; without a mask nothing says which is right. {said}"
    found, finds = (comparison.metrics.get(name, {}).get("aupro") for name in ("fixed", "learned"))
    if found is None or finds is None:  # there is no defect
        return (
            f"Nothing is defective here: the fixed prompts' map reaches {fixed.anomaly_map.max():.2f}, the learned "
            f"prompts' {learned.anomaly_map.max():.2f}, and lower is better. {said}"
        )
    if words(found) == words(finds):
        maps = f"Both maps {words(found, 's')} (AUPRO {percent(found)} fixed, {percent(finds)} learned)"
    else:
        maps = (
            f"The fixed prompts' map {words(found)} (AUPRO {percent(found)}), the learned prompts' {words(finds)} "
            f"({percent(finds)})"
        )
    return f"{maps}{': here decoupling does harm' if finds < found else ''}. {said}"


def words(aupro: float, plural: str = "") -> str:
    """What a map does with the defect; of several maps with `plural`."""
    verb, rest = (
        ("finds", " it") if aupro >= FINDS else ("finds", " part of it") if aupro >= PARTLY else ("misses", " it")
    )
    return (verb[: -2 if verb == "misses" else -1] if plural else verb) + rest.replace("it", "the defect")


def html(comparison: Comparison) -> str:
    """The three kinds of prompts side by side, then the numbers of all four combinations, the difference of the maps,
    further columns and the table of strategies."""
    results, metrics = comparison.results, comparison.metrics
    pictures = {name: picture(result, comparison.truth) for name, result in results.items()}
    three, further = (
        "".join(figure(n, r, pictures[n], metrics.get(n)) for n, r in results.items() if (n in CELLS.values()) is first)
        for first in (True, False)
    )
    values = difference(results)
    shown, most = difference_picture(results["fixed"].image, values)
    note = f"The learned map less the fixed map, from {values.min():+.2f} to {values.max():+.2f}"
    ends = f"blue {-most:+.2f}: learned lower · red {most:+.2f}: learned higher"
    apart = (
        f'<figure><img src="{source(shown)}" alt="{note}."><figcaption><b>learned - fixed</b>{note}. {ends}'
        "</figcaption></figure>"
    )
    outline = " The line goes around the mask's defect." if comparison.truth is not None else ""
    every = cells(results)
    return (
        f'<div class="card" id="comparison"><p class="said">{escape(sentence(comparison))}</p>'
        f'<div class="three">{three}</div>{key(bool(metrics))}{legend()}'
        f'<p class="note">One scale of colours for all maps.{outline}</p>'
        f"{combinations(every, metrics)}"
        f'<div class="more">{apart}{further}</div>{strategies(every, comparison)}</div>'
    )


def key(measured: bool) -> str:
    """What the bars below the maps are."""
    aupro = '<span class="aupro"><i></i>AUPRO: how well the map finds the defect</span>' if measured else ""
    return (
        '<div class="key note" aria-hidden="true"><span class="global"><i></i>image score, the whole picture'
        f'</span><span class="local"><i></i>and the strongest patch</span>{aupro}</div>'
    )


def combinations(results: Mapping[str, Result], metrics: Mapping[str, Metrics]) -> str:
    """Table 2a on one picture as numbers: what scores the picture by what draws the map."""
    maps = ("fixed", "learned")
    heads, rows = "".join(f'<th scope="col">map: {drawn}</th>' for drawn in maps), ""
    for score in maps:
        numbers = ""
        for drawn in maps:
            name = CELLS[score, drawn]
            kind = ' class="decoupled"' if name == "decoupled" else ""
            numbers += f"<td{kind}>{results[name].score:.3f}<br>{name}</td>"
        said = f"picture: {score}<br>global {results[score].global_score:.3f}"
        rows += f'<tr><th scope="row">{said}</th>{numbers}</tr>'
    for metric, label in (("pixel_auroc", "pixel AUROC"), ("aupro", "AUPRO")) if metrics else ():
        numbers = "".join(f"<td>{percent(metrics[drawn][metric])}</td>" for drawn in maps)
        rows += f'<tr><th scope="row">{label}</th>{numbers}</tr>'
    return wide("The image score, by what scores the picture and what draws the map", heads, rows)


def legend(low: float = 0.0, high: float = 1.0) -> str:
    """The map's colours, from `low` to `high`: from 0 to 1, or from a picture's own least to its most."""
    ends = ("normal", "abnormal") if (low, high) == (0, 1) else ("least here", "most here")
    colours = ", ".join("rgb({},{},{})".format(*c) for c in visualization.colours(9))
    return (
        f'<div class="legend"><span>{low:.2f} {ends[0]}</span>'
        f'<span class="ramp" style="background:linear-gradient(to right, {colours})"></span>'
        f"<span>{high:.2f} {ends[1]}</span></div>"
    )


def figure(name: str, result: Result, image: str, metrics: Metrics | None) -> str:
    """A map over the picture, and below it bars for the image score with its parts and, with a mask, for AUPRO."""
    most = sum(result.image_score.values())
    values = {"object": result.object_score, "spatial": result.global_score, "local": result.local_score}
    parts = {part: weight * values[part] for part, weight in result.image_score.items() if weight}
    bars = "".join(
        f'<i class="{"local" if part == "local" else "global"}" style="width:{100 * value / most:.1f}%"></i>'
        for part, value in parts.items()
    )
    meters = meter("image", bars, f'{result.score:.2f}<span class="of"> of {most:g}</span>')
    found = (metrics or {}).get("aupro")
    if found is not None:
        meters += meter("AUPRO", f'<i class="aupro" style="width:{100 * found:.1f}%"></i>', percent(found))
    alt = f"{name}: image score {result.score:.2f} of {most:g}; the map peaks {place(result)}"
    kind = ' class="decoupled"' if name == "decoupled" else ""
    return (
        f'<figure{kind}><img src="{image}" alt="{escape(alt)}"><figcaption><b>{escape(name)}</b>{meters}</figcaption>'
        "</figure>"
    )


def meter(label: str, bars: str, value: str) -> str:
    return f'<div class="meter"><span>{label}</span><div aria-hidden="true">{bars}</div><span>{value}</span></div>'


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
    names = {"image_auroc": "image<br>AUROC", "image_ap": "image<br>AP", "pixel_auroc": "pixel<br>AUROC"}
    names |= {"aupro_200": "<br>AUPRO"}
    kinds = {"2a": "which prompts", "2b": "the loss that the learned prompts are trained with", "2c": "the image score"}
    tables = ""
    for number, kind in kinds.items():
        sets = {name: published(number, name) for name in ("MVTec AD", "VisA")}
        rows = list(next(iter(sets.values())))
        columns = {name: [metric for metric in names if metric in found[rows[0]]] for name, found in sets.items()}
        groups = "".join(
            f'<th scope="colgroup" class="first" colspan="{len(own)}">{name}</th>' for name, own in columns.items()
        )
        first = {name: own[0] for name, own in columns.items()}

        def cell(tag: str, name: str, metric: str, content: str, first: Mapping[str, str] = first) -> str:
            edge = ' class="first"' if metric == first[name] else ""
            return f"<{tag}{edge}>{content}</{tag[:2]}>"

        places = [(name, metric) for name, own in columns.items() for metric in own]
        table = (
            "<tr><td></td>"
            + "".join(cell('th scope="col"', name, metric, names[metric]) for name, metric in places)
            + "</tr>"
        )
        for row in rows:
            numbers = "".join(cell("td", n, m, f"{100 * (sets[n][row][m] or 0):.1f}") for n, m in places)
            marked = ' class="decoupled"' if row in ("decoupled", "local", "S5") else ""
            table += f'<tr{marked}><th scope="row">{row}</th>{numbers}</tr>'
        tables += wide(f"Table {number}: {kind} (the paper, {MODEL}, percent)", groups, table)
        tables += f'<p class="note">{escape(NOTES[number])}</p>'
    return f'<div class="card" id="paper">{tables}</div>'


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


def source(image: Image.Image, side: int = SIDE) -> str:
    """A picture as a data: address, at most `side` pixels a side."""
    return visualization.data_uri(image, side, quality=88)
