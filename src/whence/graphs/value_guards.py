"""Guards of a traced graph: values of the inputs that decide what the model computes must be the same in every replay."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whence.lrp.torch_compat.deferred_checks import check_holds
from whence.lrp.torch_compat.traced_constants import guard_reads, read_values

VALUE_READS = frozenset(
    {
        Tensor.tolist,
        Tensor.numpy,
        Tensor.__array__,
        Tensor.__dlpack__,
        Tensor.__repr__,
        Tensor.__format__,
        Tensor.data_ptr,
        torch.save,
    }
)  # which torch does not dispatch
FACTORIES = frozenset({torch.tensor, torch.as_tensor, torch.asarray})  # read the tensors in a list
INDEX_READS = frozenset({torch.tensor_split, Tensor.tensor_split})  # read their second argument
INDEX = torch.ops.aten.index.Tensor
MASKS = (torch.bool, torch.uint8)


@contextmanager
def value_guards() -> Iterator[list[Tensor]]:
    """Record, as conditions of the traced graph, the integers, truth values and sizes that the model reads from its inputs.

    A replay on inputs for which they differ would compute another function. Floating-point values that the model reads as
    Python numbers raise `ModelError`. Yields the list of the weights whose values the model reads; the graph is fixed to them.
    """
    with guard_reads() as constants, _ValueReads(), _DynamicSizes():
        yield constants


class _ValueReads(TorchFunctionMode):
    """Function mode that guards the values of tensors that become lists and arrays."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in VALUE_READS:
            read_values(args[0])
        elif function in INDEX_READS and len(args) > 1 and isinstance(args[1], Tensor):
            read_values(args[1])
        elif function in FACTORIES and not isinstance(args[0], Tensor):
            for t in tree_leaves(args[0]):
                if isinstance(t, Tensor):
                    read_values(t)
        return function(*args, **(kwargs or {}))


class _DynamicSizes(TorchDispatchMode):
    """Dispatch mode that guards sizes which depend on values (`nonzero`, `unique`, `x[mask]`)."""

    def __torch_dispatch__(self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._pack_padded_sequence.default:
            read_values(args[1])
        elif torch.Tag.dynamic_output_shape in function.tags and (function is not INDEX or _indexes_by_mask(args[1])):
            for t in found if isinstance(found, tuple | list) else (found,):
                check_holds(torch.ones_like(t, dtype=torch.int64).sum() == t.numel())  # the number of entries in a replay
        return found


def _indexes_by_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in MASKS for index in indices)
