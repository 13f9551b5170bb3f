"""Adversarial attacks, pixel bounds, and scores of how useful and robust features are."""

from whence.core.pixel_bounds import Box
from whence.core.public_names import namespace
from whence.robustness.attack_methods import FGSM, MIFGSM, PGD, DeepFool, fgsm, pgd
from whence.robustness.robust_features import feature_scores

__all__ = [
    "FGSM",
    "MIFGSM",
    "PGD",
    "Box",
    "DeepFool",
    "feature_scores",
    "fgsm",
    "pgd",
]
__getattr__ = namespace(__name__, globals())
