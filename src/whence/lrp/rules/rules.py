"""The rules of layer-wise relevance propagation, each defined by two shares.

A linear map gives `z = L_w(a) + b`, with P the sum of its positive contributions and N that of its negative ones, so that
z = P + N + b. A rule says how much of the relevance R = g · z of each output returns along all contributions (`whole`) and
how much along the positive ones alone (`positive`), both as factors of g, which do not depend on the target:

    R_in = a · L_wᵀ(g whole) + a⁺ · L_w⁺ᵀ(g positive) + a⁻ · L_w⁻ᵀ(g positive)

and every rule here satisfies z = whole · z + positive · (P + b⁺), up to its ε: the relevance that does not reach the
input is absorbed by biases and ε. `ZBox`, `WSquare` and `Flat` are not proportional to the input and belong to the layer that
touches it.

The mask `present` is 1 where a value comes from the input and 0 where the network padded it before the map; None: no padding.
Elementwise passes cost as much as convolutions in a network such as ResNet-50, so the rules avoid them: the arguments
`positive` of `factors` and `denominator` of `safe_divide` are modified in place.
"""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.errors import RuleError, value_repr
from whence.lrp.engine.linear_maps import LinearMap, RuleWeights, negative_part, positive_part
from whence.lrp.rules.protocol import DepthRule, Factors, InputRule, SplitRule
from whence.lrp.torch_compat.deferred_checks import known_true


class WithoutSelector:
    """Base class of rules, which explains why a rule by itself cannot be combined with others by |."""

    def __or__(self, other: object) -> object:
        raise RuleError(
            f"{type(self).__name__} by itself selects no layers; write {{torch.nn.Linear: {self!r}}} | …, or {{'*': {self!r}}} "
            "for all layers, with the rules that go before it on its left"
        )

    __ror__ = __or__


@dataclass(frozen=True)
class Epsilon(WithoutSelector):
    """LRP-ε: R_j = Σ_k a_j w_jk / (z_k + ε sign z_k) · R_k. `Epsilon(0)` is LRP-0 (Bach et al. 2015, eq. 58).

    >>> whence.LRP({torch.nn.Linear: whence.Epsilon(0.1)})

    Args:
        epsilon: ε ≥ 0, in units of the layer's output z.

    Raises:
        RuleError: If ε is negative or not a finite number.
    """

    epsilon: float = 1e-6

    def __post_init__(self):
        _require_number("Epsilon", self.epsilon)
        _require(self.epsilon >= 0, f"Epsilon({self.epsilon}): ε must not be negative")

    def share(self, g: Tensor, z: Tensor, rectified: bool) -> Tensor:
        """Return R / (z + ε sign z) = g |z| / (|z| + ε) = g − g ε / (|z| + ε), the whole share; there is no positive one."""
        if self.epsilon == 0:
            return g.masked_fill(z == 0, 0) if rectified else g
        denominator = torch.add(z, self.epsilon) if rectified else z.abs().add_(self.epsilon)
        if z.dtype.itemsize < 4:  # half precision rounds ε itself, so the difference below would not cancel
            return torch.div(z if rectified else z.abs(), denominator).nan_to_num_(nan=0.0) * g
        return torch.addcdiv(g, g, denominator, value=-self.epsilon)


@dataclass(frozen=True)
class Gamma(WithoutSelector):
    """LRP-γ, generalised to outputs of both signs: contributions of the output's own sign weigh 1 + γ
    (Montavon et al. 2019, §10.2.3; Andéol et al. 2021 for z < 0).

    >>> whence.LRP({"features.*": whence.Gamma(0.25)})

    Args:
        gamma: γ ≥ 0. 0 is LRP-0; γ → ∞ is the z⁺ rule where z > 0.

    Raises:
        RuleError: If γ is negative or not a finite number.
    """

    gamma: float = 0.25
    bias: ClassVar[bool] = True

    def __post_init__(self):
        _require_number("Gamma", self.gamma)
        _require(self.gamma >= 0, f"Gamma({self.gamma}): γ must not be negative")

    def factors(self, z: Tensor, positive: Tensor, contributions: Tensor) -> Factors:
        # |p| = |z| + γ(P + b⁺) where z ≥ 0, and |z + γ(N + b⁻)| = (1 + γ)|z| + γ(P + b⁺) where z < 0
        own = F.leaky_relu(z, -(1 + self.gamma))
        p = torch.add(own, positive, alpha=self.gamma, out=positive).clamp_(min=torch.finfo(z.dtype).tiny)
        return own.div_(p), torch.div(z, p, out=p).mul_(self.gamma)

    def merged(self, weight: Tensor) -> Tensor:
        return torch.add(weight, weight.clamp(min=0), alpha=self.gamma)

    def merges(self, nonnegative: bool, rectified: bool) -> bool:
        return nonnegative and rectified


@dataclass(frozen=True)
class AlphaBeta(WithoutSelector):
    """LRP-αβ: R_j = Σ_k (α (a_j w_jk)⁺ / Σ⁺ − β (a_j w_jk)⁻ / Σ⁻) R_k with α − β = 1 (Bach et al. 2015, eq. 60).

    >>> whence.LRP({torch.nn.Conv2d: whence.AlphaBeta(2, 1)})

    α R is relevance along the positive contributions, −β R counter-relevance along the negative ones.

    Args:
        alpha: Weight α of the positive contributions; α − β must be 1.
        beta: Weight β ≥ 0 of the negative contributions.
        bias: True (Bach et al.; zennit, LRP toolbox): b⁺ and b⁻ are included in the sums Σ⁺ and Σ⁻ and take a share. False, as
            in lecture notes and by zennit's `zero_params="bias"`: the sums are of contributions alone, biases absorb nothing,
            and relevance is fully conserved wherever there are contributions of both signs.
        part: "relevance" or "counter-relevance" returns one of the two alone; they add up to "both".

    Raises:
        RuleError: If `part` is unknown, β is negative, or α − β is not 1.
    """

    alpha: float = 2.0
    beta: float = 1.0
    bias: bool = True
    part: Literal["both", "relevance", "counter-relevance"] = "both"

    def __post_init__(self):
        known = ("both", "relevance", "counter-relevance")
        _require(self.part in known, f"AlphaBeta(part={value_repr(self.part)}): choose {', '.join(map(repr, known))}")

        _require_number("AlphaBeta", self.alpha, self.beta)
        _require(self.beta >= 0, f"AlphaBeta({self.alpha}, {self.beta}): β must not be negative")
        _require(abs(self.alpha - self.beta - 1) < 1e-9, f"AlphaBeta({self.alpha}, {self.beta}): α − β must be 1, as in (2, 1)")

    def factors(self, z: Tensor, positive: Tensor, contributions: Tensor) -> Factors:
        if self.part == "relevance":
            return None, safe_divide(z, positive).mul_(self.alpha)
        against = safe_divide(z, negative_contributions(contributions, positive)).mul_(self.beta)
        if self.part == "counter-relevance":
            return -against, against
        return -against, safe_divide(z, positive).mul_(self.alpha).add_(against)

    def merged(self, weight: Tensor) -> Tensor:
        return weight.clamp(min=0)

    def merges(self, nonnegative: bool, rectified: bool) -> bool:
        return nonnegative and self.beta == 0 and self.part == "both"


@dataclass(frozen=True)
class ZPlus(WithoutSelector):
    """The z⁺ rule: only positive contributions carry relevance; deep Taylor decomposition of a ReLU layer
    (Montavon et al. 2017, eq. 11) and the same as `AlphaBeta(1, 0)`.

    >>> whence.LRP({torch.nn.Conv2d: whence.ZPlus()})

    Args:
        bias: Whether b⁺ is included in the sum of positive contributions and takes a share, as in `AlphaBeta`.
    """

    bias: bool = True

    def factors(self, z: Tensor, positive: Tensor, contributions: Tensor) -> Factors:
        return None, safe_divide(z, positive)

    def merged(self, weight: Tensor) -> Tensor:
        return weight.clamp(min=0)

    def merges(self, nonnegative: bool, rectified: bool) -> bool:
        return nonnegative


@dataclass(frozen=True)
class ZBox(WithoutSelector):
    """The z^B rule for inputs between two bounds, such as pixels (Montavon et al. 2017, eq. 14):
    R_i = Σ_j (x_i w_ij − l_i w_ij⁺ − h_i w_ij⁻) / Σ_i(…) · R_j. The bias is ignored.

    >>> low, high = (0 - mean) / std, (1 - mean) / std                     # [3, 1, 1]
    >>> whence.LRP({"features.0": whence.ZBox(low, high)})

    Args:
        low: Lower bound l, a number or a tensor that broadcasts against the layer's input.
        high: Upper bound h, likewise; every `low` must be below its `high`.

    Raises:
        RuleError: If the bounds do not broadcast against each other or are not ordered.
    """

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self):
        low, high = torch.as_tensor(self.low), torch.as_tensor(self.high)
        try:
            below = bool((low < high).all())
        except RuntimeError:
            shapes = f"{tuple(low.shape)} and {tuple(high.shape)}"
            raise RuleError(f"ZBox(low, high): bounds of shapes {shapes} do not broadcast") from None
        _require(below, "ZBox(low, high): low must be below high everywhere")

    def denominator(self, linear: LinearMap, weights: RuleWeights, a: Tensor, present: Tensor | None) -> Tensor:
        low, high = self._bounds(a, present)
        slack = 1e-3 * (high - low)
        if known_true(((a < low - slack) | (a > high + slack)).any()):
            warnings.warn(
                f"inputs in [{float(a.min()):.3g}, {float(a.max()):.3g}] lie outside of the bounds of ZBox, for which the rule "
                "is not defined; for normalised inputs pass ZBox((0 - mean) / std, (1 - mean) / std)",
                stacklevel=2,
            )
        lowest = linear.apply(low, weights.modified(positive_part)) + linear.apply(high, weights.modified(negative_part))
        return linear.apply(a, weights.weight).sub_(lowest)

    def spread(self, linear: LinearMap, weights: RuleWeights, share: Tensor, a: Tensor, present: Tensor | None) -> Tensor:
        low, high = self._bounds(a, present)
        whole, rising = (linear.transpose(share, w, a.shape) for w in (weights.weight, weights.modified(positive_part)))
        return a * whole - low * rising - high * (whole - rising)

    def _bounds(self, a: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        return _bound(self.low, a, present), _bound(self.high, a, present)


@dataclass(frozen=True)
class WSquare(WithoutSelector):
    """The w² rule for unbounded real inputs: R_i = Σ_j w_ij² / Σ_i w_ij² · R_j (Montavon et al. 2017, eq. 9).

    >>> whence.LRP({"0": whence.WSquare()})

    The bias is ignored.
    """

    def denominator(self, linear: LinearMap, weights: RuleWeights, a: Tensor, present: Tensor | None) -> Tensor:
        return linear.apply(_presence(a, present), weights.modified(torch.square))

    def spread(self, linear: LinearMap, weights: RuleWeights, share: Tensor, a: Tensor, present: Tensor | None) -> Tensor:
        return _presence(a, present) * linear.transpose(share, weights.modified(torch.square), a.shape)


@dataclass(frozen=True)
class Flat(WithoutSelector):
    """The flat rule: every connected input gets the same share (Lapuschkin et al. 2017).

    >>> whence.LRP({"conv1": whence.Flat()})
    """

    def denominator(self, linear: LinearMap, weights: RuleWeights, a: Tensor, present: Tensor | None) -> Tensor:
        return linear.apply(_presence(a, present), weights.modified(torch.ones_like))

    def spread(self, linear: LinearMap, weights: RuleWeights, share: Tensor, a: Tensor, present: Tensor | None) -> Tensor:
        return _presence(a, present) * linear.transpose(share, weights.modified(torch.ones_like), a.shape)


@dataclass(frozen=True)
class RisingGamma(WithoutSelector):
    """LRP-γ that grows from output to input: γ = `step` for the topmost layer under this rule, 2 `step` for the next, ….

    >>> whence.LRP({torch.nn.Conv2d: whence.RisingGamma(0.1)})

    Near the output contributions are few and clear; the more layers relevance has passed, the noisier it is. A layer's
    depth is 1 + the most layers under this rule on any path from the output to it, however branches are ordered.

    Args:
        step: Increase of γ from each layer to the next, > 0.

    Raises:
        RuleError: If the step is not a positive finite number.
    """

    step: float = 0.1

    def __post_init__(self):
        _require_number("RisingGamma", self.step)
        _require(self.step > 0, f"RisingGamma({self.step}): the step of γ must be positive")

    def at(self, depth: int) -> Gamma:
        """Return the rule of a layer at a depth, 1 for the topmost."""
        return _gamma(self.step * depth)


@lru_cache(maxsize=4096)
def _gamma(gamma: float) -> Gamma:
    """Return one rule object per γ, since the cache of modified weights is keyed by it."""
    return Gamma(gamma)


LinearRule = Epsilon | SplitRule | DepthRule


@dataclass(frozen=True)
class Identity(WithoutSelector):
    """Rule of an activation with f(0) = 0: relevance passes unchanged, as through x · (f(x)/x) with a constant quotient."""


@dataclass(frozen=True)
class Constant(WithoutSelector):
    """Rule of a gate or a statistic: its value is held constant, and no relevance enters it."""


@dataclass(frozen=True)
class Gradient(WithoutSelector):
    """Rule of a function that keeps its own gradient; relevance that it does not conserve is counted as absorbed."""


FunctionRule = Identity | Constant | Gradient
Rule = LinearRule | InputRule | FunctionRule
OWN_RULES = (Epsilon, Gamma, AlphaBeta, ZPlus, RisingGamma, ZBox, WSquare, Flat, Identity, Constant, Gradient)


def safe_divide(numerator: Tensor, denominator: Tensor, bounded: bool = False) -> Tensor:
    """Return numerator / denominator, and 0 where the denominator is 0. Modifies `denominator` in place.

    Unless the quotient is `bounded`, denominators so small that it could overflow count as 0: SiLU outputs values of 1e-300.
    """
    tiny = torch.finfo(denominator.dtype).tiny
    if not bounded:
        denominator = F.hardshrink(denominator, tiny**0.75 if tiny < 1e-30 else tiny)
    return torch.div(numerator, denominator, out=denominator).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def negative_contributions(z: Tensor, positive: Tensor) -> Tensor:
    """Return N + b⁻ = z − (P + b⁺), and 0 where the difference is a rounding error: a filter without negative contributions."""
    negative = z - positive
    rounding = min(100 * torch.finfo(z.dtype).eps, 0.02)  # the bound is for half precision
    return negative.masked_fill_(negative.abs() <= rounding * positive, 0.0)


def _bound(bound: float | Tensor, a: Tensor, present: Tensor | None) -> Tensor:
    """Return the bound expanded to one sample of `a`, or to all; values that are not of the input are their own bounds."""
    bound = torch.as_tensor(bound).to(a)
    for samples in (a[:1], a) if present is None else (a,):
        try:
            return bound.expand_as(samples) if present is None else torch.where(present != 0, bound, a)
        except RuntimeError:
            continue
    raise RuleError(f"ZBox bounds of shape {tuple(bound.shape)} do not broadcast against the layer's input {tuple(a.shape)}")


def _presence(a: Tensor, present: Tensor | None) -> Tensor:
    return torch.ones_like(a[:1]) if present is None else present


def _require_number(rule: str, *values: float) -> None:
    for value in values:
        _require(isinstance(value, int | float) and isfinite(value), f"{rule}({value_repr(value)}): expected a finite number")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise RuleError(message)


LRP_0 = Epsilon(0)  # the gradient
