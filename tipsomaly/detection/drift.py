"""Whether what is scored is still what the normal pictures showed."""

from collections import deque

from tipsomaly.detection.references import References

WINDOW = 50
"""Pictures that are looked at together."""
FEWEST = 20
"""Pictures, of those scored, below which nothing is said."""
SURE = 0.001
"""Chance of being wrong, for as many normal pictures as there were."""


class Drift:
    """The latest scores of a stream against those of the normal pictures. Up to half of them may be defective."""

    def __init__(self, references: References) -> None:
        self._known = references.scores[references.use].double()
        self._latest: deque[float] = deque(maxlen=WINDOW)

    def add(self, score: float) -> None:
        """The next picture's score."""
        self._latest.append(score)

    def note(self) -> str | None:
        """What is wrong with the latest pictures, if something is. Of n scores drawn alike the share of others below
        the k-th is beta(k, n + 1 - k), so that their number in a window is beta-binomial."""
        from scipy.stats import betabinom

        n, seen = len(self._known), len(self._latest)
        if seen < FEWEST:
            return None
        half = (n + 1) // 2
        low = sum(score <= self._known[half - 1] for score in self._latest)
        below = sum(score < self._known[0] for score in self._latest)
        if betabinom.cdf(low, seen // 2, half, n + 1 - half) < SURE:
            said = f"only {low} of the last {seen} pictures score as low as half of the normal ones did"
            return f"{said}: light, camera or product have changed, or most of them are defective"
        if betabinom.sf(below - 1, seen, 1, n) < SURE:
            said = f"{below} of the last {seen} pictures score lower than every normal one did"
            return f"{said}: they are not what the references were made of; make these anew"
        return None
