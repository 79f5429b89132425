"""Tipsomaly: zero-shot visual anomaly detection with TIPS ("TIPS Over Tricks", ICASSP 2026)."""

from tipsomaly.hub import ModelError
from tipsomaly.images import ImageError
from tipsomaly.pipeline import Pipeline
from tipsomaly.prompts import LearnedPrompts, PromptEnsemble
from tipsomaly.result import Region, Result

__all__ = ["ImageError", "LearnedPrompts", "ModelError", "Pipeline", "PromptEnsemble", "Region", "Result"]
__version__ = "0.1.0"
