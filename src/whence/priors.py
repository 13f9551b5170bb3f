"""Priors for prototypes: penalties, Gaussian experts, and the code space of a decoder."""

from whence.core.public_names import namespace
from whence.prototypes.autoencoders import VAE, AdversarialAutoencoder
from whence.prototypes.priors import L2, CodeSpace, GaussianExpert, GaussianRBM

__all__ = [
    "L2",
    "VAE",
    "AdversarialAutoencoder",
    "CodeSpace",
    "GaussianExpert",
    "GaussianRBM",
]
__getattr__ = namespace(__name__, globals())
