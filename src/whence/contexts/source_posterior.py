"""A Gaussian posterior of the scores of sources, from relevance as the prior mean and a few ablations.

z ∈ {−1, 1}ᴷ says which sources are present. The target is modelled as f(z) = S (u·z + g(z)) with the relevance u = r/‖r‖, in
units S, and a Gaussian process g of the kernel

    k(z, z') = c + λ² L + γ² (u·z)(u·z') + ρ²/2 (L² − Σ_k v_k²),   L = Σ_k v_k z_k z'_k:

a constant, main effects of each source (larger where the relevance is), a common factor of the relevance, and effects of pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CONSTANT, MAIN, COMMON, PAIRS, NOISE = 100.0, 0.6, 0.3, 0.7, 0.4  # c, λ, γ, ρ, σ
EVEN = 0.45  # share of the prior variance that sources get whatever their relevance is
USUAL_UNIT = 0.4  # S/‖r‖ of LRP for logits
UNITS = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64).exp()  # relative to it, of which the likeliest is taken
LEAST_CHANGE = 1e-6  # of an output, below which all outputs count as equal


@dataclass(frozen=True)
class SourcePrior:
    """The prior distribution of the effects of sources, in units of S.

    Args:
        relevance: Relevance of each source, `[K]`.
    """

    relevance: Tensor

    @property
    def direction(self) -> Tensor:
        """The relevance at unit length, u; zeros if all relevance is zero."""
        return self.relevance / self.relevance.norm().clamp(min=torch.finfo(self.relevance.dtype).tiny)

    @property
    def shares(self) -> Tensor:
        """The share v of the prior variance of each source, which add up to 1."""
        size = self.direction.abs()
        return (1 - EVEN) * size / size.sum().clamp(min=torch.finfo(size.dtype).tiny) + EVEN / len(size)

    def covariance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the covariance k(z, z') of outputs at two sets of ablations `[n, K]`, as `[n, m]`."""
        u, v = self.direction, self.shares
        alike = (first * v) @ second.T
        common = (first @ u)[:, None] * (second @ u)
        return CONSTANT + MAIN**2 * alike + COMMON**2 * common + PAIRS**2 / 2 * (alike**2 - v.square().sum())

    def covariance_with_effects(self, ablations: Tensor) -> Tensor:
        """Return the covariance of outputs at ablations `[n, K]` with the main effects of the sources, as `[n, K]`."""
        return MAIN**2 * ablations * self.shares + COMMON**2 * (ablations @ self.direction)[:, None] * self.direction

    @property
    def effect_covariance(self) -> Tensor:
        """The covariance of the main effects, `[K, K]`."""
        u = self.direction
        return MAIN**2 * torch.diag(self.shares) + COMMON**2 * torch.outer(u, u)


def posterior_effects(relevance: Tensor, present: Tensor, outputs: Tensor) -> Tensor:
    """Return the expected effect of each source on the output, f(with) − f(without), `[K]`.

    >>> posterior_effects(torch.tensor([2.0, 0.1]), torch.tensor([[True, True], [False, True]]), torch.tensor([-1.0, -3.0]))

    Args:
        relevance: Relevance of the sources, `[K]`; only its proportions count.
        present: The sources that were present in each evaluation, a bool tensor `[n, K]`.
        outputs: The output of each evaluation, `[n]`.
    """
    prior, y = SourcePrior(relevance.double()), outputs.double()
    z = present.double() * 2 - 1
    if not len(y) or y.max() - y.min() <= LEAST_CHANGE * (1 + y.abs().max()):
        return torch.zeros_like(prior.relevance) if len(y) > 1 else prior.relevance
    chol = torch.linalg.cholesky(prior.covariance(z, z) + NOISE**2 * torch.eye(len(z), dtype=z.dtype))
    mean = z @ prior.direction
    middle = _usual_unit(prior.relevance, mean, y)
    unit = max((float(u * middle) for u in UNITS), key=lambda unit: _log_likelihood(y / unit - mean, chol, unit))
    weights = torch.cholesky_solve((y / unit - mean)[:, None], chol)[:, 0]
    effects = prior.direction + prior.covariance_with_effects(z).T @ weights
    return 2 * unit * effects


def _usual_unit(relevance: Tensor, mean: Tensor, y: Tensor) -> float:
    """Return the unit S in the middle of those that are tried: that of LRP, or for relevance on another scale by regression."""
    usual = USUAL_UNIT * float(relevance.norm())
    spread = float((mean - mean.mean()).square().sum())
    slope = abs(float(((mean - mean.mean()) * (y - y.mean())).sum())) / spread if spread else 0.0
    fitted = slope or float(y.std())
    return usual if usual and float(UNITS[0]) <= fitted / usual <= float(UNITS[-1]) else fitted


def _log_likelihood(residual: Tensor, chol: Tensor, unit: float) -> float:
    """Return the log-density of outputs whose residuals have this covariance, up to a constant."""
    whitened = torch.linalg.solve_triangular(chol, residual[:, None], upper=False)
    return float(-whitened.square().sum() / 2 - chol.diagonal().log().sum()) - len(residual) * torch.tensor(unit).log().item()
