"""The rules of layer-wise relevance propagation, each as two shares.

A linear map gives `z = L_w(a) + b`, with P the sum of its positive contributions and N that of its negative ones, so that
z = P + N + b. A rule says how much of the relevance R = g · z of each output returns along all contributions (`whole`) and
how much along the positive ones alone (`positive`), both as factors of g, which no target changes:

    R_in = a · L_wᵀ(g whole) + a⁺ · L_w⁺ᵀ(g positive) + a⁻ · L_w⁻ᵀ(g positive)

and every rule here satisfies z = whole · z + positive · (P + b⁺), up to its ε: what does not reach the input is what the
biases and ε absorb. The three rules at the end are not proportional to the input and belong to the layer that touches it.

Of the input, `present` is 1 where it is the user's and 0 where the network padded it before the map; None: all is the user's.
Elementwise passes cost as much as convolutions in a network such as ResNet-50, so the rules count them: the arguments
`positive` of `factors` and `denominator` of `ratio` are overwritten.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.errors import RuleError
from whence.lrp.engine.linear_maps import LinearMap, RuleWeights, negative_part, positive_part
from whence.lrp.rules.protocol import DepthRule, Factors, InputRule, SplitRule


@dataclass(frozen=True)
class Epsilon:
    """LRP-ε: R_j = Σ_k a_j w_jk / (z_k + ε sign z_k) · R_k. `Epsilon(0)` is LRP-0 (Bach et al. 2015, eq. 58).

    >>> whence.LRP({torch.nn.Linear: whence.Epsilon(0.1)})

    ε is in units of the layer's output z.
    """

    epsilon: float = 1e-6

    def __post_init__(self):
        _require_number("Epsilon", self.epsilon)
        _require(self.epsilon >= 0, f"Epsilon({self.epsilon}): ε must not be negative")

    def share(self, g: Tensor, z: Tensor, rectified: bool) -> Tensor:
        """R / (z + ε sign z) = g |z| / (|z| + ε) = g − g ε / (|z| + ε), the whole share; the positive one is none."""
        if self.epsilon == 0:
            return g.masked_fill(z == 0, 0) if rectified else g
        denominator = torch.add(z, self.epsilon) if rectified else z.abs().add_(self.epsilon)
        if z.dtype.itemsize < 4:  # half precision rounds ε itself: what cancels below would not
            return torch.div(z if rectified else z.abs(), denominator, out=denominator).nan_to_num_(nan=0.0).mul_(g)
        return torch.addcdiv(g, g, denominator, value=-self.epsilon, out=denominator)


@dataclass(frozen=True)
class Gamma:
    """LRP-γ, generalised to outputs of both signs: contributions of the output's own sign weigh 1 + γ
    (Montavon et al. 2019, §10.2.3; Andéol et al. 2021 for z < 0).

    >>> whence.LRP({"features.*": whence.Gamma(0.25)})

    γ = 0 is LRP-0; γ → ∞ is the z⁺ rule where z > 0.
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
class AlphaBeta:
    """LRP-αβ: R_j = Σ_k (α (a_j w_jk)⁺ / Σ⁺ − β (a_j w_jk)⁻ / Σ⁻) R_k with α − β = 1 (Bach et al. 2015, eq. 60).

    >>> whence.LRP({torch.nn.Conv2d: whence.AlphaBeta(2, 1)})

    α R is relevance along the positive contributions, −β R counter-relevance along the negative ones. `part` "relevance" or
    "counter-relevance" returns one of the two alone; they add up to "both". With `bias` False the sums Σ⁺ and Σ⁻ are of
    contributions alone, as in lecture notes and by zennit's `zero_params="bias"`: biases absorb nothing, and conservation is
    total wherever there are contributions of both signs. With it (Bach et al.; zennit, LRP toolbox), b⁺ and b⁻ take a share.
    """

    alpha: float = 2.0
    beta: float = 1.0
    bias: bool = True
    part: Literal["both", "relevance", "counter-relevance"] = "both"

    def __post_init__(self):
        known = ("both", "relevance", "counter-relevance")
        _require(self.part in known, f"AlphaBeta(part={self.part!r}): choose {', '.join(map(repr, known))}")

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
class ZPlus:
    """The z⁺ rule: only positive contributions carry relevance; deep Taylor decomposition of a ReLU layer
    (Montavon et al. 2017, eq. 11) and the same as `AlphaBeta(1, 0)`, of which it has the `bias`.

    >>> whence.LRP({torch.nn.Conv2d: whence.ZPlus()})
    """

    bias: bool = True

    def factors(self, z: Tensor, positive: Tensor, contributions: Tensor) -> Factors:
        return None, safe_divide(z, positive)

    def merged(self, weight: Tensor) -> Tensor:
        return weight.clamp(min=0)

    def merges(self, nonnegative: bool, rectified: bool) -> bool:
        return nonnegative


@dataclass(frozen=True)
class ZBox:
    """The z^B rule for inputs between two bounds, such as pixels (Montavon et al. 2017, eq. 14):
    R_i = Σ_j (x_i w_ij − l_i w_ij⁺ − h_i w_ij⁻) / Σ_i(…) · R_j. The bias takes no part.

    >>> low, high = (0 - mean) / std, (1 - mean) / std                     # [3, 1, 1]
    >>> whence.LRP({"features.0": whence.ZBox(low, high)})

    Bounds are numbers or tensors that broadcast against the layer's input.
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
        _require(below, "ZBox(low, high): every low must be below its high")

    def denominator(self, linear: LinearMap, weights: RuleWeights, a: Tensor, present: Tensor | None) -> Tensor:
        low, high = self._bounds(a, present)
        lowest = linear.apply(low, weights.modified(positive_part)) + linear.apply(high, weights.modified(negative_part))
        return linear.apply(a, weights.weight).sub_(lowest)

    def spread(self, linear: LinearMap, weights: RuleWeights, share: Tensor, a: Tensor, present: Tensor | None) -> Tensor:
        low, high = self._bounds(a, present)
        whole, rising = (linear.transpose(share, w, a.shape) for w in (weights.weight, weights.modified(positive_part)))
        return a * whole - low * rising - high * (whole - rising)

    def _bounds(self, a: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        return _bound(self.low, a, present), _bound(self.high, a, present)


@dataclass(frozen=True)
class WSquare:
    """The w² rule for unbounded real inputs: R_i = Σ_j w_ij² / Σ_i w_ij² · R_j (Montavon et al. 2017, eq. 9).

    >>> whence.LRP({"0": whence.WSquare()})

    The bias takes no part.
    """

    def denominator(self, linear: LinearMap, weights: RuleWeights, a: Tensor, present: Tensor | None) -> Tensor:
        return linear.apply(_presence(a, present), weights.modified(torch.square))

    def spread(self, linear: LinearMap, weights: RuleWeights, share: Tensor, a: Tensor, present: Tensor | None) -> Tensor:
        return _presence(a, present) * linear.transpose(share, weights.modified(torch.square), a.shape)


@dataclass(frozen=True)
class Flat:
    """The flat rule: every connected input gets the same share (Lapuschkin et al. 2017).

    >>> whence.LRP({"conv1": whence.Flat()})
    """

    def denominator(self, linear: LinearMap, weights: RuleWeights, a: Tensor, present: Tensor | None) -> Tensor:
        return linear.apply(_presence(a, present), weights.modified(torch.ones_like))

    def spread(self, linear: LinearMap, weights: RuleWeights, share: Tensor, a: Tensor, present: Tensor | None) -> Tensor:
        return _presence(a, present) * linear.transpose(share, weights.modified(torch.ones_like), a.shape)


@dataclass(frozen=True)
class RisingGamma:
    """LRP-γ that grows on the way down: γ = `step` for the topmost layer under this rule, 2 `step` for the one below, and so
    on. Near the output contributions are few and clear; the more layers relevance has come through, the more it is scattered.

    >>> whence.LRP({torch.nn.Conv2d: whence.RisingGamma(0.1)})

    Layers are counted as relevance reaches them, so those of parallel branches one after the other.
    """

    step: float = 0.1

    def __post_init__(self):
        _require_number("RisingGamma", self.step)
        _require(self.step > 0, f"RisingGamma({self.step}): γ must grow")

    def at(self, number: int) -> Gamma:
        """The rule of the layer that relevance reaches as the `number`-th, from 1 on."""
        return _gamma(self.step * number)


@lru_cache(maxsize=4096)
def _gamma(gamma: float) -> Gamma:
    """One rule for one γ: weights that it modified are known by it."""
    return Gamma(gamma)


LinearRule = Epsilon | SplitRule | DepthRule


@dataclass(frozen=True)
class Identity:
    """For an activation with f(0) = 0: relevance passes unchanged, as through x · (f(x)/x) with the quotient constant."""


@dataclass(frozen=True)
class Constant:
    """For a gate or a statistic: its value counts, no relevance enters it."""


@dataclass(frozen=True)
class Gradient:
    """The function's own gradient; what it fails to conserve is counted as absorbed."""


FunctionRule = Identity | Constant | Gradient
Rule = LinearRule | InputRule | FunctionRule
OWN_RULES = (Epsilon, Gamma, AlphaBeta, ZPlus, RisingGamma, ZBox, WSquare, Flat, Identity, Constant, Gradient)


def safe_divide(numerator: Tensor, denominator: Tensor, bounded: bool = False) -> Tensor:
    """numerator / denominator, and 0 where nothing contributed: there is nobody to give it to. Overwrites `denominator`.

    Where the quotient is not bounded by itself, contributions so small that it could overflow count as none: SiLU leaves
    values of 1e-300.
    """
    tiny = torch.finfo(denominator.dtype).tiny
    if not bounded:
        denominator = F.hardshrink(denominator, tiny**0.75 if tiny < 1e-30 else tiny)
    return torch.div(numerator, denominator, out=denominator).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def negative_contributions(z: Tensor, positive: Tensor) -> Tensor:
    """N + b⁻ = z − (P + b⁺), and 0 where the difference is only rounding: a filter with no negative contribution."""
    negative = z - positive
    rounding = min(100 * torch.finfo(z.dtype).eps, 0.02)  # the bound is for half precision
    return negative.masked_fill_(negative.abs() <= rounding * positive, 0.0)


def _bound(bound: float | Tensor, a: Tensor, present: Tensor | None) -> Tensor:
    """The bound for one sample of `a`, or for each; padding is no pixel and has none."""
    bound = torch.as_tensor(bound).to(a)
    for samples in (a[:1], a):
        try:
            return bound.expand_as(samples) if present is None else bound.expand_as(samples) * present[: samples.shape[0]]
        except RuntimeError:
            continue
    raise RuleError(f"ZBox bounds of shape {tuple(bound.shape)} do not broadcast against the layer's input {tuple(a.shape)}")


def _presence(a: Tensor, present: Tensor | None) -> Tensor:
    return torch.ones_like(a[:1]) if present is None else present


def _require_number(rule: str, *values: float) -> None:
    for value in values:
        _require(isinstance(value, int | float) and isfinite(value), f"{rule}({value!r}): a finite number is needed")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise RuleError(message)


LRP_0 = Epsilon(0)  # the gradient
