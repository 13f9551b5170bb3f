"""Backward passes of the relevance that flows through chosen units of layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge

from whence.core.conditions import Condition
from whence.errors import ModelError
from whence.lrp.engine.conservation import batch_dot, sum_by_sample
from whence.lrp.engine.function_mode import GradientMode
from whence.methods.backward_passes import BackwardPasses, BackwardStart, backward


@dataclass(frozen=True)
class ConditionalFlow:
    """The relevance that flows through the units of layers that a condition selects."""

    condition: Condition
    amount: Tensor  # [N]
    layers: frozenset[str]  # layers at which conditional relevance is defined: those that run before the units
    note: str = ""


class ConditionalBackward:
    """Backward passes under one condition after another, all starting from the same unconditional backward pass.

    The steps from the top that a condition shares with the previous one are not computed again.
    """

    def __init__(self, passes: BackwardPasses, mode: GradientMode, count: int):
        self._passes, self._taps, self._mode, self._count = passes, passes.taps, mode, count
        self._whole = self._taps.read()
        self._steps: list[tuple[str, Any, Tensor]] = []  # layers from the top, their selected units, and the gradient there

    def through(self, conditions: Sequence[Condition]) -> Iterator[tuple[list[Tensor], ConditionalFlow]]:
        """Yield the gradients at the ends for the relevance that flows through the selected units of all layers of a condition.

        It starts at the layer that ran last: its gradient, restricted to its units, is propagated to the layer before, then
        restricted to the units of that layer, and so on.
        """
        for name, several in groupby(conditions, self._lowest):
            of_layer, size = list(several), self._passes.chunk_size(self._edge(name))
            for first in range(0, len(of_layer), size):
                starts, flows = zip(*map(self._start, of_layer[first : first + size]), strict=True)
                with self._mode.from_the_middle():
                    yield from zip(self._passes.run(starts, keep_graph=True), flows, strict=True)

    def _lowest(self, condition: Condition) -> str:
        """Return the layer of a condition that ran first, at which the backward pass to the ends starts."""
        return next(name for name in self._taps.values if name in condition.layers)

    def _start(self, condition: Condition) -> tuple[BackwardStart, ConditionalFlow]:
        """Return where the backward pass to the ends starts, and the relevance that flows from there."""
        order = [name for name in reversed(self._taps.values) if name in condition.layers]
        wanted = [(name, condition.units[name]) for name in order]
        shared = 0
        for (name, units, _), step in zip(self._steps, wanted, strict=False):
            if (name, units) != step:
                break
            shared += 1
        del self._steps[shared:]
        for name, units in wanted[shared:]:
            self._steps.append((name, units, self._restricted(condition, name)))
        name, _, g = self._steps[-1]
        (a, whole) = self._whole[name][0]
        amount = sum_by_sample(batch_dot(a, g), self._count)
        there = float(batch_dot(a, whole).sum())
        note = "" if amount.any() else f", through which no relevance flows (the layer's total relevance is {there:.4g})"
        return BackwardStart(self._edge(name), g), ConditionalFlow(condition, amount, self._taps.before(name), note)

    def _restricted(self, condition: Condition, name: str) -> Tensor:
        """Return the part of the gradient at a layer that the condition lets through."""
        (a, g), edge = self._whole[name][0], self._edge(name)
        if self._steps:
            above, _, g = self._steps[-1]
            with self._mode.from_the_middle():
                (g,) = backward(BackwardStart(self._edge(above), g), [edge], keep_graph=True, like=[a])
        return condition.restrict(name, a, g, self._taps.channels_at)

    def _edge(self, name: str) -> GradientEdge:
        edges = self._taps.edges[name]
        if len(edges) > 1:
            raise ModelError(f"layer '{name}' ran {len(edges)} times; choose a layer that runs once")
        return edges[0]
