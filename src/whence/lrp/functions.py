"""Torch functions as a function mode meets them: one name for all spellings, and what a call reads and writes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

REFLECTED = {"__radd__": "add", "__rmul__": "mul", "__rsub__": "rsub", "__rdiv__": "rdiv", "__rtruediv__": "rdiv",
             "__rpow__": "rpow", "__rmatmul__": "rmatmul"}  # fmt: skip
VALUES = {"T", "H", "mT", "mH", "data", "real", "imag"}  # properties that are tensors themselves
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


def function_name(function: Callable[..., Any]) -> str:
    """The one name of all spellings: `torch.add`, `Tensor.add_`, `+` and `+=` are "add". Operators of `torch.ops` keep theirs.

    >>> function_name(torch.nn.functional.relu_)
    'relu'
    """
    if isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return f"torch.ops.{function}"
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):  # a property of Tensor, such as x.mT
        return function.__self__.__name__  # type: ignore[attr-defined]
    if name in REFLECTED:
        return REFLECTED[name]
    name = name.strip("_")
    return SYNONYMS.get(name, name)


def overwrites(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether the call writes its result into its first argument."""
    name = getattr(function, "__name__", "")
    dunder = name.startswith("__") and name.endswith("__")
    if dunder:
        return name == "__setitem__" or (name.startswith("__i") and name.strip("_") in SYNONYMS)
    return name.endswith("_") or bool(kwargs.get("inplace"))


@dataclass(frozen=True)
class Call:
    """One call of a torch function. Parameters among the arguments are already read as constants."""

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data: tuple[Tensor, ...]  # the tensors that depend on the input
    overwrites: bool = False  # the first argument

    def run(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    def out_of_place(self) -> "Call":
        """The same call, its result in a tensor of its own."""
        function = self.function

        def on_a_copy(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            copy = target.clone()
            function(copy, *args, **kwargs)
            return copy

        on_a_copy.__name__ = getattr(function, "__name__", "")
        return replace(self, function=on_a_copy, overwrites=False)

    def bind(self, names: str, **defaults: Any) -> list[Any]:
        """The arguments in the order of `names`, by position, keyword (`self` for `input`) or default."""
        keys = names.split()
        by_keyword = {("input" if key == "self" else key): value for key, value in self.kwargs.items()}
        given = dict(zip(keys, self.args, strict=False)) | by_keyword
        return [given[key] if key in given else defaults[key] for key in keys]

    def run_with(self, replacement: dict[int, Tensor]) -> Any:
        """The same call with tensors replaced by identity: {id(old): new}."""
        args, kwargs = mapped(lambda t: replacement.get(id(t), t), self.args, self.kwargs)
        return self.function(*args, **kwargs)


def constant_parameters(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments with every `nn.Parameter` read as a constant: nothing on the user's model has to be frozen and restored."""
    return mapped(lambda t: t.detach() if isinstance(t, nn.Parameter) else t, args, kwargs)


def the_parameter_itself(out: Any, given: Any, read: Any) -> Any:
    """`parameter.to(device)` returns the parameter itself where nothing moves: return it rather than its detached alias,
    because some models assign the result back."""
    if not isinstance(out, Tensor) or out.requires_grad:  # a constant does not
        return out
    return next((t for t, constant in zip(tensors(given), tensors(read), strict=True) if constant is out), out)


def asks_about(function: Callable[..., Any]) -> bool:
    """Whether the call reads or sets an attribute of a tensor, other than its values moved about (x.mT)."""
    return getattr(function, "__name__", "") in ("__get__", "__set__") and function_name(function) not in VALUES


def spelling(function: Callable[..., Any]) -> str:
    """How a user can name the function as a selector."""
    name = getattr(function, "__name__", "")
    prefix, _, rest = name.partition("_")
    places = [("torch", torch), ("torch.nn.functional", torch.nn.functional), ("torch.Tensor", Tensor)]
    if prefix in ("special", "fft", "linalg") and rest:
        places, name = [(f"torch.{prefix}", getattr(torch, prefix))], rest
    return next((f"{where}.{name}" for where, holder in places if name and hasattr(holder, name)), "that_function")


def mapped(change: Callable[[Tensor], Any], args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return tuple(_mapped(change, a) for a in args), {k: _mapped(change, v) for k, v in kwargs.items()}


def _mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)([_mapped(change, v) for v in value])
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a nest of lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            yield from tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)


def depends(args: tuple, kwargs: dict) -> tuple[Tensor, ...]:
    """The tensors among the arguments that depend on the explained input."""
    return tuple(t for t in tensors((args, kwargs)) if t.requires_grad)
