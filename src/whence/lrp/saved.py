"""Values kept for the way back, and the autograd nodes that use them.

Autograd's own saved tensors refuse a value that the network overwrites later (`out += identity`), and plain inference may
overwrite freely. So what autograd saves is held in cells, by its hooks for saved tensors, and the mode asks the cells on a
storage to copy themselves just before the network writes to it.
"""

from collections import defaultdict
from collections.abc import Callable
from weakref import WeakSet

import torch
from torch import Tensor

from whence.errors import ModelError

Back = Callable[..., tuple[Tensor | None, ...]]  # (g, *kept) -> gradients of the sources
Keep = Callable[[Tensor], tuple[Tensor, ...]]  # value -> kept


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
    """The value of `value()`, and `back(g, *kept)` in place of its gradient.

    What `keep(value)` gives goes through autograd, which lets it go as soon as the way back is done with it.
    """

    @staticmethod
    def forward(ctx, value: Callable[[], Tensor], back: Back, keep: Keep, *sources: Tensor | None):
        out = value()
        out = out.detach() if out._is_view() else out  # torch refuses to overwrite views that a Function made
        ctx.back = back
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*keep(out))
        return out

    @staticmethod
    def backward(ctx, g: Tensor | None):
        return _returned(ctx, g)


class OverwritingNode(torch.autograd.Function):
    """As `Node`, where the value has to end up in `target` itself, whose own history was cut before."""

    @staticmethod
    def forward(ctx, value: Callable[[], Tensor], back: Back, keep: Keep, target: Tensor, *sources: Tensor | None):
        ctx.back = back
        ctx.set_materialize_grads(False)
        target.copy_(value())
        ctx.mark_dirty(target)
        ctx.save_for_backward(*keep(target))
        return target

    @staticmethod
    def backward(ctx, g: Tensor | None):
        return _returned(ctx, g)


def hooked(out: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
    """`out` with `hook(g)` for its gradient.

    A view gets a node instead: once its storage is overwritten, torch goes round the hooks of views.
    """
    if out._is_view():
        return Node.apply(out.detach, lambda g: (hook(g),), lambda value: (), out)  # type: ignore[return-value]
    out.register_hook(lambda g: None if g is None else hook(g))
    return out


def _returned(ctx, g: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of the sources, which come last among the inputs."""
    returned = () if g is None else ctx.back(g, *ctx.saved_tensors)
    return (None,) * (len(ctx.needs_input_grad) - len(returned)) + returned


def _same_view(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.stride() == b.stride() and a.data_ptr() == b.data_ptr()
