"""Backward passes from one forward pass: one alone, or several together by `torch.vmap`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.checkpoint import CheckpointError

from whence.errors import ModelError, first_line
from whence.lrp.engine.conservation import ConservationMeter
from whence.methods.layer_taps import LayerTaps

# Values in the largest tensor that passes together may read or return. On a CPU they must stay in its caches to be faster.
CHUNK_VALUES, CHUNK_VALUES_ON_ACCELERATOR = 2**20, 2**25


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

    Args:
        ends: The tensors at which all passes end.
        taps: Hooks that record the gradients at layers.
        meter: Meter of the absorbed relevance.
        together: Whether passes may be computed together; not where hooks of the user see the gradients, since these would
            be those of all passes.
    """

    ends: Sequence[Tensor]
    taps: LayerTaps
    meter: ConservationMeter = field(default_factory=lambda: ConservationMeter(idle=True))
    together: bool = True

    def chunk_size(self, largest: int) -> int:
        """Return the number of passes to compute together, where `largest` values are in the tensor that they start from."""
        if not self.together or not self.ends:
            return 1
        limit = CHUNK_VALUES if self.ends[0].device.type == "cpu" else CHUNK_VALUES_ON_ACCELERATOR
        return max(1, limit // max(largest, *(end.numel() for end in self.ends), 1))

    def run(self, starts: Sequence[BackwardStart], keep_graph: bool) -> Iterator[list[Tensor]]:
        """Yield the gradients at the ends for each start; taps and meter then hold the records of that pass alone."""
        if self.together and len(starts) > 1:
            try:
                found = self._run_together(starts)
            except (
                Exception
            ):  # a function of the model that torch.vmap refuses, or no memory: an error of the model comes again
                self.together = False
                self.taps.take_gradients()
                self.meter.forget()
            else:
                yield from found
                return
        for i, start in enumerate(starts):
            yield backward(start, self.ends, keep_graph or i < len(starts) - 1)

    def _run_together(self, starts: Sequence[BackwardStart]) -> Iterator[list[Tensor]]:
        tensors = {id(start.tensor): start for start in starts}
        gradients = [
            torch.stack([s.gradient if s.tensor is own.tensor else torch.zeros_like(own.gradient) for s in starts])
            for own in tensors.values()
        ]

        def one(*gradients: Tensor) -> tuple[Any, ...]:
            found = _gradients([own.tensor for own in tensors.values()], gradients, self.ends, keep_graph=True)
            return found, self.taps.take_gradients(), self.meter.take()

        with _without_fallback_warnings():
            found, at_layers, absorbed = torch.vmap(one)(*gradients)
        return self._one_by_one(len(starts), found, at_layers, absorbed)

    def _one_by_one(
        self, count: int, found: list[Tensor], gradients: dict[str, list[Tensor]], amounts: dict[str, list[Tensor]]
    ) -> Iterator[list[Tensor]]:
        for k in range(count):
            self.taps.put_gradients({name: [g[k] for g in calls] for name, calls in gradients.items()})
            self.meter.put({path: [amount[k] for amount in several] for path, several in amounts.items()})
            yield [g[k] for g in found]


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
