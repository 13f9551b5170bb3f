"""Parameterizations and random transforms of prototype images."""

from whence.core.public_names import namespace
from whence.prototypes.image_parameterizations import CPPN, MACO, Fourier, Pixels
from whence.prototypes.random_transforms import Jiggle
from whence.prototypes.spatial_atlas import spatial_atlas

__all__ = [
    "CPPN",
    "MACO",
    "Fourier",
    "Jiggle",
    "Pixels",
    "spatial_atlas",
]
__getattr__ = namespace(__name__, globals())
