"""What is likely a priori: penalties, Gaussian experts, and codes of a decoder."""

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
