"""Preprocessing that is affine, z = A x + b, with the way back from deviations in z to deviations in x."""

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """z = A x + b; `inverse` is a right inverse B, A B = 1. A diagonal A is a vector, and so is its inverse.

    Relevance of a squared distance in z reaches x by the deviation Bδ that stands for δ in z (its nearest root):
    δᵀPδ = Σ_i (Bδ)_i (AᵀPδ)_i. For scalers and for PCA without whitening every term of ‖δ‖² is a square again.
    """

    weight: Tensor  # [k, d] or [d]
    shift: Tensor  # [k]
    inverse: Tensor  # [d, k] or [d]

    def __init__(self, weight: Tensor, shift: Tensor, inverse: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("shift", shift)
        self.register_buffer("inverse", inverse)

    @property
    def features(self) -> int:
        """Of x."""
        return self.weight.shape[-1]

    def mapped(self, x: Tensor) -> Tensor:
        return times(x, self.weight) + self.shift

    def then(self, other: "Affine") -> "Affine":
        """This map followed by another."""
        return Affine(_product(other.weight, self.weight), other.mapped(self.shift), _product(self.inverse, other.inverse))

    def faces(self, deviation: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """(Bδ, Aᵀγ), whose product, feature by feature, adds up to δᵀγ."""
        return times(deviation, self.inverse), times(gradient, self.weight.mT if self.weight.dim() > 1 else self.weight)


def identity(like: Tensor) -> Affine:
    """No preprocessing of rows such as these."""
    ones = torch.ones_like(like[0], requires_grad=False)
    return Affine(ones, torch.zeros_like(ones), ones)


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """matrix · x of each row; a vector stands for a diagonal matrix."""
    return x * matrix if matrix.dim() == 1 else x @ matrix.mT


def _product(left: Tensor, right: Tensor) -> Tensor:
    if right.dim() == 1:
        return left * right
    return left[:, None] * right if left.dim() == 1 else left @ right
