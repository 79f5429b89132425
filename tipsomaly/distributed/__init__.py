"""Many pictures on many workers, of a machine or of a cluster, with Ray Data: `pip install "ray[data]"`."""

from tipsomaly.distributed.actors import Scorer, Summary, detect, score
from tipsomaly.distributed.rows import PICTURES, SCORES, Results, find

__all__ = ["PICTURES", "SCORES", "Results", "Scorer", "Summary", "detect", "find", "score"]
