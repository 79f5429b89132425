"""A batch as HTML: a histogram of its scores under a threshold that can be moved, and the pictures in pages.

The threshold, the ticks and the pages are the browser's alone (SCRIPT); a click on a picture is the event "select" with
the picture's number, one on "Judge by them" the event "submit" with the numbers of those that are ticked as good.
"""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from tipsomaly.service.comparison import source, wide
from tipsomaly.service.exports import Row, ranked
from tipsomaly.service.space import MAX_GOOD, MIN_GOOD

BINS = 30
PAGE = 25
"""Pictures on a page of the table."""
THUMBNAIL = 96
"""The longer side of a thumbnail in pixels."""

CSS = """
#scores .bars {position: relative; height: 110px; margin: 0 8px}
#scores svg {position: absolute; inset: 0; width: 100%; height: 100%; fill: #64748b}
#scores svg.above {fill: #c2410c; clip-path: inset(0 0 0 var(--at))}
.dark #scores svg.above {fill: #fb923c}
#scores .at {position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; background: var(--body-text-color)}
#scores input[type=range] {width: 100%; margin: 0; accent-color: #4f46e5; display: block; height: 24px}
#scores .ends {display: flex; justify-content: space-between; font-size: .85rem; margin: 0 8px}
#scores output {font-weight: 600}
#scores .failed {max-height: 9rem; overflow-y: auto; padding-left: 1.2rem; list-style: disc}
#scores table {width: 100%}
#scores th[scope=row] {font-weight: 400; white-space: normal; overflow-wrap: anywhere; min-width: 210px; padding: 3px 0}
#scores td {font-variant-numeric: tabular-nums} #scores td:nth-child(2) {font-weight: 600}
#scores th button {display: flex; gap: .6rem; align-items: center; text-align: left; width: 100%; color: inherit}
#scores th button:hover span {text-decoration: underline}
#scores th img {border-radius: 4px; flex: none; max-height: 64px}
#scores tr.above .judged {color: #c2410c; font-weight: 600}
.dark #scores tr.above .judged {color: #fb923c}
#scores td:has(input) {text-align: center}
#scores input[type=checkbox] {appearance: auto; width: 24px; height: 24px; accent-color: #4f46e5}
#scores .goods {display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: .5rem 0}
#scores nav:not([hidden]) {display: flex; gap: 1rem; align-items: center; margin-top: .5rem}
#scores nav button, #scores .goods button {border: 1px solid var(--border-color-primary); border-radius: 6px;
  padding: .3rem .8rem}
#scores button:disabled {opacity: .5}
@media (max-width: 660px) {#scores th[scope=row] {min-width: 150px}}
"""

SCRIPT = """
const root = () => element.querySelector('#scores');
function threshold() {
  const slider = root().querySelector('input'), at = Number(slider.value);
  const rows = [...root().querySelectorAll('tr[data-score]')];
  let above = 0;
  for (const row of rows) {
    const is = Number(row.dataset.score) >= at;
    above += is;
    row.classList.toggle('above', is);
    row.querySelector('.judged').textContent = is ? 'reached' : 'below';
  }
  root().style.setProperty('--at', 100 * (at - slider.min) / (slider.max - slider.min) + '%');
  root().querySelector('output').textContent = `${above} of ${rows.length} pictures score at least ${at.toFixed(3)}`;
}
function turn(step) {
  const rows = [...root().querySelectorAll('tr[data-score]')], size = Number(root().dataset.size);
  const last = Math.max(1, Math.ceil(rows.length / size));
  const page = Math.min(Math.max(Number(root().dataset.page || 1) + step, 1), last);
  root().dataset.page = page;
  rows.forEach((row, i) => { row.hidden = Math.floor(i / size) + 1 != page; });
  root().querySelector('nav span').textContent = `Page ${page} of ${last}`;
  root().querySelector('nav .back').disabled = page == 1;
  root().querySelector('nav .on').disabled = page == last;
}
const ticks = () => [...root().querySelectorAll('input[type=checkbox]')];
const limits = () => root().dataset.goods.split(' ').map(Number);
function ticked() {
  const count = ticks().filter(tick => tick.checked).length, [least, most] = limits();
  root().querySelector('.goods span').textContent = `${count} ticked as good`;
  root().querySelector('.judge').disabled = count < least || count > most;
}
element.addEventListener('input', event => { event.target.type == 'range' ? threshold() : ticked(); });
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.picture) trigger('select', {index: Number(button.dataset.picture)});
  else if (button.className == 'judge')
    trigger('submit', {goods: ticks().filter(tick => tick.checked).map(tick => Number(tick.value))});
  else if (button.className == 'below') {
    const below = ticks().filter(tick => !tick.closest('tr').classList.contains('above'));
    const count = Math.min(below.length, limits()[1]);  // of more, evenly spread: not the best ones alone
    const taken = Array.from({length: count}, (_, i) => below[Math.floor(i * below.length / count)]);
    ticks().forEach(tick => { tick.checked = taken.includes(tick); });
    ticked();
  } else turn(button.className == 'on' ? 1 : -1);
});
"""


def html(rows: Sequence[Row], of: str) -> str:
    """Rows in the order of their files, which numbers them. The threshold begins at the calibrated one, else half-way
    between the lowest and the highest score. `of` says what they were scored as."""
    number = {id(row): i for i, row in enumerate(rows)}
    scored = [row for row in ranked(rows) if row.result]
    failed = "".join(f"<li>{escape(row.name)}: {escape(row.error or '')}</li>" for row in rows if not row.result)
    failed = failed and f'<p class="note">Could not be used:</p><ul class="failed" tabindex="0">{failed}</ul>'
    if not scored:
        return f'<div class="card" id="scores">{failed}</div>'
    results = [row.result for row in scored if row.result]
    values, calibrated = [result.score for result in results], results[0].image_threshold
    at = (values[0] + values[-1]) / 2 if calibrated is None else calibrated
    low, high = math.floor(min(at, *values) * 20) / 20, math.floor(max(at, *values) * 20 + 1) / 20
    above, pages = sum(value >= at for value in values), math.ceil(len(scored) / PAGE)
    body = "".join(line(row, number[id(row)], at, hidden=i >= PAGE) for i, row in enumerate(scored))
    heads = "".join(f'<th scope="col">{words}</th>' for words in ("score", "good", "threshold", "global", "local"))
    return (
        f'<div class="card" id="scores" data-size="{PAGE}" data-goods="{MIN_GOOD} {MAX_GOOD}" '
        f'style="--at:{100 * (at - low) / (high - low):.2f}%">{failed}'
        f"{histogram(values, low, high)}"
        f'<input type="range" min="{low}" max="{high}" step="any" value="{at!r}" aria-label="Threshold of the score">'
        f'<div class="ends" aria-hidden="true"><span>{low:.2f}</span><span>{high:.2f}</span></div>'
        f"<output>{above} of {len(values)} pictures score at least {at:.3f}</output>"
        '<div class="goods"><button class="below">Tick those below</button><span aria-live="polite">0 ticked as good'
        '</span><button class="judge" disabled>Judge by them</button></div>'
        f'<p class="note">{MIN_GOOD} to {MAX_GOOD} pictures that you have looked at and found good decide what is '
        "defective, here and on the other tabs.</p>"
        f"{wide(f'{of}; most anomalous first. A click opens a picture in Localization.', heads, body)}"
        f'<nav aria-label="Pages"{" hidden" if pages == 1 else ""}><button class="back" disabled>Previous</button>'
        f'<span aria-live="polite">Page 1 of {pages}</span><button class="on">Next</button></nav></div>'
    )


def line(row: Row, number: int, at: float, hidden: bool) -> str:
    """A picture of the table."""
    if (result := row.result) is None:
        return ""
    name, score = escape(row.name), f"{result.score:.3f}"
    button = (
        f'<button data-picture="{number}" aria-label="{name}, score {score}: open in Localization">'
        f"{thumbnail(row)}<span>{name}</span></button>"
    )
    reached = result.score >= at
    tick = f'<input type="checkbox" value="{number}" aria-label="{name} is good">'
    judged = f'<td class="judged">{"reached" if reached else "below"}</td>'
    return (
        f'<tr data-score="{result.score!r}"{" hidden" if hidden else ""}{" class=above" if reached else ""}>'
        f'<th scope="row">{button}</th><td>{score}</td><td>{tick}</td>{judged}'
        f"<td>{result.global_score:.3f}</td><td>{result.local_score:.3f}</td></tr>"
    )


def thumbnail(row: Row) -> str:
    """The overlay, small; its button says what it is."""
    if row.overlay is None:
        return ""
    with Image.open(row.overlay) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return f'<img src="{source(image)}" alt="">'


def histogram(values: Sequence[float], low: float, high: float) -> str:
    """How many scores lie in each of BINS steps; what reaches the threshold has another colour."""
    counts, edges = np.histogram(values, BINS, (low, high))
    most = int(counts.argmax())
    alt = (
        f"Histogram of {len(values)} scores from {min(values):.3f} to {max(values):.3f}; the most, {counts[most]}, "
        f"from {edges[most]:.2f} to {edges[most + 1]:.2f}"
    )
    bars = "".join(
        f'<rect x="{i + 0.05}" y="{1 - count / counts[most]:.4f}" width="0.9" height="{count / counts[most]:.4f}"/>'
        for i, count in enumerate(counts)
        if count
    )
    view = f'viewBox="0 0 {BINS} 1" preserveAspectRatio="none"'
    return (
        f'<div class="bars"><svg role="img" aria-label="{alt}" {view}>{bars}</svg>'
        f'<svg class="above" aria-hidden="true" {view}>{bars}</svg><i class="at"></i></div>'
    )
