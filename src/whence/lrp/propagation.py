"""One linear map on the way back: relevance in at its output, out at its input."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whence.lrp.conservation import Meter, dot, total
from whence.lrp.linear import LinearMap, positive_contributions
from whence.lrp.rules import Epsilon, InputRule, LinearRule, SplitRule, ratio

if TYPE_CHECKING:
    from whence.lrp.saved import Saved


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
        linear = self.linear.scaled(scale, shift, dim, rank)
        return None if linear is None else replace(self, linear=linear)


@dataclass(frozen=True)
class Link:
    """What the output of a linear map remembers of its origin, so that a consumer can take the step over."""

    source: Tensor  # the input, with its graph
    zeros: Tensor | None  # of the companion
    version: int  # of the input when the map read it
    step: Step


class Propagation:
    """The backward of one step: from g = R/z at the output to g = R/a at the input."""

    __slots__ = ("_input", "_meter", "_output", "_shape", "_step")

    def __init__(self, step: Step, shape: torch.Size, input: "Saved | None", meter: Meter):
        self._step = step
        self._shape = shape
        self._input = input
        self._meter = meter

    def remember(self, output: "Saved") -> None:
        self._output = output

    def __call__(self, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rule, z = self._step.rule, self._output.value
        if isinstance(rule, InputRule):
            return None, self._distributed(rule, g * z)
        if isinstance(rule, Epsilon):
            return self._whole(rule, g, z), None
        if rule.merges(self._step.nonnegative, self._step.rectified):
            return self._merged(rule, g, z), None
        return self._shared(rule, g, z), None

    def _distributed(self, rule: InputRule, relevance: Tensor) -> Tensor:
        returned = rule.distribute(self._step.linear, self._read_input(), relevance, self._step.present)
        self._meter.add(self._step.path, total(relevance) - total(returned))
        return returned

    def _whole(self, rule: Epsilon, g: Tensor, z: Tensor) -> Tensor:
        linear = self._step.linear
        share = rule.share(g, z, self._step.rectified)
        if rule.epsilon or linear.bias is not None:
            self._meter.add(self._step.path, self._absorbed_whole(rule.epsilon, g, z, share))
        return linear.transpose(share, linear.weight, self._shape)

    def _absorbed_whole(self, epsilon: float, g: Tensor, z: Tensor, share: Tensor) -> Tensor:
        """R − Σ share · (z − b): what the bias takes and, where z ≥ 0, ε as a part of it."""
        linear, bias = self._step.linear, self._step.linear.bias
        if bias is None:
            return total(share) * epsilon if self._step.rectified else dot(g, z) - dot(share, z)
        if self._step.rectified or not epsilon:
            return linear.bias_share(share, bias + epsilon)
        return linear.bias_share(share, bias) + dot(g, z) - dot(share, z)

    def _shared(self, rule: SplitRule, g: Tensor, z: Tensor) -> Tensor:
        a = self._read_input()
        positive = positive_contributions(self._step.linear, a, self._step.nonnegative)
        returned = self._transposed(a, *rule.shares(g, z, positive))
        self._meter.add(self._step.path, dot(g, z) - dot(a, returned))
        return returned

    def _merged(self, rule: SplitRule, g: Tensor, z: Tensor) -> Tensor:
        """Where a ≥ 0 and R = 0 at z < 0 both shares are proportional: one modified weight serves both ways."""
        linear, a = self._step.linear, self._read_input()
        weight = rule.merged(linear.weight)
        bias = None if linear.bias is None else rule.merged(linear.bias)
        share = ratio(z, linear.apply(a, weight, bias)).mul_(g)
        returned = linear.transpose(share, weight, self._shape)
        if not self._step.rectified:  # relevance of outputs without a positive contribution is lost: count it
            self._meter.add(self._step.path, dot(g, z) - dot(a, returned))
        elif bias is not None:
            self._meter.add(self._step.path, linear.bias_share(share, bias))
        return returned

    def _read_input(self) -> Tensor:
        assert self._input is not None
        return self._input.value

    def _transposed(self, a: Tensor, whole: Tensor | None, positive: Tensor) -> Tensor:
        """L_wᵀ(whole) + 1[a>0] L_w⁺ᵀ(positive) + 1[a<0] L_w⁻ᵀ(positive)."""
        linear, shape = self._step.linear, self._shape
        returned = linear.transpose(positive, linear.weight.clamp(min=0), shape)
        if not self._step.nonnegative:
            falling = linear.transpose(positive, linear.weight.clamp(max=0), shape)
            returned = torch.where(a < 0, falling, returned)
        return returned if whole is None else returned.add_(linear.transpose(whole, linear.weight, shape))
