"""Adapters that give methods of whence and functions of other libraries the same interface."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whence.errors import RuleError, value_repr
from whence.evaluation.evaluation_batch import ExternalMethod, MethodAdapter
from whence.evaluation.random_baseline import Random
from whence.lrp.engine.prepared_model import PreparedModel
from whence.methods.registry import Method, resolve_method

Methods = Mapping[str, Method | str | ExternalMethod] | Sequence[Method | str] | Method | str


def make_adapters(model: Any, methods: Methods) -> list[MethodAdapter]:
    """Return an adapter for each method.

    `methods` is a mapping from names to methods, or a list of methods or their short names; functions
    `(model, inputs, target) → relevance` of other libraries are accepted in a mapping only.
    """
    given = name_methods(methods)
    if not given:
        raise RuleError("no methods given; pass at least one, as in methods=['lrp', 'gradient_times_input']")
    return [MethodAdapter(name, _method(method), PreparedModel(model, lasting=True)) for name, method in given.items()]


def name_methods(methods: Methods) -> dict[str, Any]:
    """Return the methods by name; of two with one name, the second is numbered."""
    if isinstance(methods, Mapping):
        for name, method in methods.items():
            if not isinstance(name, str):
                raise RuleError(f"the name of a method is {value_repr(name)}; expected a str")
            if method is None:
                raise RuleError(f"method {name!r} is None; expected a method, a name or a function")
        return dict(methods)
    if not _is_single(methods) and not isinstance(methods, Iterable):
        raise RuleError(
            f"methods={value_repr(methods)}; expected a method, names of methods, a list of methods, or a dict from names to "
            "methods and functions, as in methods={'theirs': theirs}"
        )
    return _by_name([methods] if _is_single(methods) else methods)  # type: ignore[arg-type]


def _is_single(methods: Any) -> bool:
    return isinstance(methods, str) or hasattr(methods, "explanations")


def _by_name(methods: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in methods:
        name = method if isinstance(method, str) else getattr(method, "name", None)
        if name is None:
            raise RuleError(
                f"{value_repr(method)} has no name; pass a dict from names to methods, as in methods={{'theirs': theirs}}"
            )
        twin = 2
        unique = name
        while unique in found:
            unique, twin = f"{name} {twin}", twin + 1
        found[unique] = method
    return found


def _method(method: Any) -> Any:
    """Return a method of whence, or the function of another library unchanged."""
    if method == Random.name:
        return Random()
    if callable(method) and not hasattr(method, "explanations") and not isinstance(method, type):
        return method
    return resolve_method(method)  # type: ignore[arg-type]
