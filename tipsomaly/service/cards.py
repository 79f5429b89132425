"""What the page draws as HTML, in plain words; every word of a visitor is escaped."""

from collections.abc import Mapping
from html import escape

from tipsomaly.detection.result import Result
from tipsomaly.service import verdict
from tipsomaly.service.comparison import place
from tipsomaly.service.examples import Example
from tipsomaly.service.exports import Inspection

EMPTY = '<div class="card">Choose a picture or one of the examples: the result appears here.</div>'
OPENING = '<div class="card">One moment: an example is inspected.</div>'
GLOBAL = "p_a(spatial token): the softmax of the abnormal fixed prototype against the normal one"
LOCAL = "max p_a(patch token): the same of the learned prototypes, for the patch where it is largest"
COSINE = "Cosine of the sentence's embedding with the spatial token"


def score_card(
    inspection: Inspection, example: Example | None = None, where: str = "", twin: float | None = None
) -> str:
    """The verdict if there is a threshold, the score, and, folded away, the bar of its two parts. Of an `example` it is
    known what the verdict should be, and what its good `twin` scores; `where` is as in `verdict.card`."""
    result = inspection.result
    threshold, most = result.image_threshold, sum(result.image_score.values())
    shares = f"whole picture {result.global_score:.3f} and strongest spot {result.local_score:.3f} of at most 1 each"
    parts = {"spatial": result.global_score, "local": result.local_score}
    widths = {part: 100 * result.image_score.get(part, 0) * value / most for part, value in parts.items()}
    left = 100 * min((threshold or 0) / most, 1)
    tick = "" if threshold is None else f'<div class="threshold" style="left:{left:.2f}%"></div>'
    note = f"<p>Note: {escape(result.note)}.</p>" if result.note else ""
    kinds = ", ".join(f"<b>{escape(kind)}</b> {value:.2f}" for kind, value in list((result.kinds or {}).items())[:3])
    kinds = f'<p id="kinds">Kind of the strongest evidence: {kinds}</p>' if kinds else ""
    trust = inspection.calibration and inspection.calibration.scores and verdict.trust(inspection.calibration)
    return f"""<div class="card" id="score-card">{known(example, result, twin)}
{verdict.card(inspection, where)}{kinds}{note}
<details><summary>How this score is made</summary>
<div class="bar" role="img" aria-label="{shares}">
<div class="global" style="width:{widths["spatial"]:.2f}%"></div>
<div class="local" style="width:{widths["local"]:.2f}%"></div>{tick}</div>
<div class="key"><span class="global" title="{GLOBAL}"><i></i>the whole picture: <b>{result.global_score:.3f}</b></span>
<span class="local" title="{LOCAL}"><i></i>its strongest spot: <b>{result.local_score:.3f}</b>; the map is smoothed,
and there it peaks at {inspection.shown.anomaly_map.max():.2f}</span></div>
{f"<p>{escape(trust)}</p>" if trust else ""}<p class="note">{inspection.seconds * 1000:.0f} ms</p></details></div>"""


def alt(inspection: Inspection) -> str:
    """What the map over the picture shows, in words."""
    result, peak = inspection.result, inspection.shown.anomaly_map.max()
    said = {None: "", True: ": defective", False: ": looks normal"}[result.is_anomalous]
    return f"Anomaly map of the {result.class_name}{said}; it peaks at {peak:.2f}, {place(inspection.shown)}"


def known(example: Example | None, result: Result, twin: float | None = None) -> str:
    """What an example is, whether the verdict is right and, if not, why; and what its good twin scores. Nothing of
    other pictures."""
    if example is None:
        return ""
    defective, anomalous = example.mask is not None, result.is_anomalous
    truth = "it is defective" if defective else "it is good"
    more = "" if twin is None else f" The good one of its pair scores {twin:.3f}."
    if anomalous is None:
        said = f"; {truth}."
    elif anomalous == defective:
        said = f": the verdict is right, {truth}."
    else:
        said = f": the verdict is wrong, {truth}."
        less = twin is None or twin >= result.score
        more += (
            " The threshold is of other products, and what is usual on this one scores more than what is usual on them."
            if not defective
            else " The model does not see this defect well."
            if less
            else " The threshold is of other products, some of which score more than this defect."
        )
        more += "" if defective and less else " Good pictures of the product itself would draw a closer line."
    return f'<p class="note" id="example">Example \u201c{escape(example.caption)}\u201d{said}{more}</p>'


def sentences(inspection: Inspection, count: int = 4) -> str:
    """The fixed sentences nearest to the picture, for each state."""

    def state(title: str, similarities: Mapping[str, float]) -> str:
        items = "".join(
            f"<li><span>{escape(t)}</span><b>{s:.3f}</b></li>" for t, s in list(similarities.items())[:count]
        )
        return f"<div><h4>{title}</h4><ul>{items}</ul></div>"

    columns = state("Closest for normal", inspection.normal) + state("Closest for abnormal", inspection.abnormal)
    return (
        f'<div class="card"><span title="{COSINE}">The sentences that are closest to the picture</span>'
        f'<div class="states">{columns}</div></div>'
    )
