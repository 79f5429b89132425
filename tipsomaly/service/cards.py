"""What the page draws as HTML; every word of a visitor is escaped."""

from collections.abc import Mapping
from html import escape

from tipsomaly.service import verdict
from tipsomaly.service.exports import Inspection

EMPTY = '<div class="card">Choose a picture or one of the examples: the result appears here.</div>'


def score_card(inspection: Inspection, where: str = "") -> str:
    """The score as a number and as a bar of its two parts, and the verdict if there is a threshold."""
    result = inspection.result
    shares = f"global {result.global_score:.3f} and local {result.local_score:.3f} of at most 1 each"
    threshold, most = result.image_threshold, sum(result.image_score.values())
    parts = {"spatial": result.global_score, "local": result.local_score}
    widths = {part: 100 * result.image_score.get(part, 0) * value / most for part, value in parts.items()}
    left = 100 * min((threshold or 0) / most, 1)
    tick = "" if threshold is None else f'<div class="threshold" style="left:{left:.2f}%"></div>'
    note = f"<p>Note: {escape(result.note)}.</p>" if result.note else ""
    kinds = ", ".join(f"<b>{escape(kind)}</b> {value:.2f}" for kind, value in list((result.kinds or {}).items())[:3])
    kinds = f'<p id="kinds">Kind of the strongest evidence: {kinds}</p>' if kinds else ""
    return f"""<div class="card" id="score-card">{verdict.card(inspection, where)}
<div class="score">{result.score:.3f} <span class="of">of {most:g} · {escape(result.class_name)}</span></div>
<div class="bar" role="img" aria-label="{shares}">
<div class="global" style="width:{widths["spatial"]:.2f}%"></div>
<div class="local" style="width:{widths["local"]:.2f}%"></div>{tick}</div>
<div class="key"><span class="global"><i></i>global, p_a(spatial token): <b>{result.global_score:.3f}</b></span>
<span class="local"><i></i>strongest local evidence: <b>{result.local_score:.3f}</b>, of one
patch; the map is smoothed and peaks at {inspection.shown.anomaly_map.max():.2f}</span></div>
{kinds}{note}<p class="of">{inspection.seconds * 1000:.0f} ms</p></div>"""


def sentences(inspection: Inspection, count: int = 4) -> str:
    """The fixed sentences nearest to the picture, for each state."""

    def state(title: str, similarities: Mapping[str, float]) -> str:
        items = "".join(
            f"<li><span>{escape(t)}</span><b>{s:.3f}</b></li>" for t, s in list(similarities.items())[:count]
        )
        return f"<div><h4>{title}</h4><ul>{items}</ul></div>"

    columns = state("Loudest for normal", inspection.normal) + state("Loudest for abnormal", inspection.abnormal)
    return f'<div class="card">Cosine of the sentence with the spatial token<div class="states">{columns}</div></div>'
