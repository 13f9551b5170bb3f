"""Imputers, which fill in the parts of an input that are removed."""

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
