"""Layers of neuralised kernel machines, distances and pools, and the layers of a model by name."""

from whence.methods.layer_reader import layer_shapes
from whence.neuralization.distances import Distance, Mahalanobis
from whence.neuralization.estimators import Neuralized, SupportSets
from whence.neuralization.soft_pooling import Contrast, SoftMax, SoftMin

__all__ = [
    "Contrast",
    "Distance",
    "Mahalanobis",
    "Neuralized",
    "SoftMax",
    "SoftMin",
    "SupportSets",
    "layer_shapes",
]
