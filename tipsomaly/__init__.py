"""Tipsomaly: zero-shot visual anomaly detection with TIPS ("TIPS Over Tricks", ICASSP 2026)."""

from tipsomaly.detection.calibration import Calibration
from tipsomaly.detection.pipeline import Pipeline
from tipsomaly.detection.result import Region, Result
from tipsomaly.errors import DatasetError, ImageError, ModelError, TipsomalyError, TrainingError
from tipsomaly.prompts.learned import LearnedPrompts
from tipsomaly.prompts.sentences import PromptEnsemble

__all__ = [
    "Calibration",
    "DatasetError",
    "ImageError",
    "LearnedPrompts",
    "ModelError",
    "Pipeline",
    "PromptEnsemble",
    "Region",
    "Result",
    "TipsomalyError",
    "TrainingError",
]
__version__ = "0.1.0"
