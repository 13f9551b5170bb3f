"""The backward pass of one linear map: relevance at its output in, relevance at its input out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from whence.errors import ModelError, RuleError, value_repr
from whence.lrp.engine.conservation import ConservationMeter, batch_dot, batch_sum
from whence.lrp.engine.linear_maps import (
    LinearMap,
    RuleWeights,
    contributions_by_size,
    negative_part,
    positive_contributions,
    positive_part,
)
from whence.lrp.engine.weight_cache import WeightCache
from whence.lrp.rules.protocol import (
    Factors,
    InputRule,
    can_merge,
    check_factors,
    defines,
    includes_bias,
    is_depth_rule,
    is_input_rule,
    is_split_rule,
)
from whence.lrp.rules.rules import AlphaBeta, Epsilon, Gamma, LinearRule, ZPlus, safe_divide
from whence.lrp.torch_compat.saved_tensors import version_of


@dataclass(slots=True, eq=False)
class InputCompanion:
    """Zeros added to a tensor that holds the rearranged input; rules of the input layer write relevance to their gradient."""

    zeros: Tensor
    present: Tensor | None = None  # 1 where a value comes from the input, 0 where it is padding; None: no padding


@dataclass(slots=True, eq=False)
class LinearStep:
    """A linear map, its rule, and the known facts about its input and output."""

    linear: LinearMap
    rule: LinearRule | InputRule
    path: str
    nonnegative: bool = False  # the input is known not to be negative
    rectified: bool = False  # a ReLU follows: R = 0 where z < 0
    present: Tensor | None = None  # mask of the values that come from the explained input, for rules of the input layer

    def folded(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "LinearStep | None":
        """Return the step followed by `scale · z + shift` along `dim`, or None if its map cannot be folded with them."""
        linear = None if self.rectified else self.linear.scaled(scale, shift, dim, rank)
        return None if linear is None else LinearStep(linear, self.rule, self.path, self.nonnegative, False, self.present)


@dataclass(slots=True, eq=False)
class LinearLink:
    """Record of the step that made the output of a linear map, so that the function that follows can merge with it."""

    source: Tensor  # the input, attached to its autograd graph
    zeros: Tensor | None  # those of the input's companion
    version: int  # version of the input when the map read it
    step: LinearStep

    def followed(self, step: LinearStep) -> "LinearLink":
        """Return the link with `step`, a longer one, in place of its own."""
        return LinearLink(self.source, self.zeros, self.version, step)

    def rectified(self) -> "LinearLink":
        """Return the link followed by a ReLU."""
        step = self.step
        return self.followed(LinearStep(step.linear, step.rule, step.path, step.nonnegative, True, step.present))


class LayerDepths:
    """Depths of the layers whose rule changes with depth, in each backward pass.

    The depth of a layer is 1 + the largest number of such layers on a path from the explained output to it, so that it does not
    depend on the order in which branches are computed.
    """

    def __init__(self):
        self._layers: list[tuple[ReferenceType, LinearStep]] = []  # with their autograd nodes
        self._graph_task, self._depths = -1, {}  # of the last complete backward pass
        self._again = False

    def add(self, out: Tensor, step: LinearStep) -> None:
        """Register a layer by its output, if its rule changes with depth."""
        if is_depth_rule(step.rule) and out.grad_fn is not None:
            self._layers.append((ref(out.grad_fn), step))

    def depth(self, step: LinearStep) -> int:
        """Return the depth of a layer in the running backward pass, counted from 1."""
        running = torch._C._current_graph_task_id()
        if running != self._graph_task and not (self._again and step in self._depths):
            layers = {node: step for node, step in ((known(), step) for known, step in self._layers) if node is not None}
            reached = [node for node in layers if torch._C._will_engine_execute_node(node)]  # type: ignore[attr-defined]
            depths = longest_paths(reached)
            self._graph_task, self._depths = running, {layers[node]: depth for node, depth in depths.items()}
        return self._depths[step]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Reuse the depths of the last backward pass, for one that starts at an intermediate layer."""
        self._again = True
        try:
            yield
        finally:
            self._again = False


def longest_paths(nodes: Sequence[Any]) -> dict[Any, int]:
    """Return for each autograd node the largest number of the given nodes on a path that ends in it."""
    counted = set(nodes)
    depths = dict.fromkeys(_topological_order(nodes), 0)
    for node, above in depths.items():
        depths[node] = depth = above + (node in counted)
        for below, _ in node.next_functions:
            if below is not None:
                depths[below] = max(depths[below], depth)
    return {node: depths[node] for node in nodes}


def _topological_order(nodes: Sequence[Any]) -> list[Any]:
    """Return all autograd nodes from which relevance flows on from `nodes`, each behind those that it flows from."""
    order, seen = [], set()
    stack = [(node, False) for node in nodes]
    while stack:
        node, finished = stack.pop()
        if finished:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(below, False) for below, _ in node.next_functions if below is not None and below not in seen]
    return order[::-1]


class LinearBackward:
    """The backward function of one step: from g = R/z at the output to g = R/a at the input."""

    def __init__(
        self,
        step: LinearStep,
        shape: torch.Size,
        meter: ConservationMeter,
        kept: WeightCache,
        depths: LayerDepths,
        several: bool,
    ):
        self.step, self.meter, self.shape = step, meter, shape  # shape of the input
        self._kept, self._depths, self._several = kept, depths, several  # several backward passes from the same forward pass
        self._weight_version = version_of(step.linear.weight)
        self._factors: Factors | None = None
        self._factors_of: Any = None

    def reads(self, z: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that the backward pass reads: output and input, output alone, or none for the plain gradient."""
        rule = self.step.rule
        if not isinstance(rule, Epsilon) or is_split_rule(rule):
            return z, a
        return (z,) if rule.epsilon or self.step.rectified or not defines(rule, "share", Epsilon) else ()

    def __call__(self, g: Tensor, *read: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rule, linear = self._rule(), self.step.linear
        if version_of(linear.weight) != self._weight_version:
            raise ModelError(
                f"the weight of '{self.step.path}' was modified in place after its use in the forward pass; make that "
                "operation out-of-place"
            )
        weights = self._kept((linear.layout, g.dtype), linear.constants, lambda: RuleWeights(linear, g.dtype))
        read = tuple([t.to(g.dtype) for t in read])  # under autocast the map is computed in another dtype than its input has
        if is_input_rule(rule):
            z, a = read
            return None, self._distributed(weights, rule, g, z, a)
        if is_split_rule(rule):
            z, a = read
            merges = can_merge(rule, self.step.nonnegative, self.step.rectified)
            return (self._merged if merges else self._shared)(weights, rule, g, z, a), None
        z = read[0] if read else g  # LRP-0 does not read z
        return self._whole(weights, rule, g, z), None

    def _rule(self) -> Any:
        rule = self.step.rule
        if not is_depth_rule(rule):
            return rule
        here = rule.at(self._depths.depth(self.step))  # type: ignore[union-attr]
        if not isinstance(here, Epsilon) and not is_split_rule(here):
            raise RuleError(
                f"{type(rule).__name__}.at returned {value_repr(here)}; expected whence.Epsilon(…) or a rule with a "
                "method factors"
            )
        if here is not self._factors_of:
            self._factors, self._factors_of = None, here
        return here

    def _distributed(self, weights: RuleWeights, rule: Any, g: Tensor, z: Tensor, a: Tensor) -> Tensor:
        linear, present = self.step.linear, self.step.present

        def factor() -> Factors:
            denominator = rule.denominator(linear, weights, a, present)
            return None, safe_divide(z, denominator.expand_as(z).clone() if denominator.shape[0] < z.shape[0] else denominator)

        _, share = self._shares(g, factor)
        returned = rule.spread(linear, weights, share, a, present)
        self._absorb_difference(batch_dot(g, z), batch_sum(returned))
        return returned

    def _whole(self, weights: RuleWeights, rule: Epsilon, g: Tensor, z: Tensor) -> Tensor:
        share = rule.share(g, z, self.step.rectified)
        if not defines(rule, "share", Epsilon):  # a user-defined share: measure the relevance that it loses
            share = share.masked_fill(z == 0, 0) if self.step.rectified else share  # R = 0 where z < 0
            bias = 0.0 if weights.bias is None else self.step.linear.bias_share(share, weights.bias)
            self.meter.add(self.step.path, bias + batch_dot(g, z) - batch_dot(share, z))
        elif rule.epsilon or weights.bias is not None:
            self.meter.add(self.step.path, self._absorbed_whole(weights.bias, rule.epsilon, g, z, share))
        return self.step.linear.transpose(share, weights.weight, self.shape)

    def _absorbed_whole(self, bias: Tensor | None, epsilon: float, g: Tensor, z: Tensor, share: Tensor) -> Tensor:
        """Return R − Σ share · (z − b), the relevance absorbed by the bias and, where z ≥ 0, by ε as a part of it."""
        linear = self.step.linear
        if bias is None:
            return batch_sum(share) * epsilon if self.step.rectified else batch_dot(g, z) - batch_dot(share, z)
        if self.step.rectified or not epsilon:
            return linear.bias_share(share, bias + epsilon)
        return linear.bias_share(share, bias) + batch_dot(g, z) - batch_dot(share, z)

    def _shared(self, weights: RuleWeights, rule: Any, g: Tensor, z: Tensor, a: Tensor) -> Tensor:
        linear, nonnegative = self.step.linear, self.step.nonnegative
        # γ never divides by a small P, so P may be rounded like a large number; in half precision that is too coarse
        bias = includes_bias(rule)
        by_size = defines(rule, "factors", Gamma) and bias and not nonnegative and z.dtype.itemsize >= 4

        def factors() -> Factors:
            if by_size:
                return rule.factors(z, contributions_by_size(linear, weights, z, a), z)
            positive = positive_contributions(linear, weights, a, nonnegative, bias)
            found = rule.factors(z, positive, z if bias or weights.bias is None else z - self._bias_alone(weights, a))
            return found if _is_own(rule) else check_factors(rule, found, z, self.step.rectified)

        whole, positive = self._shares(g, factors)
        if positive is None:
            returned = torch.zeros_like(a) if whole is None else linear.transpose(whole, weights.weight, self.shape)
        elif by_size and whole is not None:
            returned = self._transposed_by_size(weights, a, whole, positive)
        else:
            returned = self._transposed(weights, a, whole, positive)
        self._absorb_difference(batch_dot(g, z), batch_dot(a, returned))
        return returned

    def _bias_alone(self, weights: RuleWeights, a: Tensor) -> Tensor:
        rows = 1 if weights.bias is None or weights.bias.dim() == 1 else len(a)
        return self.step.linear.apply(torch.zeros_like(a[:rows]), weights.weight, weights.bias)

    def _merged(self, weights: RuleWeights, rule: Any, g: Tensor, z: Tensor, a: Tensor) -> Tensor:
        """Return relevance by one modified weight for both shares, which are proportional where a ≥ 0 and R = 0 at z < 0."""
        linear, with_bias = self.step.linear, includes_bias(rule)
        nothing_lost = self.step.rectified and with_bias and _is_own(rule)  # every output has a positive contribution
        weight, bias = weights.modified(rule.merged), weights.modified_bias(rule.merged) if with_bias else None
        share = self._shares(g, lambda: (None, safe_divide(z, linear.apply(a, weight, bias), bounded=nothing_lost)))[1]
        assert share is not None
        returned = linear.transpose(share, weight, self.shape)
        if not nothing_lost:  # relevance of outputs without a positive contribution is lost: count it as absorbed
            self._absorb_difference(batch_dot(g, z), batch_dot(a, returned))
        elif bias is not None:
            self.meter.add(self.step.path, linear.bias_share(share, bias))
        return returned

    def _shares(self, g: Tensor, make: Callable[[], Factors]) -> Factors:
        """Return the factors times g; the factors are reused in each of several backward passes."""
        whole, positive = make() if self._factors is None else self._factors
        if self._several:
            self._factors = whole, positive
            return None if whole is None else whole * g, None if positive is None else positive * g
        return None if whole is None else whole.mul_(g), None if positive is None else positive.mul_(g)

    def _absorb_difference(self, came: Tensor, went: Tensor) -> None:
        """Count `came` − `went` as absorbed, added separately: input and output may index the samples differently."""
        self.meter.add(self.step.path, came)
        self.meter.add(self.step.path, -went)

    def _transposed_by_size(self, weights: RuleWeights, a: Tensor, whole: Tensor, positive: Tensor) -> Tensor:
        """Return `_transposed` in two passes: L_wᵀ(whole + positive/2) + sign(a) L_|w|ᵀ(positive/2)."""
        linear, half = self.step.linear, positive.mul_(0.5)
        sized = linear.transpose(half, weights.modified(torch.abs), self.shape)
        return linear.transpose(whole.add_(half), weights.weight, self.shape).addcmul_(a.sign(), sized)

    def _transposed(self, weights: RuleWeights, a: Tensor, whole: Tensor | None, positive: Tensor) -> Tensor:
        """Return L_wᵀ(whole) + 1[a>0] L_w⁺ᵀ(positive) + 1[a<0] L_w⁻ᵀ(positive)."""
        linear = self.step.linear
        returned = linear.transpose(positive, weights.modified(positive_part), self.shape)
        if not self.step.nonnegative:
            falling = linear.transpose(positive, weights.modified(negative_part), self.shape)
            returned = torch.where(a < 0, falling, returned)
        return returned if whole is None else returned.add_(linear.transpose(whole, weights.weight, self.shape))


def _is_own(rule: object) -> bool:
    """Return whether the rule uses a built-in `factors` method: new tensors, of known signs."""
    return any(defines(rule, "factors", kind) for kind in (Gamma, AlphaBeta, ZPlus))
