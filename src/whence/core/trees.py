"""Trees (a tensor, a tuple of tensors, or a dict of tensors) of inputs and relevance, and short reprs of values."""

from collections.abc import Callable, Mapping
from dataclasses import Field, fields, is_dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor

Tree = Any  # a tensor, a tuple of tensors or a dict of tensors: the structure of inputs and relevance


def named_leaves(nest: Tree, name: str = "") -> dict[str, Tensor]:
    """Return the tensors of a tree by name: "relevance", "relevance.1", "layers.features.28"."""
    if isinstance(nest, Tensor):
        return {name: nest}
    items = nest.items() if isinstance(nest, dict) else enumerate(nest or ())
    found: dict[str, Tensor] = {}
    for key, value in items:
        found |= named_leaves(value, f"{name}.{key}" if name else str(key))
    return found


def with_leaves(nest: Tree, named: Mapping[str, Tensor], name: str = "") -> Tree:
    """Return the tree with other tensors, named as by `named_leaves`."""
    if isinstance(nest, Tensor):
        return named[name]
    if isinstance(nest, dict):
        return {key: with_leaves(value, named, f"{name}.{key}" if name else str(key)) for key, value in nest.items()}
    return nest if nest is None else tuple(with_leaves(value, named, f"{name}.{i}") for i, value in enumerate(nest))


def map_leaves(change: Callable[[Tensor], Any], nest: Tree) -> Tree:
    """Return the tree with a function applied to each tensor."""
    if isinstance(nest, Tensor):
        return change(nest)
    if isinstance(nest, dict):
        return {key: map_leaves(change, value) for key, value in nest.items()}
    return nest if nest is None else tuple(map_leaves(change, value) for value in nest)


def short_repr(value: Any) -> str:
    """Return a one-line repr of a method or rule, with tensors as their shapes and without default arguments.

    >>> short_repr(whence.ExpectedGradients(torch.rand(100, 784)))
    'ExpectedGradients(background=tensor[100, 784])'
    """
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and shape:
        return f"{'tensor' if isinstance(value, Tensor) else 'array'}{list(shape)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{short_repr(key)}: {short_repr(v)}' for key, v in value.items())}}}"
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return value.__name__
    if type(value) in (list, tuple):
        return f"({', '.join(map(short_repr, value))})"
    if not is_dataclass(value) or not vars(type(value))["__dataclass_params__"].repr:
        return repr(value)
    shown = ((f, getattr(value, f.name)) for f in fields(value) if f.repr)
    return f"{type(value).__name__}({', '.join(f'{f.name}={short_repr(v)}' for f, v in shown if not _is_default(f, v))})"


def _is_default(f: Field, value: Any) -> bool:
    return value is f.default or (isinstance(value, int | float | str) and value == f.default)
