"""Metrics of explanations, for `whence.evaluate` and `whence.tune`."""

from whence.core.public_names import namespace
from whence.evaluation.metrics.complexity import Completeness, Complexity, ConservationGap, RelevanceRatio, Sparseness
from whence.evaluation.metrics.faithfulness_curves import (
    ABPC,
    AOPC,
    IROF,
    LIF,
    MIF,
    SRG,
    Deletion,
    Insertion,
    Monotonicity,
    RegionFlipping,
    Selectivity,
)
from whence.evaluation.metrics.faithfulness_subsets import Infidelity, SensitivityN
from whence.evaluation.metrics.localization import PointingGame, RelevanceMass, RelevanceRank, TopKIntersection
from whence.evaluation.metrics.randomization import MPRT, EfficientMPRT, RandomLogit, SmoothMPRT
from whence.evaluation.metrics.registry import METRICS, Metric
from whence.evaluation.metrics.robustness import Continuity, MaxSensitivity, RelativeInputStability, RelativeOutputStability
from whence.evaluation.perturbation import Removal

__all__ = [
    "ABPC",
    "AOPC",
    "IROF",
    "LIF",
    "METRICS",
    "MIF",
    "MPRT",
    "SRG",
    "Completeness",
    "Complexity",
    "ConservationGap",
    "Continuity",
    "Deletion",
    "EfficientMPRT",
    "Infidelity",
    "Insertion",
    "MaxSensitivity",
    "Metric",
    "Monotonicity",
    "PointingGame",
    "RandomLogit",
    "RegionFlipping",
    "RelativeInputStability",
    "RelativeOutputStability",
    "RelevanceMass",
    "RelevanceRank",
    "RelevanceRatio",
    "Removal",
    "Selectivity",
    "SensitivityN",
    "SmoothMPRT",
    "Sparseness",
    "TopKIntersection",
]
__getattr__ = namespace(__name__, globals())
