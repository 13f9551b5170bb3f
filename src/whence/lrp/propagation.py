"""One linear map on the way back: relevance in at its output, out at its input."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whence.errors import ModelError
from whence.lrp.conservation import Meter, dot, total
from whence.lrp.linear import LinearMap, positive_contributions
from whence.lrp.rules import Epsilon, InputRule, LinearRule, SplitRule, ratio


@dataclass(frozen=True)
class Companion:
    """Beside a tensor that is the input moved about: zeros that rules of the input layer write relevance to."""

    zeros: Tensor
    present: Tensor | None = None  # 1 where a value is the input's and 0 where it was padded; None: all are


@dataclass(frozen=True)
class Step:
    """A linear map, its rule, and what is known of its input and output."""

    linear: LinearMap
    rule: LinearRule | InputRule
    path: str
    nonnegative: bool = False  # the input is known not to be negative
    rectified: bool = False  # a ReLU follows: R = 0 where z < 0
    present: Tensor | None = None  # which values are the explained input's, for rules of the input layer

    def folded(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "Step | None":
        """The step whose output is scaled and shifted along `dim`, where its map can take that in."""
        linear = None if self.rectified else self.linear.scaled(scale, shift, dim, rank)
        return None if linear is None else replace(self, linear=linear)


@dataclass(frozen=True)
class Link:
    """What the output of a linear map remembers of its origin, so that a consumer can take the step over."""

    source: Tensor  # the input, with its graph
    zeros: Tensor | None  # of the companion
    version: int  # of the input when the map read it
    step: Step


@dataclass(frozen=True)
class Propagation:
    """The backward of one step: from g = R/z at the output to g = R/a at the input."""

    step: Step
    shape: torch.Size  # of the input
    meter: Meter
    weight_version: int

    def kept(self, z: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        """What the way back needs of output and input; only their shapes where the rule is the gradient."""
        if not isinstance(self.step.rule, Epsilon):
            return z, a
        return (z,) if self.step.rule.epsilon or self.step.rectified else ()

    def __call__(self, g: Tensor, *kept: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.step.linear.weight._version != self.weight_version:
            raise ModelError(f"the weight of '{self.step.path}' was overwritten after its use; run that part out of place")
        rule, linear = self.step.rule, self.step.linear.unfolded().of_dtype(g.dtype)
        kept = tuple(t.to(g.dtype) for t in kept)  # autocast: the map was computed in another type than its input has
        if isinstance(rule, Epsilon):
            (z,) = kept or (g,)  # LRP-0 does not read z
            return self._whole(linear, rule, g, z), None
        z, a = kept
        if isinstance(rule, InputRule):
            return None, self._distributed(linear, rule, g * z, a)
        if rule.merges(self.step.nonnegative, self.step.rectified):
            return self._merged(linear, rule, g, z, a), None
        return self._shared(linear, rule, g, z, a), None

    def _distributed(self, linear: LinearMap, rule: InputRule, relevance: Tensor, a: Tensor) -> Tensor:
        returned = rule.distribute(linear, a, relevance, self.step.present)
        self.meter.add(self.step.path, total(relevance))
        self.meter.add(self.step.path, -total(returned))
        return returned

    def _whole(self, linear: LinearMap, rule: Epsilon, g: Tensor, z: Tensor) -> Tensor:
        share = rule.share(g, z, self.step.rectified)
        if rule.epsilon or linear.bias is not None:
            self.meter.add(self.step.path, self._absorbed_whole(linear, rule.epsilon, g, z, share))
        return linear.transpose(share, linear.weight, self.shape)

    def _absorbed_whole(self, linear: LinearMap, epsilon: float, g: Tensor, z: Tensor, share: Tensor) -> Tensor:
        """R − Σ share · (z − b): what the bias takes and, where z ≥ 0, ε as a part of it."""
        bias = linear.bias
        if bias is None:
            return total(share) * epsilon if self.step.rectified else dot(g, z) - dot(share, z)
        if self.step.rectified or not epsilon:
            return linear.bias_share(share, bias + epsilon)
        return linear.bias_share(share, bias) + dot(g, z) - dot(share, z)

    def _shared(self, linear: LinearMap, rule: SplitRule, g: Tensor, z: Tensor, a: Tensor) -> Tensor:
        whole, positive = rule.shares(g, z, positive_contributions(linear, a, self.step.nonnegative))
        returned = self._transposed(linear, a, whole, positive)
        self._absorb_difference(g, z, a, returned)
        return returned

    def _merged(self, linear: LinearMap, rule: SplitRule, g: Tensor, z: Tensor, a: Tensor) -> Tensor:
        """Where a ≥ 0 and R = 0 at z < 0 both shares are proportional: one modified weight serves both ways."""
        weight = rule.merged(linear.weight)
        bias = None if linear.bias is None else rule.merged(linear.bias)
        share = ratio(z, linear.apply(a, weight, bias), bounded=self.step.rectified).mul_(g)
        returned = linear.transpose(share, weight, self.shape)
        if not self.step.rectified:  # relevance of outputs without a positive contribution is lost: count it
            self._absorb_difference(g, z, a, returned)
        elif bias is not None:
            self.meter.add(self.step.path, linear.bias_share(share, bias))
        return returned

    def _absorb_difference(self, g: Tensor, z: Tensor, a: Tensor, returned: Tensor) -> None:
        """What came in and did not go out. Apart: input and output may hold the samples in different places."""
        self.meter.add(self.step.path, dot(g, z))
        self.meter.add(self.step.path, -dot(a, returned))

    def _transposed(self, linear: LinearMap, a: Tensor, whole: Tensor | None, positive: Tensor) -> Tensor:
        """L_wᵀ(whole) + 1[a>0] L_w⁺ᵀ(positive) + 1[a<0] L_w⁻ᵀ(positive)."""
        returned = linear.transpose(positive, linear.weight.clamp(min=0), self.shape)
        if not self.step.nonnegative:
            falling = linear.transpose(positive, linear.weight.clamp(max=0), self.shape)
            returned = torch.where(a < 0, falling, returned)
        return returned if whole is None else returned.add_(linear.transpose(whole, linear.weight, self.shape))
