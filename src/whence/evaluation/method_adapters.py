"""Methods by name, and what else explains, ready to be compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from whence.errors import RuleError
from whence.evaluation.case import ExternalMethod, MethodAdapter
from whence.evaluation.random_baseline import Random
from whence.lrp.engine.prepared_model import PreparedModel
from whence.methods.registry import Method, resolve_method

Methods = Mapping[str, Method | str | ExternalMethod] | Sequence[Method | str] | Method | str


def make_adapters(model: Any, methods: Methods) -> list[MethodAdapter]:
    """Each method with its name: a mapping of names, or a list of methods or their short names; functions
    `(model, inputs, target) → relevance` of other libraries only by a name."""
    given = methods if isinstance(methods, Mapping) else _by_name([methods] if _is_single(methods) else methods)  # type: ignore
    if not given:
        raise RuleError("no methods to compare; give some, as in methods=['lrp', 'gradient_times_input']")
    return [MethodAdapter(name, _method(method), PreparedModel(model, lasting=True)) for name, method in given.items()]


def _is_single(methods: Any) -> bool:
    return isinstance(methods, str) or hasattr(methods, "explanations")


def _by_name(methods: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in methods:
        name = method if isinstance(method, str) else getattr(method, "name", None)
        if name is None:
            raise RuleError(f"{method!r} has no name; give a dict, as in methods={{'theirs': {method!r}}}")
        twin = 2
        unique = name
        while unique in found:
            unique, twin = f"{name} {twin}", twin + 1
        found[unique] = method
    return found


def _method(method: Any) -> Any:
    """Of whence, or a function of another library's."""
    if method == Random.name:
        return Random()
    if callable(method) and not hasattr(method, "explanations") and not isinstance(method, type):
        return method
    return resolve_method(method)  # type: ignore[arg-type]
