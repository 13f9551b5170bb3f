"""Values kept for the way back, and the autograd nodes that use them.

Autograd's own saved tensors refuse a value that the network overwrites later (`out += identity`), and plain inference may
overwrite freely. So what autograd saves is held in cells, by its hooks for saved tensors, and the mode asks the cells on a
storage to copy themselves just before the network writes to it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from weakref import ref

import torch
from torch import Tensor

from whence.errors import ModelError

BackwardFunction = Callable[..., tuple[Tensor | None, ...]]  # (g, *kept) -> gradients of the sources
SaveFunction = Callable[[Tensor], tuple[Tensor, ...]]  # value -> kept


class SavedTensor:
    """A tensor's value as it was when saved; copied only if the network overwrites it."""

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
        """Move out of the storage; cells of the same view share a copy."""
        value = self._value
        view = (value.storage_offset(), value.shape, value.stride(), value.dtype)
        if view not in copies:
            copies[view] = value.clone()
        self._value, self._version = copies[view], copies[view]._version


class SavedTensors:
    """All values saved in one forward pass; sorted by the storage they lie in once the network overwrites something."""

    def __init__(self):
        self._unsorted: list[ref[SavedTensor]] = []
        self._by_storage: defaultdict[int, list[ref[SavedTensor]]] = defaultdict(list)

    def __len__(self) -> int:
        """How many are held."""
        held = [*self._unsorted, *chain.from_iterable(self._by_storage.values())]
        return sum(cell() is not None for cell in held)

    def save(self, tensor: Tensor) -> SavedTensor:
        cell = SavedTensor(tensor)
        self._unsorted.append(ref(cell))
        return cell

    def before_overwriting(self, tensor: Tensor) -> None:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # type: ignore[attr-defined]  # of a vmap, without storage
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
    """The value of `value()`, and `back(g, *kept)` in place of its gradient.

    What `keep(value)` gives goes through autograd, which lets it go as soon as the way back is done with it.
    """

    @staticmethod
    def forward(ctx, value: Callable[[], Tensor], back: BackwardFunction, keep: SaveFunction, *sources: Tensor | None):
        out = value()
        out = out.detach() if out._is_view() else out  # torch refuses to overwrite views that a Function made
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
    """`out` with `hook(g)` for its gradient, as the function that made it gets it: whoever reads the gradient at `out` reads g.

    A view gets a node instead: once its storage is overwritten, torch goes round the hooks of views.
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
    """Gradients of the sources, which come last among the inputs."""
    returned = () if g is None else ctx.back(g, *ctx.saved_tensors)
    return (None,) * (len(ctx.needs_input_grad) - len(returned)) + returned


def version_of(t: Tensor) -> int:
    """How often the tensor was overwritten; nobody can overwrite what was made in inference mode."""
    return 0 if t.is_inference() else t._version


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata  # also of tensors without data, by which networks are traced
