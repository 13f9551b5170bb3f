"""Tensors saved for the backward pass, and the autograd nodes that use them.

Autograd raises an error if a saved tensor was modified in place (`out += identity`), which plain inference allows. So saved
tensors are held in `SavedTensor` cells, by autograd's hooks for saved tensors, and the mode lets the cells of a storage copy
their values just before the model writes to it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from whence.errors import ModelError

BackwardFunction = Callable[..., tuple[Tensor | None, ...]]  # (g, *saved) -> gradients of the sources
SaveFunction = Callable[[Tensor], tuple[Tensor, ...]]  # value -> tensors to save


class SavedTensor:
    """A tensor's value at the time of saving; copied only if the model modifies it in place."""

    __slots__ = ("__weakref__", "_value", "_version")

    def __init__(self, tensor: Tensor):
        self._value = value = tensor.detach()
        self._version = value._version

    @property
    def value(self) -> Tensor:
        if self._value._version != self._version:
            raise ModelError(
                "an in-place operation overwrote an activation where whence cannot intercept it; make it out-of-place"
            )
        return self._value

    @property
    def overwritten(self) -> bool:
        return self._value._version != self._version

    @property
    def storage(self) -> int:
        return _storage(self._value)

    def copy(self, copies: dict[tuple, Tensor]) -> None:
        """Copy the value out of its storage; cells of the same view share a copy."""
        value = self._value
        view = (value.storage_offset(), value.shape, value.stride(), value.dtype)
        if view not in copies:
            copies[view] = value.clone()
        self._value, self._version = copies[view], copies[view]._version


class SavedTensors:
    """All tensors saved in one forward pass, indexed by storage once the model modifies a tensor in place."""

    def __init__(self):
        self._unsorted: list[ref[SavedTensor]] = []
        self._by_storage: defaultdict[int, list[ref[SavedTensor]]] = defaultdict(list)

    def __len__(self) -> int:
        """Return the number of cells that are alive."""
        held = [*self._unsorted, *chain.from_iterable(self._by_storage.values())]
        return sum(cell() is not None for cell in held)

    def save(self, tensor: Tensor) -> SavedTensor:
        cell = SavedTensor(tensor)
        self._unsorted.append(ref(cell))
        return cell

    def before_overwriting(self, tensor: Tensor) -> None:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # type: ignore[attr-defined]  # within a vmap: has no storage
            return
        self._sort()
        copies: dict[tuple, Tensor] = {}
        for found in self._by_storage.pop(_storage(tensor), ()):
            if (cell := found()) is not None and not cell.overwritten:
                cell.copy(copies)

    def _sort(self) -> None:
        for found in self._unsorted:
            if (cell := found()) is not None:
                self._by_storage[cell.storage].append(found)
        self._unsorted.clear()


class ModifiedBackward(torch.autograd.Function):
    """Function with the value of `value()` and the gradient `back(g, *saved)`.

    The tensors returned by `keep(value)` are saved by autograd, which frees them as soon as the backward pass has used them.
    """

    @staticmethod
    def forward(ctx, value: Callable[[], Tensor], back: BackwardFunction, keep: SaveFunction, *sources: Tensor | None):
        out = value()
        out = out.detach() if out._is_view() else out  # torch refuses in-place operations on views made by a Function
        ctx.back = back
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*keep(out))
        return out

    @staticmethod
    def backward(ctx, g: Tensor | None):
        return _returned(ctx, g)


def with_backward_of(value: Callable[[], Tensor], written_out: Tensor) -> Tensor:
    """Return the exact value of `value()` with the backward pass of its decomposition `written_out`."""
    return ModifiedBackward.apply(value, lambda g: (g,), lambda value: (), written_out)  # type: ignore[return-value]


class JointBackward(torch.autograd.Function):
    """Identity whose gradients are `back(gradients, tensors)`; with `copied`, copies of the tensors are saved."""

    @staticmethod
    def forward(ctx, back: Callable[..., Sequence[Tensor]], copied: bool, *sources: Tensor):
        ctx.back = back
        aliases = tuple([t.detach().detach() for t in sources])
        ctx.save_for_backward(*([t.clone() for t in aliases] if copied else aliases))
        return aliases

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return None, None, *ctx.back(gradients, ctx.saved_tensors)


class InPlaceBackward(torch.autograd.Function):
    """`ModifiedBackward` that writes the value into `target` itself, whose own history was cut before."""

    @staticmethod
    def forward(
        ctx, value: Callable[[], Tensor], back: BackwardFunction, keep: SaveFunction, target: Tensor, *sources: Tensor | None
    ):
        ctx.back = back
        ctx.set_materialize_grads(False)
        target.copy_(value())
        ctx.mark_dirty(target)
        ctx.save_for_backward(*keep(target))
        return target

    @staticmethod
    def backward(ctx, g: Tensor | None):
        return _returned(ctx, g)


def with_gradient_hook(out: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `out` with `hook(g)` as the gradient passed to the function that made it; the gradient read at `out` is still g.

    A view gets a node instead, since torch bypasses the hooks of views once their storage is modified in place.
    """
    if out._is_view():
        return ModifiedBackward.apply(out.detach, lambda g: (hook(g),), lambda value: (), out)  # type: ignore[return-value]
    place = out.output_nr

    def before(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        g = gradients[place]
        return gradients if g is None else (*gradients[:place], hook(g), *gradients[place + 1 :])

    out.grad_fn.register_prehook(before)  # type: ignore[union-attr]
    return out


def _returned(ctx, g: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the sources, which are the last inputs."""
    returned = () if g is None else ctx.back(g, *ctx.saved_tensors)
    return (None,) * (len(ctx.needs_input_grad) - len(returned)) + returned


def version_of(t: Tensor) -> int:
    """Return how often the tensor was modified in place; 0 for inference tensors, which have no version counter."""
    return 0 if t.is_inference() else t._version


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata  # also defined for fake tensors without data, used in tracing


def function_name(node: Any) -> str:
    """Return the dotted name of the `autograd.Function` of a node of an autograd graph; empty for torch's own functions."""
    function = getattr(type(node), "_forward_cls", None)
    return "" if function is None else f"{function.__module__}.{function.__qualname__}"
