"""Experiments of the course that this library grew from, and evaluations that train networks."""

from whence.core.public_names import namespace
from whence.evaluation.metrics.robustness import translation_figure
from whence.evaluation.retraining import label_randomisation, roar
from whence.evaluation.search_space import rule_sets
from whence.robustness.robust_features import RobustFeatures, robust_features_experiment

__all__ = [
    "RobustFeatures",
    "label_randomisation",
    "roar",
    "robust_features_experiment",
    "rule_sets",
    "translation_figure",
]
__getattr__ = namespace(__name__, globals())
