"""Layers of squared distances to centres, and the rule that distributes relevance among the features.

R_i = Σ_j (x_i − u_ji)² / ‖x − u_j‖² · R_j (Kauffmann et al. 2020, Towards explaining anomalies, eq. 8): deep Taylor
decomposition at the root x = u_j, the nearest one. At the centre itself there is no direction to share in.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from whence.errors import InputError
from whence.lrp.ops.custom_ops import custom_op
from whence.lrp.rules.rules import safe_divide
from whence.neuralization.affine_preprocessing import Affine, identity_map, register

NUMBERS_AT_ONCE = 2**22  # of temporaries
NEAR_THRESHOLD = 1e-2  # of ‖x‖² + ‖u‖²: below, ‖x‖² − 2 xᵀu + ‖u‖² loses more digits than it may


class Distance(nn.Module):
    """Squared distances ‖x − u_j‖² to centres, `[N, d]` to `[N, J]`; relevance is shared by squared differences.

    >>> net = torch.nn.Sequential(features, whence.layers.Distance(centres), whence.layers.SoftMin(sharpness=2.0)).eval()
    >>> whence.explain(net, images)

    `centres` is `[J, d]`, trainable if it is an `nn.Parameter`. On the explained input, relevance adds up exactly; on
    hidden features it is propagated as R / a, and the share of features that are exactly 0 is counted as absorbed, so the
    features should be linear outputs rather than those of a ReLU. `inputs` is an affine map that is applied first.
    """

    centres: Tensor

    def __init__(self, centres: Tensor, inputs: Affine | None = None):
        super().__init__()
        register(self, "centres", _as_matrix(centres))
        self.inputs = identity_map(centres) if inputs is None else inputs

    def forward(self, x: Tensor) -> Tensor:
        _check_features(self, self.inputs, x)
        return squared_distances(x, self.centres, self.inputs)

    def extra_repr(self) -> str:
        return f"{len(self.centres)} centres, {self.inputs.features} features"


class Mahalanobis(nn.Module):
    """Squared Mahalanobis distances (x − μ_k)ᵀ P_k (x − μ_k) to centres, `[N, d]` to `[N, K]`, with precisions P = L Lᵀ.

    >>> whence.layers.Mahalanobis(means, torch.linalg.cholesky(precisions))

    `centres` is `[K, d]`; `factors` L of the precisions are `[K, d, d]`, or `[K, d]` where they are diagonal, with 1 for K
    where all are alike. A feature takes δ_i (P δ)_i, which is negative where the other features' deviations account for more
    than its own (correlation); for a diagonal P these are squares.
    """

    centres: Tensor
    factors: Tensor

    def __init__(self, centres: Tensor, factors: Tensor, inputs: Affine | None = None):
        super().__init__()
        count, features = _as_matrix(centres).shape
        if factors.shape[:1] not in ((1,), (count,)) or factors.shape[1:] not in ((features,), (features, features)):
            raise InputError(f"factors of shape {tuple(factors.shape)} do not fit {count} centres of {features} features")
        register(self, "centres", centres)
        register(self, "factors", factors)
        self.inputs = identity_map(centres) if inputs is None else inputs

    def forward(self, x: Tensor) -> Tensor:
        _check_features(self, self.inputs, x)
        return quadratic_forms(x, self.centres, self.factors, self.inputs)

    def extra_repr(self) -> str:
        return f"{len(self.centres)} centres, {self.inputs.features} features"


def _share_squares(relevance: Tensor, x: Tensor, distances: Tensor, centres: Tensor, inputs: Affine) -> Tensor:
    """Σ_j R_j / D_j · (x_i − u_ji)², multiplied out, so that it is matrix products; pairs that are near by themselves."""
    share = safe_divide(relevance, distances.clone())
    z, u = _center(x, centres, inputs)
    (left, right), (lefts, rights) = inputs.faces(z, z), inputs.faces(u, u)
    returned, rounding = torch.empty_like(left), min(10 * len(centres) ** 0.5 * torch.finfo(z.dtype).eps, 0.02)
    for rows in _blocks(len(x), len(centres) + x.shape[1]):
        near = _near(distances[rows], z[rows], u)
        far = share[rows].masked_fill(near, 0)
        squares = left[rows] * right[rows] * far.sum(1, keepdim=True) + far @ (lefts * rights)
        shared = squares - left[rows] * (far @ rights) - right[rows] * (far @ lefts)
        shared.masked_fill_(shared.abs() <= rounding * squares.abs(), 0)
        for n, j in _pairs(near, x.shape[1]):
            deviation = z[rows][n] - u[j]
            one, other = inputs.faces(deviation, deviation)
            shared.index_add_(0, n, share[rows][n, j, None] * one * other)
        returned[rows] = shared
    return returned.to(x)


@custom_op(_share_squares)
def squared_distances(x: Tensor, centres: Tensor, inputs: Affine) -> Tensor:
    """Return ‖A (x − c) + b − u_j‖², `[N, J]`, by matrix products; for near pairs by their differences."""
    z, u = _center(x, centres, inputs)
    rounding = min(100 * torch.finfo(x.dtype).eps, 0.01)  # x may be a copy of a centre in a narrower type
    coincident = rounding**2 * (centres.square().sum(1) + inputs.shift.square().sum())
    return torch.cat([_distances(z[rows], u, coincident) for rows in _blocks(len(z), len(u))])


def _center(x: Tensor, centres: Tensor, inputs: Affine) -> tuple[Tensor, Tensor]:
    """x as the distances take it, and the centres, both about the mean of the centres."""
    middle = centres.mean(0)
    return inputs.mapped(x) - middle, centres - middle


def _distances(z: Tensor, u: Tensor, coincident: Tensor) -> Tensor:
    """`[N, J]`, and 0 up to `coincident` [J]: what differs by no more than rounding is the same."""
    distances = (z.square().sum(1, keepdim=True) + u.square().sum(1)).addmm(z, u.mT, alpha=-2)
    near = _near(distances.detach(), z.detach(), u)
    squares = [(z[n] - u[j]).square().sum(1) for n, j in _pairs(near, z.shape[1])]
    exact = torch.cat(squares)
    exact = torch.where(exact <= coincident.expand_as(near)[near], 0, exact)
    return distances.masked_scatter(near, exact)


def _near(distances: Tensor, z: Tensor, u: Tensor) -> Tensor:
    return distances <= NEAR_THRESHOLD * (z.square().sum(1, keepdim=True) + u.square().sum(1))


def _pairs(near: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The numbers (n, j) of near pairs, in order, in parts whose differences fit into memory."""
    pairs = near.nonzero()
    for part in _blocks(len(pairs), width):
        yield pairs[part, 0], pairs[part, 1]


def _share_forms(relevance: Tensor, x: Tensor, forms: Tensor, centres: Tensor, factors: Tensor, inputs: Affine) -> Tensor:
    """Σ_k R_k / D_k · δ_i (P_k δ)_i with δ = x − μ_k."""
    share, z = safe_divide(relevance, forms.clone()), inputs.mapped(x)
    returned = z.new_empty(x.shape)
    for rows in _blocks(len(x), len(centres) * max(centres.shape[1], x.shape[1])):
        deviation = z[rows, None] - centres  # [n, K, d]
        bent = _times(_times(deviation, factors), factors.mT if factors.dim() == 3 else factors)  # P δ = L Lᵀ δ
        one, other = inputs.faces(deviation, bent)
        returned[rows] = torch.einsum("nk,nki->ni", share[rows], one * other)
    return returned.to(x)


@custom_op(_share_forms)
def quadratic_forms(x: Tensor, centres: Tensor, factors: Tensor, inputs: Affine) -> Tensor:
    """Return ‖Lᵀ(A (x − c) + b − μ_k)‖², `[N, K]`."""
    z = inputs.mapped(x)
    blocks = _blocks(len(z), centres.numel())
    return torch.cat([_times(z[rows, None] - centres, factors).square().sum(-1) for rows in blocks])


def _times(rows: Tensor, matrices: Tensor) -> Tensor:
    """rows [n, K, d] times a matrix for each centre, or one for all; diagonal ones are vectors."""
    if matrices.dim() == 2:
        return rows * matrices
    return rows @ matrices[0] if len(matrices) == 1 else torch.einsum("nki,kij->nkj", rows, matrices)


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows, `width` numbers a row, that fit into memory; an empty one of none."""
    size = max(1, NUMBERS_AT_ONCE // max(1, width))
    return (slice(start, start + size) for start in range(0, max(count, 1), size))


def _as_matrix(centres: Tensor) -> Tensor:
    if not isinstance(centres, Tensor) or centres.dim() != 2 or not centres.is_floating_point() or not len(centres):
        given = f"{centres.dtype} of shape {tuple(centres.shape)}" if isinstance(centres, Tensor) else type(centres).__name__
        raise InputError(f"centres must be a floating-point tensor [K, features], got {given}")
    return centres


def _check_features(module: nn.Module, inputs: Affine, x: Tensor) -> None:
    if x.dim() != 2 or x.shape[1] != inputs.features:
        name = f"{type(module).__name__} of {inputs.features} features"
        raise InputError(f"{name} got an input of shape {tuple(x.shape)}; expected [N, {inputs.features}]")
