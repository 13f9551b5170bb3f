"""Facts about torch functions: one name for all spellings, and properties that do not depend on the arguments."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from whence.lrp.ops import function_names as words

REFLECTED_OPERATORS = {"__radd__": "add", "__rmul__": "mul", "__rsub__": "rsub", "__rdiv__": "rdiv", "__rtruediv__": "rdiv",
             "__rpow__": "rpow", "__rmatmul__": "rmatmul"}  # fmt: skip
VALUE_PROPERTIES = {"T", "H", "mT", "mH", "data", "real", "imag"}  # properties that are tensors themselves
SYNONYMS = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "idiv": "div", "ipow": "pow",
            "truediv": "div", "divide": "div", "true_divide": "div", "multiply": "mul", "subtract": "sub",
            "negative": "neg", "absolute": "abs", "concat": "cat", "concatenate": "cat", "movedim": "moveaxis",
            "swapaxes": "transpose", "swapdims": "transpose", "clip": "clamp", "linalg_matmul": "matmul",
            "max_pool1d_with_indices": "max_pool1d", "max_pool2d_with_indices": "max_pool2d",
            "max_pool3d_with_indices": "max_pool3d", "adaptive_max_pool1d_with_indices": "adaptive_max_pool1d",
            "adaptive_max_pool2d_with_indices": "adaptive_max_pool2d", "special_erf": "erf",
            "special_expit": "sigmoid", "special_softmax": "softmax", "special_log_softmax": "log_softmax",
            "special_expm1": "expm1",
            "adaptive_max_pool3d_with_indices": "adaptive_max_pool3d", "special_log1p": "log1p"}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class FunctionFacts:
    """Facts about a torch function that do not depend on its arguments."""

    name: str  # the same for all spellings
    asks: bool  # only reads an attribute of a tensor other than its rearranged values (x.mT), or makes a tensor like it
    overwrites: bool  # modifies its first argument in place, as its name says
    moves: bool  # only rearranges values
    pointwise: bool  # each value of the result is a function of one value of each argument
    nonnegative: bool  # the result always is nonnegative
    keeps_sign: bool  # the result is nonnegative if all arguments are
    clips: bool  # clips to bounds among its arguments
    passes_on: bool  # its results may inherit facts


@lru_cache(maxsize=4096)
def function_facts(function: Callable[..., Any]) -> FunctionFacts:
    """Return the facts about a function, cached.

    >>> function_facts(torch.Tensor.relu_).name, function_facts(torch.Tensor.relu_).overwrites
    ('relu', True)
    """
    name = function_name(function)
    return FunctionFacts(
        name,
        asks=(getattr(function, "__name__", "") in ("__get__", "__set__") and name not in VALUE_PROPERTIES)
        or name in words.FRESH,
        overwrites=_overwrites(getattr(function, "__name__", "")),
        moves=name in words.MOVES_VALUES,
        pointwise=name in words.POINTWISE,
        nonnegative=name in words.NONNEGATIVE,
        keeps_sign=name in words.KEEPS_SIGN,
        clips=name in words.CLIPS,
        passes_on=any(name in kind for kind in (words.POINTWISE, words.NONNEGATIVE, words.KEEPS_SIGN, words.CLIPS)),
    )


def function_name(function: Callable[..., Any]) -> str:
    """Return the one name of all spellings: `torch.add`, `Tensor.add_`, `+` and `+=` are "add"; `torch.ops` keep their own.

    >>> function_name(torch.nn.functional.relu_)
    'relu'
    """
    if isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return f"torch.ops.{function}"
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):  # a property of Tensor, such as x.mT
        return function.__self__.__name__  # type: ignore[attr-defined]
    if name in REFLECTED_OPERATORS:
        return REFLECTED_OPERATORS[name]
    name = name.strip("_")
    return SYNONYMS.get(name, name)


def selector_name(function: Callable[..., Any]) -> str | None:
    """Return the expression that names the function as a selector, or None if it has no public name."""
    name = getattr(function, "__name__", "")
    prefix, _, rest = name.partition("_")
    places = [("torch", torch), ("torch.nn.functional", torch.nn.functional), ("torch.Tensor", Tensor)]
    found = [(f"{where}.{name}", getattr(holder, name, None)) for where, holder in places]
    if prefix.strip("_") in ("special", "fft", "linalg", "sparse"):
        found.append((f"torch.{prefix.strip('_')}.{rest}", getattr(getattr(torch, prefix.strip("_")), rest, None)))
    home = getattr(function, "__module__", None) or ""
    found.append((f"{home}.{name}", getattr(sys.modules.get(home), name, None)))
    same = function_name(function)
    return next((named for named, other in found if callable(other) and function_name(other) == same), None)


def _overwrites(name: str) -> bool:
    if name.startswith("__") and name.endswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name.strip("_") in SYNONYMS)
    return name.endswith("_")
