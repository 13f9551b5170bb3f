"""Squared distances to centres as a layer, and the rule that shares them out among the features.

R_i = Σ_j (x_i − u_ji)² / ‖x − u_j‖² · R_j (Kauffmann et al. 2020, Towards explaining anomalies, eq. 8): deep Taylor
decomposition at the root x = u_j, the nearest one. At the centre itself there is no direction to share in.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from whence.errors import InputError
from whence.lrp.own_rules import with_rule
from whence.lrp.rules import ratio
from whence.neuralize.affine import Affine, identity

NUMBERS_AT_ONCE = 2**22  # of temporaries
NEAR = 1e-2  # of ‖x‖² + ‖u‖²: below, ‖x‖² − 2 xᵀu + ‖u‖² loses more digits than it may


class Distance(nn.Module):
    """‖x − u_j‖² to each centre, `[N, d]` to `[N, J]`, with the rule of squared shares.

    >>> net = torch.nn.Sequential(features, whence.Distance(centres), whence.SoftMin(sharpness=2.0)).eval()
    >>> whence.explain(net, images)

    `centres` is `[J, d]`, trained along if it is an `nn.Parameter`. On the explained input, relevance adds up exactly; on
    hidden features it is handed on as R / a, and what falls on features that are exactly 0 is counted as absorbed: let the
    features be linear outputs rather than those of a ReLU. `inputs` is an affine map that comes first and is explained through.
    """

    centres: Tensor

    def __init__(self, centres: Tensor, inputs: Affine | None = None):
        super().__init__()
        _hold(self, "centres", _table(centres))
        self.inputs = identity(centres) if inputs is None else inputs

    def forward(self, x: Tensor) -> Tensor:
        _check_features(self, self.inputs, x)
        return squared_distances(x, self.centres, self.inputs)

    def extra_repr(self) -> str:
        return f"{len(self.centres)} centres, {self.inputs.features} features"


class Mahalanobis(nn.Module):
    """(x − μ_k)ᵀ P_k (x − μ_k) to each centre, `[N, d]` to `[N, K]`, P = L Lᵀ a precision matrix.

    >>> whence.Mahalanobis(means, torch.linalg.cholesky(precisions))

    `centres` is `[K, d]`; `factors` L of the precisions are `[K, d, d]`, or `[d, d]` for all alike; `[K, d]` or `[d]` where
    they are diagonal. A feature takes δ_i (P δ)_i, which is negative where the other features' deviations account for more
    than its own (correlation); for a diagonal P these are squares.
    """

    centres: Tensor
    factors: Tensor

    def __init__(self, centres: Tensor, factors: Tensor, inputs: Affine | None = None):
        super().__init__()
        count, features = _table(centres).shape
        if tuple(factors.shape) not in ((count, features, features), (features, features), (count, features), (features,)):
            raise InputError(f"factors of shape {tuple(factors.shape)} do not fit {count} centres of {features} features")
        _hold(self, "centres", centres)
        _hold(self, "factors", factors)
        self.inputs = identity(centres) if inputs is None else inputs
        self.diagonal = factors.dim() == 1 or tuple(factors.shape) == (count, features)

    def forward(self, x: Tensor) -> Tensor:
        _check_features(self, self.inputs, x)
        return quadratic_forms(x, self.centres, self.factors, self.diagonal, self.inputs)

    def extra_repr(self) -> str:
        return f"{len(self.centres)} centres, {self.inputs.features} features"


def _share_squares(relevance: Tensor, x: Tensor, distances: Tensor, centres: Tensor, inputs: Affine) -> Tensor:
    """Σ_j R_j / D_j · (x_i − u_ji)², multiplied out, so that it is matrix products; pairs that are near by themselves."""
    share = ratio(relevance, distances.clone())
    middle = centres.mean(0)
    z, u = inputs.mapped(x) - middle, centres - middle
    (left, right), (lefts, rights) = inputs.faces(z, z), inputs.faces(u, u)
    returned, rounding = torch.empty_like(x), 10 * len(centres) ** 0.5 * torch.finfo(x.dtype).eps
    for rows in _blocks(len(x), len(centres) + x.shape[1]):
        near = _near(distances[rows], z[rows], u)
        far = share[rows].masked_fill(near, 0)
        squares = left[rows] * right[rows] * far.sum(1, keepdim=True) + far @ (lefts * rights)
        products = left[rows] * (far @ rights) + right[rows] * (far @ lefts)
        returned[rows] = (squares - products).masked_fill_((squares - products).abs() <= rounding * squares.abs(), 0)
        for n, j in _pairs(near, x.shape[1]):
            deviation = z[rows][n] - u[j]
            one, other = inputs.faces(deviation, deviation)
            returned[rows].index_add_(0, n, share[rows][n, j, None] * one * other)
    return returned


@with_rule(_share_squares)
def squared_distances(x: Tensor, centres: Tensor, inputs: Affine) -> Tensor:
    """‖A x + b − u_j‖², `[N, J]`, as matrix products about the centres' mean; near pairs by their differences."""
    middle = centres.mean(0)
    z, u = inputs.mapped(x) - middle, centres - middle
    rounding = (100 * torch.finfo(z.dtype).eps) ** 2 * (centres.square().sum(1) + inputs.shift.square().sum())
    return torch.cat([_distances(z[rows], u, rounding) for rows in _blocks(len(z), len(u))])


def _distances(z: Tensor, u: Tensor, rounding: Tensor) -> Tensor:
    """`[N, J]`; what differs by no more than rounding coincides."""
    distances = (z.square().sum(1, keepdim=True) + u.square().sum(1)).addmm(z, u.mT, alpha=-2)
    near = _near(distances.detach(), z.detach(), u)
    for n, j in _pairs(near, z.shape[1]):
        squares = (z[n] - u[j]).square().sum(1)
        distances = distances.index_put((n, j), torch.where(squares <= rounding[j], 0, squares))
    return distances


def _near(distances: Tensor, z: Tensor, u: Tensor) -> Tensor:
    return distances <= NEAR * (z.square().sum(1, keepdim=True) + u.square().sum(1))


def _pairs(near: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The numbers (n, j) of near pairs, in parts whose differences fit into memory."""
    pairs = near.nonzero()
    for part in _blocks(len(pairs), width):
        yield pairs[part, 0], pairs[part, 1]


def _share_forms(
    relevance: Tensor, x: Tensor, forms: Tensor, centres: Tensor, factors: Tensor, diagonal: bool, inputs: Affine
) -> Tensor:
    """Σ_k R_k / D_k · δ_i (P_k δ)_i with δ = x − μ_k."""
    share, z = ratio(relevance, forms.clone()), inputs.mapped(x)
    returned = torch.empty_like(x)
    for rows in _blocks(len(x), len(centres) * max(centres.shape[1], x.shape[1])):
        deviation = z[rows, None] - centres  # [n, K, d]
        whitened = _whitened(deviation, factors, diagonal)
        bent = whitened * factors if diagonal else _per_centre(whitened, factors.mT)  # P δ = L Lᵀ δ
        one, other = inputs.faces(deviation, bent)
        returned[rows] = torch.einsum("nk,nki->ni", share[rows], one * other)
    return returned


@with_rule(_share_forms)
def quadratic_forms(x: Tensor, centres: Tensor, factors: Tensor, diagonal: bool, inputs: Affine) -> Tensor:
    """‖Lᵀ(A x + b − μ_k)‖², `[N, K]`."""
    z = inputs.mapped(x)
    blocks = _blocks(len(z), centres.numel())
    return torch.cat([_whitened(z[rows, None] - centres, factors, diagonal).square().sum(-1) for rows in blocks])


def _whitened(deviation: Tensor, factors: Tensor, diagonal: bool) -> Tensor:
    """Lᵀ δ."""
    return deviation * factors if diagonal else _per_centre(deviation, factors)


def _per_centre(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows [n, K, d] times a matrix for each centre, or for all."""
    return rows @ matrix if matrix.dim() == 2 else torch.einsum("nki,kij->nkj", rows, matrix)


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows, `width` numbers a row, that fit into memory; none of none."""
    size = max(1, NUMBERS_AT_ONCE // max(1, width))
    return (slice(start, start + size) for start in range(0, count, size))


def _table(centres: Tensor) -> Tensor:
    if not isinstance(centres, Tensor) or centres.dim() != 2 or not centres.is_floating_point() or not len(centres):
        given = f"{centres.dtype} of shape {tuple(centres.shape)}" if isinstance(centres, Tensor) else type(centres).__name__
        raise InputError(f"centres must be a floating-point tensor [number, features], not {given}")
    return centres


def _hold(module: nn.Module, name: str, tensor: Tensor) -> None:
    """A parameter if it is one, else a buffer."""
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor.detach().clone())


def _check_features(module: nn.Module, inputs: Affine, x: Tensor) -> None:
    if x.dim() != 2 or x.shape[1] != inputs.features:
        name = f"{type(module).__name__} of {inputs.features} features"
        raise InputError(f"{name} got an input of shape {tuple(x.shape)}; pass [N, {inputs.features}]")
