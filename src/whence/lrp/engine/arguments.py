"""Classification of a call's arguments: parameters are constants, and data are the tensors that depend on the input."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakTensorKeyDictionary

from whence.lrp.engine.function_calls import INERT_TYPES, Call, iter_tensors, overwrites
from whence.lrp.engine.tensor_facts import TensorFacts
from whence.lrp.ops.function_facts import FunctionFacts


@lru_cache(maxsize=4096)
def _tensor_positions(kinds: tuple[type, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the positions of tensors among arguments of these types, and of others that may contain tensors."""
    others = tuple([i for i, kind in enumerate(kinds) if kind not in INERT_TYPES and kind is not Tensor])
    return tuple([i for i, kind in enumerate(kinds) if kind is Tensor]), others


class ArgumentReader:
    """Factory of `Call` objects from torch functions and their arguments.

    A model that differentiates in its forward pass builds graphs from leaves that it creates itself, and weights may have been
    computed from parameters beforehand: both are constants where they are combined with data.

    Args:
        known: Registry of the tensors that depend on the input.
        all_known: Whether all inputs are registered, so that any other leaf was created by the model; else an unregistered
            leaf is an input.
    """

    def __init__(self, known: TensorFacts, all_known: bool):
        self._by_id, self._all_known = known.by_id, all_known
        self.strangers: list[Tensor] = []  # require gradients but were not registered, in the last call
        self.met_own_graph = False  # whether the last call read a graph of the model's own leaves
        self._of_own_graphs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def call(self, function: Callable[..., Any], facts: FunctionFacts, args: tuple, kwargs: dict[str, Any]) -> Call:
        data: list[Tensor] = []
        constants: list[Tensor] = []
        self.strangers.clear()
        self.met_own_graph = False
        args = self._read(args, data, constants)
        if kwargs:
            values = tuple(kwargs.values())
            read = self._read(values, data, constants)
            kwargs = kwargs if read is values else dict(zip(kwargs, read, strict=True))
        return Call(function, facts, args, kwargs, data, constants, overwrites(facts, kwargs))

    def of_own_graph(self, out: Any) -> None:
        """Record the results of functions of leaves that the model created."""
        for t in iter_tensors(out):
            if t.requires_grad:
                self._of_own_graphs[t] = True

    def _read(self, values: Any, data: list[Tensor], constants: list[Tensor]) -> Any:
        of_tensors, others = _tensor_positions(tuple(map(type, values)))
        for i in of_tensors:
            t = values[i]
            if not t.requires_grad:
                constants.append(t)
                continue
            known = self._by_id.get(id(t))
            if known is not None and known() is t:
                data.append(t)
            else:
                others = (*others, i)
        return self._others(values, others, data, constants) if others else values

    def _others(self, values: Any, places: tuple[int, ...], data: list[Tensor], constants: list[Tensor]) -> Any:
        read = list(values)
        for i in places:
            read[i] = self._other(values[i], data, constants)
        return type(values)(read)

    def _other(self, value: Any, data: list[Tensor], constants: list[Tensor]) -> Any:
        kind = type(value)
        if isinstance(value, Tensor) and (isinstance(value, Parameter) or self._is_own(value)):
            constants.append(value.detach())
            return constants[-1]
        if kind is list or kind is tuple:
            return self._read(value, data, constants)
        for t in iter_tensors(value):
            (data if t.requires_grad else constants).append(t)
            if t.requires_grad and not self._seen(t):
                self.strangers.append(t)
        return value

    def _is_own(self, t: Tensor) -> bool:
        """Return whether the tensor requires a gradient by a graph that is not a part of the explanation."""
        if not self._all_known or not t.requires_grad or self._seen(t):
            return False
        own = t.grad_fn is None or t in self._of_own_graphs or not self._of_the_inputs(t)
        self.met_own_graph |= own
        return own

    def _of_the_inputs(self, t: Tensor) -> bool:
        """Return whether the tensor's graph leads to a registered leaf; that of a weight computed from parameters does not."""
        seen = {id(leaf) for known in self._by_id.values() if (leaf := known()) is not None and leaf.is_leaf}
        open_ends: list[Any] = [t.grad_fn]
        met: set[Any] = set()
        for node in open_ends:  # extended in the loop
            if id(getattr(node, "variable", None)) in seen:
                return True
            new = [following for following, _ in node.next_functions if following is not None and following not in met]
            met.update(new)
            open_ends += new
        self._of_own_graphs[t] = True
        return False

    def _seen(self, t: Tensor) -> bool:
        known = self._by_id.get(id(t))
        return known is not None and known() is t
