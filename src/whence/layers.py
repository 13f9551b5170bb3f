"""Layers of neuralised models (distances, soft pooling, kernel expansions), and the output shapes of a model's layers."""

from whence.core.public_names import namespace
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
__getattr__ = namespace(__name__, globals())
