"""What the result of a call is known by from its arguments: that it is not negative, and what goes beside it."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Number

import torch
from torch import Tensor

from whence.lrp.functions import Call, tensors
from whence.lrp.operations import ARITHMETIC, KEEPS_SIGN, MOVES_VALUES, NONNEGATIVE, POINTWISE, PROPORTIONAL
from whence.lrp.propagation import Companion


@dataclass(frozen=True)
class Origin:
    """The tensor that another is a function of, value by value."""

    tensor: weakref.ref[Tensor]
    version: int  # of the tensor then
    proportional: bool  # the function is a constant factor

    def same_as(self, other: "Origin") -> bool:
        tensor = self.tensor()
        return tensor is not None and tensor is other.tensor() and self.version == other.version


def origin_of(t: Tensor, known: Origin | None) -> Origin:
    """Everything is a function of itself."""
    return Origin(weakref.ref(t), t._version, True) if known is None else known


def origin(call: Call, of: Callable[[Tensor], Origin | None]) -> Origin | None:
    """Of which one tensor the result is a function, value by value."""
    combines = call.name in ("add", "sub", "rsub", "mul", "div")
    if not combines and call.name not in POINTWISE:
        return None
    found = [origin_of(t, of(t)) for t in call.data]
    if not all(found[0].same_as(o) for o in found):
        return None
    return replace(found[0], proportional=_homogeneous(call) and all(o.proportional for o in found))


def _homogeneous(call: Call) -> bool:
    """Whether the result grows in proportion with the data, constants left as they are."""
    if call.name == "mul":
        return len(call.data) == 1
    if call.name == "div":
        return len(call.data) == 1 and call.bind("input other")[0].requires_grad
    if call.name in ("add", "sub", "rsub"):
        return len(call.data) == 2
    return call.name in PROPORTIONAL


def stays_nonnegative(call: Call, nonnegative: Callable[[Tensor], bool]) -> bool:
    """Whether the result is known not to be negative."""
    if call.name in NONNEGATIVE:
        return True
    if call.name in ("hardtanh", "clamp", "clamp_min"):
        low = call.bind("input min_val" if call.name == "hardtanh" else "input min", min_val=-1.0, min=None)[1]
        return isinstance(low, int | float) and low >= 0
    if call.name not in KEEPS_SIGN or call.kwargs.get("mode") == "bicubic":
        return False
    operands = list(tensors((call.args, call.kwargs)))
    if call.name not in ARITHMETIC:
        return all(nonnegative(t) for t in operands if t.is_floating_point())
    numbers = [n for n in (*call.args, *call.kwargs.values()) if isinstance(n, Number)]
    return all(n >= 0 for n in numbers) and all(nonnegative(t) for t in operands if t.dtype != torch.bool)  # type: ignore


def companion(call: Call, of: Callable[[Tensor], Companion | None]) -> Companion | None:
    """What goes beside the result, if the result is the input moved about, padded, shifted or scaled value by value."""
    known = {id(t): c for t in call.data if (c := of(t)) is not None}
    if len(known) != len({id(t) for t in call.data}):
        return None
    if call.name in ("add", "sub", "rsub", "mul", "div") and len(call.data) == 1:
        (beside,) = known.values()
        shapes = [t.shape for t in tensors((call.args, call.kwargs))]
        return beside if torch.broadcast_shapes(*shapes) == beside.zeros.shape else None
    pads = call.name in ("cat", "stack", "pad")
    if call.overwrites or not (pads or call.name in MOVES_VALUES):
        return None
    zeros = call.run_with({key: c.zeros for key, c in known.items()})
    if not isinstance(zeros, Tensor):
        return None
    if not pads and all(c.present is None for c in known.values()):
        return Companion(zeros)
    with torch.no_grad():
        ones = {key: torch.ones_like(c.zeros) if c.present is None else c.present for key, c in known.items()}
        values = {id(t): torch.zeros_like(t) for t in tensors((call.args, call.kwargs)) if t.is_floating_point()}
        present = call.run_with(values | ones) - call.run_with(
            values | {key: torch.zeros_like(c.zeros) for key, c in known.items()}
        )
    return Companion(zeros, None if bool((present == 1).all()) else present)
