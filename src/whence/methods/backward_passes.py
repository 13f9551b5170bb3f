"""Backward passes from one forward pass: one alone, or several together by `torch.vmap`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import CheckpointError

from whence.errors import ModelError, first_line
from whence.lrp.engine.conservation import ConservationMeter
from whence.lrp.torch_compat.saved_tensors import function_name
from whence.lrp.torch_compat.torch_patches import SharedPatch
from whence.methods.layer_taps import LayerTaps

# Values in the largest gradient of passes that run together. On a CPU they must stay in its caches to be faster.
CHUNK_VALUES, CHUNK_VALUES_ON_ACCELERATOR = 2**22, 2**25
MOST_TOGETHER, MOST_TOGETHER_ON_ACCELERATOR = 32, 256
FEWEST_TOGETHER = 3  # one of which also runs alone, as a check
SAME, SAME_IN_HALF_PRECISION = 1e-3, 0.1  # relative to the largest gradient
KNOWN_FUNCTIONS = ("whence.", "torch.utils.checkpoint.")  # modules of autograd.Functions that may run under vmap


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Enable gradients, even within the caller's `no_grad` or `inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@dataclass(frozen=True)
class BackwardStart:
    """The tensor at which a backward pass starts, and the gradient there."""

    tensor: Tensor | GradientEdge
    gradient: Tensor

    @classmethod
    def at_values(cls, values: Tensor) -> "BackwardStart":
        """Return the start of the backward pass of Σ values."""
        return cls(values, torch.ones_like(values))


@dataclass
class BackwardPasses:
    """Backward passes of one autograd graph to the same tensors, with what hooks record on the way.

    Several run together by `torch.vmap` where all functions of the graph are torch's or ours: others may keep state, and hooks
    of the user would see the gradients of all passes at once. Since a function may have a wrong rule for vmap (`cdist` in torch
    2.13), one of the passes runs alone as well, and if it differs all do.

    Args:
        ends: The tensors at which all passes end.
        taps: Hooks that record the gradients at layers.
        meter: Meter of the absorbed relevance.
        together: Whether passes may run together.
    """

    ends: Sequence[Tensor]
    taps: LayerTaps
    meter: ConservationMeter = field(default_factory=lambda: ConservationMeter(idle=True))
    together: bool = True
    _checked: bool = False

    def chunk_size(self, start: Any) -> int:
        """Return the number of passes to run together from a tensor or gradient edge; the first ones are checked."""
        self._checked = False
        node = getattr(start, "node", None) or getattr(start, "grad_fn", None)
        if not self.together or not self.ends or node is None:
            return 1
        largest = largest_gradient(node)
        if largest is None:
            self.together = False
            return 1
        on_cpu = self.ends[0].device.type == "cpu"
        values = CHUNK_VALUES if on_cpu else CHUNK_VALUES_ON_ACCELERATOR
        count = min(values // max(largest, 1), MOST_TOGETHER if on_cpu else MOST_TOGETHER_ON_ACCELERATOR)
        return count if count >= FEWEST_TOGETHER else 1

    def run(self, starts: Sequence[BackwardStart], keep_graph: bool) -> Iterator[list[Tensor]]:
        """Yield the gradients at the ends for each start; taps and meter then hold the records of that pass alone."""
        if self.together and len(starts) >= FEWEST_TOGETHER:
            try:
                found = self._run_together(starts)
            except Exception:  # torch.vmap refuses a function, or memory is short; an error of the model comes again
                found = None
            if found is not None:
                yield from found
                return
            self.together = False
            self.taps.take_gradients()
            self.meter.forget()
        for i, start in enumerate(starts):
            yield backward(start, self.ends, keep_graph or i < len(starts) - 1)

    def _run_together(self, starts: Sequence[BackwardStart]) -> Iterator[list[Tensor]] | None:
        """Return the results by start, or None if that of the last is another when it is computed alone."""
        self._take_records()  # of other passes
        alone = None if self._checked else (backward(starts[-1], self.ends, True), *self._take_records())
        tensors = {id(start.tensor): start for start in starts}
        gradients = [own.gradient.new_zeros(len(starts), *own.gradient.shape) for own in tensors.values()]
        for stacked, own in zip(gradients, tensors.values(), strict=True):
            for i, start in enumerate(starts):
                if start.tensor is own.tensor:
                    stacked[i] = start.gradient

        def one(*gradients: Tensor) -> tuple[Any, ...]:
            found = _gradients([own.tensor for own in tensors.values()], gradients, self.ends, keep_graph=True)
            return found, *self._take_records()

        with WITHOUT_FALLBACK_WARNINGS:
            together = torch.vmap(one)(*gradients)
        if alone is not None and not _same(alone, tree_map(lambda t: t[-1], together)):
            return None
        self._checked = True
        return self._one_by_one(len(starts), *together)

    def _take_records(self) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        return self.taps.take_gradients(), self.meter.take()

    def _one_by_one(
        self, count: int, found: list[Tensor], at_layers: dict[str, list[Tensor]], absorbed: dict[str, list[Tensor]]
    ) -> Iterator[list[Tensor]]:
        for k in range(count):  # in copies, so that no explanation holds the memory of the others
            self.taps.put_gradients({name: [g[k].clone() for g in calls] for name, calls in at_layers.items()})
            self.meter.put({path: [amount[k].clone() for amount in several] for path, several in absorbed.items()})
            yield [g[k].clone() for g in found]


def largest_gradient(start: Any) -> int | None:
    """Return the number of values of the largest gradient in the graph below a node; None if others' functions are in it."""
    largest, seen, stack = 0, {start}, [start]
    while stack:
        node = stack.pop()
        if (name := function_name(node)) and not name.startswith(KNOWN_FUNCTIONS):
            return None
        largest = max(largest, *(prod(value.shape) for value in getattr(node, "_input_metadata", ())), 0)
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    return largest


def _same(alone: Any, together: Any) -> bool:
    """Return whether two results of a backward pass agree up to rounding."""
    pairs = [(a, b) for a, b in zip(tree_leaves(alone), tree_leaves(together), strict=True) if a.numel()]
    share = SAME_IN_HALF_PRECISION if any(a.dtype.itemsize < 4 for a, _ in pairs) else SAME
    largest = [float(a.abs().max()) for a, _ in pairs]
    least = share * max(largest, default=0.0) / 100  # what cancels to almost zero may differ by the rounding of other tensors
    return all(
        bool(((a - b).abs() <= max(share * own, least)).all()) for (a, b), own in zip(pairs, largest, strict=True)
    )  # fmt: skip


def backward(
    start: BackwardStart, ends: Sequence[Tensor | GradientEdge], keep_graph: bool, like: Sequence[Tensor] = ()
) -> list[Tensor]:
    """Compute the gradients of one backward pass; zeros (`like`) for ends that are not in the graph."""
    try:
        return _gradients([start.tensor], [start.gradient], ends, keep_graph, like)
    except CheckpointError as error:
        raise ModelError(f"a checkpointed module returned different values when recomputed: {first_line(error)}") from error
    except AssertionError as error:  # raised by an autograd.Function of the model
        raise ModelError(f"the backward pass of the model failed: {first_line(error)}") from error
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ModelError(
            "an in-place operation overwrote a tensor needed for the backward pass; make it out-of-place, or use whence.LRP()"
        ) from error


def _gradients(
    starts: Sequence[Tensor | GradientEdge],
    gradients: Sequence[Tensor],
    ends: Sequence[Tensor | GradientEdge],
    keep_graph: bool,
    like: Sequence[Tensor] = (),
) -> list[Tensor]:
    with gradients_enabled():
        found = torch.autograd.grad(starts, ends, gradients, retain_graph=keep_graph, allow_unused=True)  # type: ignore[arg-type]
    return [torch.zeros_like(s) if g is None else g for s, g in zip(like or ends, found, strict=True)]  # type: ignore


@contextmanager
def _without_fallback_warnings() -> Iterator[None]:
    """Silence the warnings of `torch.vmap` at functions that it computes one by one."""
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)  # type: ignore[attr-defined]


WITHOUT_FALLBACK_WARNINGS = SharedPatch(_without_fallback_warnings)
