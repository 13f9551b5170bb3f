"""Imputers, which fill in the parts of an input that are removed."""

from whence.core.public_names import namespace
from whence.evaluation.imputers import IMPUTERS, BackgroundSamples, Blur, ConstantValue, Imputer, Inpainting, Mean, OtherPlaces

__all__ = [
    "IMPUTERS",
    "BackgroundSamples",
    "Blur",
    "ConstantValue",
    "Imputer",
    "Inpainting",
    "Mean",
    "OtherPlaces",
]
__getattr__ = namespace(__name__, globals())
