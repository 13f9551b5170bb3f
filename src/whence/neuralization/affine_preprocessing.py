"""Affine preprocessing, z = A (x − c) + b, and the map from deviations in z back to deviations in x."""

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """Affine map z = A (x − c) + b; `inverse` is a right inverse B, A B = 1. Diagonal A and B are vectors.

    Relevance of a squared distance in z reaches x by the deviation Bδ that stands for δ in z (its nearest root):
    δᵀPδ = Σ_i (Bδ)_i (AᵀPδ)_i. For scalers and for PCA without whitening every term of ‖δ‖² is a square again.
    """

    centre: Tensor  # [d], subtracted first: what is large and alike in all samples would cost digits
    weight: Tensor  # [k, d] or [d]
    shift: Tensor  # [k]
    inverse: Tensor  # [d, k] or [d]

    def __init__(self, centre: Tensor, weight: Tensor, shift: Tensor, inverse: Tensor):
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("weight", weight)
        self.register_buffer("shift", shift)
        self.register_buffer("inverse", inverse)

    @property
    def features(self) -> int:
        """The number of features of x."""
        return self.weight.shape[-1]

    def mapped(self, x: Tensor) -> Tensor:
        return apply_matrix(x - self.centre, self.weight) + self.shift

    def then(self, other: "Affine") -> "Affine":
        """Return this map followed by another."""
        weight, inverse = _product(other.weight, self.weight), _product(self.inverse, other.inverse)
        return Affine(self.centre, weight, other.mapped(self.shift), inverse)

    def faces(self, deviation: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return (Bδ, Aᵀγ), whose elementwise product sums to δᵀγ."""
        return apply_matrix(deviation, self.inverse), apply_matrix(
            gradient, self.weight.mT if self.weight.dim() > 1 else self.weight
        )


def identity_map(like: Tensor) -> Affine:
    """Return the identity map for rows like these."""
    ones = torch.ones_like(like[0], requires_grad=False)
    zeros = torch.zeros_like(ones)
    return Affine(zeros, ones, zeros.clone(), ones.clone())


def apply_matrix(x: Tensor, matrix: Tensor) -> Tensor:
    """Return matrix · x for each row; a vector stands for a diagonal matrix."""
    return x * matrix if matrix.dim() == 1 else x @ matrix.mT


def _product(left: Tensor, right: Tensor) -> Tensor:
    if right.dim() == 1:
        return left * right
    return left[:, None] * right if left.dim() == 1 else left @ right


def register(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    """Register a tensor on a module: as a parameter if it is one, else as a buffer."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, None if tensor is None else tensor.detach().clone())
