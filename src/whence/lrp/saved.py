"""Values kept for the way back, and the autograd nodes that use them.

Autograd's own saved tensors refuse a value that the network overwrites later (`out += identity`), and plain inference may
overwrite freely. So values are held in cells, and the mode asks the cells on a storage to copy themselves just before the
network writes to it.
"""

from collections import defaultdict
from collections.abc import Callable
from weakref import WeakSet

import torch
from torch import Tensor

from whence.errors import ModelError


class Saved:
    """A tensor's value as it was when saved; copied only if the network overwrites it."""

    __slots__ = ("__weakref__", "_value", "_version")

    def __init__(self, tensor: Tensor):
        self._value = tensor.detach()
        self._version = self._value._version

    @property
    def value(self) -> Tensor:
        if self._value._version != self._version:
            raise ModelError("a hidden activation was overwritten where whence could not see it; run that part out of place")
        return self._value

    def copy(self) -> None:
        self._value = self._value.clone()
        self._version = self._value._version


class Cells:
    """All values saved in one forward pass, found by the storage they lie in."""

    def __init__(self):
        self._by_storage: defaultdict[int, WeakSet[Saved]] = defaultdict(WeakSet)

    def save(self, tensor: Tensor) -> Saved:
        cells = self._by_storage[tensor.untyped_storage().data_ptr()]
        for cell in cells:
            same = cell._value
            if same._version == cell._version == tensor._version and _same_view(same, tensor):
                return cell
        cell = Saved(tensor)
        cells.add(cell)
        return cell

    def before_overwriting(self, tensor: Tensor) -> None:
        for cell in list(self._by_storage.pop(tensor.untyped_storage().data_ptr(), ())):
            cell.copy()


class Node(torch.autograd.Function):
    """The value of `value()`, and `back` in place of its gradient."""

    @staticmethod
    def forward(ctx, value: Callable[[], Tensor], back: Callable[[Tensor], tuple], *sources: Tensor | None):
        ctx.back = back
        ctx.set_materialize_grads(False)
        return value()

    @staticmethod
    def backward(ctx, g: Tensor | None):
        return None, None, *(ctx.back(g) if g is not None else [None] * (len(ctx.needs_input_grad) - 2))


class OverwritingNode(torch.autograd.Function):
    """As `Node`, where `value()` has to end up in `target` itself."""

    @staticmethod
    def forward(ctx, value: Callable[[], Tensor], back: Callable[[Tensor], tuple], target: Tensor, *sources: Tensor | None):
        ctx.back = back
        ctx.own = target.requires_grad  # else the history of `target` was cut and only `sources` are asked
        ctx.set_materialize_grads(False)
        target.copy_(value())
        ctx.mark_dirty(target)
        return target

    @staticmethod
    def backward(ctx, g: Tensor | None):
        if g is None:
            return (None,) * len(ctx.needs_input_grad)
        returned = ctx.back(g)
        return (None, None, *returned) if ctx.own else (None, None, None, *returned)


def _same_view(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr()
