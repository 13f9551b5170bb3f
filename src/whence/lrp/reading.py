"""Reading the arguments of a call: parameters as constants, and what depends on the input apart from what does not."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from whence.lrp.calls import INERT, Call, tensors
from whence.lrp.functions import Facts
from whence.lrp.inheritance import Known


@lru_cache(maxsize=4096)
def _places(kinds: tuple[type, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where tensors stand among arguments of these types, and where else some may be found."""
    others = tuple([i for i, kind in enumerate(kinds) if kind not in INERT and kind is not Tensor])
    return tuple([i for i, kind in enumerate(kinds) if kind is Tensor]), others


class Reader:
    """Makes calls of torch functions and their arguments.

    `all_known`: the inputs are, so that any other leaf is a constant; else a leaf that was not seen is an input.
    """

    def __init__(self, known: Known, all_known: bool):
        self._by_id, self._all_known = known.by_id, all_known
        self.strangers: list[Tensor] = []  # depend on something and were not seen, in the call read last

    def call(self, function: Callable[..., Any], facts: Facts, args: tuple, kwargs: dict[str, Any]) -> Call:
        data: list[Tensor] = []
        constants: list[Tensor] = []
        self.strangers.clear()
        args = self._read(args, data, constants)
        if kwargs:
            values = tuple(kwargs.values())
            read = self._read(values, data, constants)
            kwargs = kwargs if read is values else dict(zip(kwargs, read, strict=True))
        return Call(function, facts, args, kwargs, data, constants, facts.overwrites or bool(kwargs.get("inplace")))

    def _read(self, values: Any, data: list[Tensor], constants: list[Tensor]) -> Any:
        of_tensors, others = _places(tuple(map(type, values)))
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
        if kind is Parameter or (isinstance(value, Tensor) and self._is_constant(value)):
            constants.append(value.detach())
            return constants[-1]
        if kind is list or kind is tuple:
            return self._read(value, data, constants)
        for t in tensors(value):
            (data if t.requires_grad else constants).append(t)
            if t.requires_grad and not self._seen(t):
                self.strangers.append(t)
        return value

    def _is_constant(self, t: Tensor) -> bool:
        """Whether it is to be read as one though it requires a gradient."""
        unknown_leaf = t.requires_grad and t.grad_fn is None and self._all_known and not self._seen(t)
        return unknown_leaf or isinstance(t, Parameter)

    def _seen(self, t: Tensor) -> bool:
        known = self._by_id.get(id(t))
        return known is not None and known() is t
