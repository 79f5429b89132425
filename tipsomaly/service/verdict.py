"""Defective or not, in words and on a strip: what good pictures say of a score."""

import math
import shlex
from html import escape
from pathlib import Path

from tipsomaly.detection.calibration import Calibration, allowed
from tipsomaly.detection.result import Result
from tipsomaly.service.comparison import percent
from tipsomaly.service.examples import Example, Examples
from tipsomaly.service.exports import Inspection
from tipsomaly.service.space import Space

RATES = (0.01, 0.05, 0.1, 0.2)
"""False-alarm rates to choose from."""
BUNDLED = "nano / "
"""How the choices of the model begin that is fast enough to calibrate with the bundled pictures unasked."""

CSS = """
.card p {margin: .25rem 0}
.card .verdict {font-size: 2.4rem; font-weight: 700; line-height: 1.1; margin: 0}
.strip {position: relative; height: 2rem; margin: .75rem 0 .25rem; border-bottom: 2px solid var(--border-color-primary)}
.strip i {position: absolute; transform: translateX(-50%)}
.strip .good {bottom: -5px; width: 10px; height: 10px; border-radius: 50%; background: #64748b; opacity: .75}
.strip .tick {bottom: -8px; height: 1.6rem; width: 3px; background: var(--body-text-color)}
.strip .here {bottom: 8px; width: 0; height: 0; border: 8px solid transparent;
  border-top: 12px solid #4f46e5; border-bottom: 0}
.strip .here.anomalous {border-top-color: #c2410c} .strip .here.normal {border-top-color: #047857}
.key .good {background: #64748b; border-radius: 50%} .key .tick {background: var(--body-text-color); width: 3px}
.key .here {background: #4f46e5; clip-path: polygon(0 0, 100% 0, 50% 100%)}
"""


class Bundled:
    """Verdicts for the bundled examples: each class is calibrated when it is first looked at, by the weights that are
    there, with the good examples of all other classes."""

    WHERE = "of other products"

    def __init__(self, space: Space, examples: Examples) -> None:
        self.space, self.examples = space, examples
        self._made: dict[tuple[str, str, str], Calibration] = {}
        self._twins: dict[tuple[str, str, str], float] = {}

    def calibration(self, image: str | Path, class_name: str, domain: str, model: str) -> Calibration | None:
        """For a bundled picture under its own class and fixed prompts; None for any other."""
        example, key = self.examples.find(image), (class_name, domain, model)
        if example is None or (example.class_name, example.domain) != key[:2] or not model.startswith(BUNDLED):
            return None
        if self.space.is_calibrated(*key):
            return None
        if key not in self._made:
            self._made[key] = self.space.calibrate(self.examples.goods(example), *key, RATES[0])
        return self._made[key]

    def twin(self, example: Example | None, class_name: str, domain: str, model: str) -> float | None:
        """What the good one of a defective example's pair scores; None for any other."""
        key = (class_name, domain, model)
        if example is None or example.mask is None:
            return None
        if key not in self._twins:
            self._twins[key] = self.space.inspect(self.examples.twin(example).picture, *key).result.score
        return self._twins[key]


def card(inspection: Inspection, where: str = "") -> str:
    """The verdict of an inspection, large, and its score, among the good pictures where they are known; `where` says in
    words which good pictures they are. Without thresholds a line that says what to do."""
    result, calibration = inspection.result, inspection.calibration
    most = sum(result.image_score.values())
    score = f'<span class="score">{result.score:.3f}</span> of {most:g} · {escape(result.class_name)}'
    unused = inspection.unused and f"<p>Your good pictures do not serve here: {escape(inspection.unused)}.</p>"
    if result.is_anomalous is None:
        said = unused or (
            "<p><b>No verdict yet</b>: how much is too much depends on the product. "
            "Choose pictures of good ones below.</p>"
        )
        return f"<p>Anomaly score {score}</p>{said}"
    words = "Defective" if result.is_anomalous else "Looks normal"
    kind = "anomalous" if result.is_anomalous else "normal"
    said, more = f"Defective above {result.image_threshold:.3f}", ""
    if calibration and calibration.scores:
        below = sum(score < result.score for score in calibration.scores)
        said = f"Above {below} of {calibration.pictures} good pictures{where and f' {escape(where)}'}; {said.lower()}"
        more = strip(result, calibration)
    return f'{unused or ""}<p class="verdict {kind}">{words}</p><p>Anomaly score {score}. {said}.</p>{more}'


def strip(result: Result, calibration: Calibration) -> str:
    """The good pictures' scores as dots on a line from the lowest possible score to the highest, with the threshold and
    the picture's score."""
    most = sum(result.image_score.values())

    def left(value: float) -> str:
        return f"left:{100 * min(max(value / most, 0), 1):.2f}%"

    dots = "".join(f'<i class="good" style="{left(score)}"></i>' for score in calibration.scores)
    below = sum(score < result.score for score in calibration.scores)
    alt = (
        f"The score {result.score:.3f} is above {below} of {calibration.pictures} good pictures, whose scores are "
        f"{min(calibration.scores):.3f} to {max(calibration.scores):.3f}; the threshold is "
        f"{calibration.image_threshold:.3f}, of at most {most:g}"
    )
    kind = "anomalous" if result.is_anomalous else "normal"
    return (
        f'<div class="strip" role="img" aria-label="{alt}">{dots}'
        f'<i class="tick" style="{left(calibration.image_threshold)}"></i>'
        f'<i class="here {kind}" style="{left(result.score)}"></i></div>'
        '<div class="key" aria-hidden="true"><span><i class="good"></i>good pictures</span>'
        '<span><i class="tick"></i>threshold</span><span><i class="here"></i>this picture</span></div>'
    )


def trust(calibration: Calibration) -> str:
    """How far a false-alarm rate can be trusted with so few pictures."""
    n, above = calibration.pictures, allowed(calibration.target_fpr, calibration.pictures)
    expected, most = calibration.false_alarms
    over = f"all {n} good pictures" if not above else f"all but {above} of {n} good pictures"
    text = (
        f"The threshold is just above {over}: of others like them {percent(expected)} are expected to be called "
        f"defective, and with 95\u00a0% confidence at most {percent(most)}."
    )
    needed = math.ceil(1 / calibration.target_fpr - 1e-9) - 1
    if needed > n:
        text += f" To expect {calibration.target_fpr * 100:g}\u00a0% takes {needed} good pictures."
    return text


def command(calibration: Calibration, domain: str, model: str) -> str:
    """The shell command that gives the same verdicts, with calibration.json; `model` is a choice of the Space."""
    name, _, prompts = model.rpartition(" / ")
    words = ["tipsomaly", "detect", "photos/new", "--calibration", "calibration.json", "--model", name]
    words += ["--prompts", prompts, "--domain", domain, "--class-name", calibration.class_name]
    return shlex.join(words)
