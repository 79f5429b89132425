"""A folder's results as one HTML file that needs nothing else: what one sends to a colleague."""

import heapq
import html
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from tipsomaly.detection.result import Result
from tipsomaly.detection.visualization import SMALL, data_uri
from tipsomaly.errors import ImageError
from tipsomaly.files import write_atomically

CARDS = 500
"""Cards at most, those of the highest scores: a thousand pictures are some twenty megabytes."""
BINS = 40


class Card(NamedTuple):
    """What a card shows; they are ordered by score."""

    score: float
    number: int
    name: str
    parts: str
    verdict: str
    picture: str
    """A JPEG as an address."""


class Report:
    """`report.html`: how many pictures, a histogram of their scores with the threshold, and a card for each with its
    overlay, sorted by score or name. It asks no server for anything, and runs no script but its own few lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scores: list[float] = []
        self.anomalous = 0
        self.cards: list[Card] = []
        self.errors: list[tuple[str, str]] = []
        self.threshold: float | None = None
        self.class_names: dict[str, None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, image: str, result: Result, stem: str) -> None:
        """Take a result."""
        self.threshold = result.image_threshold
        self.anomalous += bool(result.is_anomalous)
        self.class_names[result.class_name] = None
        self.scores.append(result.score)
        if len(self.cards) == CARDS and result.score <= self.cards[0].score:
            return
        try:
            overlay = result.overlay(result.pixel_threshold)
        except ImageError as error:  # the file changed since it was scored
            self.errors.append((image, str(error)))
            return
        parts = f"global {result.global_score:.3f} + local {result.local_score:.3f}"
        verdict = {None: "", True: "anomalous", False: "normal"}[result.is_anomalous]
        card = Card(result.score, -len(self.scores), image, parts, verdict, data_uri(overlay, SMALL))
        (heapq.heappush if len(self.cards) < CARDS else heapq.heappushpop)(self.cards, card)

    def fail(self, image: str, error: str) -> None:
        """Take a picture that could not be used."""
        self.errors.append((image, error))

    def close(self) -> None:
        """Write the file."""
        rows = [("pictures", len(self.scores) + len(self.errors)), ("class", ", ".join(self.class_names) or "-")]
        if self.threshold is not None:
            rows += [("anomalous", self.anomalous), ("threshold", f"{self.threshold:.4f}")]
        if self.scores:
            low, middle, high = np.quantile(self.scores, (0, 0.5, 1))
            rows.append(("score: lowest, median, highest", f"{low:.3f}, {middle:.3f}, {high:.3f}"))
        if self.errors:
            rows.append(("could not be used", len(self.errors)))
        summary = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in rows)
        cards = "".join(map(_card, sorted(self.cards, key=lambda card: (-card.score, -card.number))))
        left_out = len(self.scores) - len(self.cards)
        note = f"<p>The {len(self.cards)} highest scores; {left_out} more are not drawn.</p>" if left_out > 0 else ""
        errors = "".join(f"<li>{html.escape(error)}</li>" for _, error in self.errors)
        page = _PAGE.format(
            summary=summary,
            histogram=histogram(self.scores, self.threshold) if self.scores else "",
            cards=cards,
            note=note,
            errors=f"<h2>Could not be used</h2><ul>{errors}</ul>" if errors else "",
        )
        write_atomically(self.folder / "report.html", page.encode(errors="backslashreplace"))


def histogram(scores: list[float], threshold: float | None) -> str:
    """Scores in [0, 2] in bins of 0.05 as SVG, those above the threshold in another colour."""
    counts, edges = np.histogram(np.clip(scores, 0, 2), bins=BINS, range=(0, 2))
    bars = ""
    for i, count in enumerate(counts):
        height = 100 * count / counts.max()
        kind = "" if threshold is None or edges[i + 1] <= threshold else ' class="above"'
        title = f"<title>{edges[i]:.2f} to {edges[i + 1]:.2f}: {count}</title>"
        bars += f'<rect{kind} x="{i * 15 + 1}" y="{110 - height:.1f}" width="13" height="{height:.1f}">{title}</rect>'
    axis = "".join(f'<text x="{x * 300}" y="126">{x:g}</text>' for x in (0, 0.5, 1, 1.5, 2))
    if threshold is not None:
        x = 300 * min(max(threshold, 0), 2)
        axis += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="110"><title>threshold {threshold:.4f}</title></line>'
    return f'<svg viewBox="-12 0 624 130" role="img" aria-label="Histogram of scores">{bars}{axis}</svg>'


def _card(card: Card) -> str:
    name = html.escape(card.name)
    verdict = f' <b class="{card.verdict}">{card.verdict}</b>' if card.verdict else ""
    return (
        f'<figure data-score="{card.score:.6f}" data-name="{name}">'
        f'<img src="{card.picture}" alt="Overlay of {name}" loading="lazy">'
        f"<figcaption><strong>{card.score:.4f}</strong>{verdict}<br>{card.parts}<br>{name}</figcaption></figure>\n"
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Tipsomaly report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ max-width: 1200px; margin: 0 auto; padding: 1rem; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }} dd {{ margin: 0; }}
svg {{ width: 100%; max-width: 640px; }} rect {{ fill: #6b7a99; }} rect.above {{ fill: #d9480f; }}
line {{ stroke: #d9480f; stroke-width: 2; }} text {{ font-size: 11px; text-anchor: middle; fill: currentColor; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: .75rem; }}
figure {{ margin: 0; border: 1px solid #8886; border-radius: 6px; overflow: hidden; }}
figure img {{ width: 100%; display: block; }} figcaption {{ padding: .4rem .6rem; overflow-wrap: anywhere; }}
b.anomalous {{ color: #d9480f; }} b.normal {{ color: #2b8a3e; }}
</style></head><body>
<h1>Tipsomaly report</h1>
<dl>{summary}</dl>
{histogram}
<p><label>Sort by <select id="order"><option value="down">score, highest first</option>
<option value="up">score, lowest first</option><option value="name">name</option></select></label></p>
{note}
<main>
{cards}</main>
{errors}
<script>
const orders = {{
  down: (a, b) => b.dataset.score - a.dataset.score,
  up: (a, b) => a.dataset.score - b.dataset.score,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
}};
document.getElementById("order").addEventListener("change", (event) => {{
  const cards = document.querySelector("main");
  [...cards.children].sort(orders[event.target.value]).forEach((card) => cards.append(card));
}});
</script></body></html>
"""
