"""Which rule where: an ordered list of selectors and rules, first match wins."""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from whence.errors import RuleError, SelectorError, suggestion
from whence.lrp.functions import function_name
from whence.lrp.rules import Constant, FunctionRule, InputRule, LinearRule, Rule
from whence.lrp.scope import Scope


class InputLayer:
    """The selector of every linear map that touches the explained input, wherever the network has them."""

    def __repr__(self) -> str:
        return "input_layer"


input_layer = InputLayer()

Selector = str | type[nn.Module] | Callable[..., Any] | InputLayer | tuple[Any, ...]


@dataclass(frozen=True, repr=False)
class Composite:
    """Selectors and rules in order. Entries of a user's own mapping must match something; those of a preset need not.

    >>> {"features.0": whence.ZBox(0, 1)} | whence.presets.epsilon_plus()     # one's own rules in front of a preset
    """

    entries: tuple[tuple[Selector, Rule], ...] = ()
    required: int = 0  # the first so many entries must match
    label: str = field(default="", compare=False)  # how it was asked for

    def __repr__(self) -> str:
        return self.label or "{" + ", ".join(f"{describe(selector)}: {rule!r}" for selector, rule in self.entries) + "}"

    @classmethod
    def of(cls, rules: "Mapping[Selector, Rule] | Composite") -> "Composite":
        if isinstance(rules, Composite):
            return rules
        if not isinstance(rules, Mapping):
            raise RuleError(f"rules must be a mapping of selectors to rules or a preset, not {type(rules).__name__}")
        for selector, rule in rules.items():
            if not isinstance(rule, Rule):
                hint = "; write it with parentheses" if isinstance(rule, type) else ""
                raise RuleError(f"the rule of selector {describe(selector)} is {rule!r}, not a rule of whence{hint}")
            _check_selector(selector)
        return cls(tuple(rules.items()), len(rules))

    def __ror__(self, front: "Mapping[Selector, Rule]") -> "Composite":
        own = Composite.of(front)
        return Composite(own.entries + self.entries, own.required + self.required, f"{own!r} | {self!r}")


@dataclass
class Matcher:
    """Finds the rule of each function call and remembers which selectors ever matched."""

    composite: Composite
    scope: Scope
    _matched: set[int] = field(default_factory=set)
    _known: dict[tuple, Rule | None] = field(default_factory=dict)

    def linear_rule(self, function: str, touches_input: bool) -> LinearRule | InputRule | Constant | None:
        rule = self._find(function, touches_input, LinearRule | InputRule | Constant)
        if isinstance(rule, InputRule) and not touches_input:
            raise RuleError(
                f"{type(rule).__name__} belongs to the layer that touches the input, but '{self.scope.path}' reads hidden "
                "activations (or the input reached it by way of relevance_rules, which explain() does not need)"
            )
        return rule  # type: ignore[return-value]

    def function_rule(self, function: str) -> FunctionRule | None:
        return self._find(function, False, FunctionRule)  # type: ignore[return-value]

    def check_all_matched(self) -> None:
        """Raise for the first of the user's selectors that no function call met."""
        for position, (selector, rule) in enumerate(self.composite.entries[: self.composite.required]):
            if position in self._matched:
                continue
            kind = "nonlinear function" if isinstance(rule, FunctionRule) else "linear map"
            near = ""
            if isinstance(selector, str):
                near = suggestion(selector, self.scope.known_names)
            earlier = " that no earlier selector took" if position else ""
            raise SelectorError(f"selector {describe(selector)} matched no {kind} of the model{earlier}{near}")

    def _find(self, function: str, touches_input: bool, kind: Any) -> Rule | None:
        key = (function, touches_input, kind is FunctionRule, *map(id, self.scope.modules))
        if key not in self._known:
            self._known[key] = self._search(function, touches_input, kind)
        return self._known[key]

    def _search(self, function: str, touches_input: bool, kind: Any) -> Rule | None:
        for position, (selector, rule) in enumerate(self.composite.entries):
            if isinstance(rule, kind) and self._matches(selector, function, touches_input):
                self._matched.add(position)
                return rule
        return None

    def _matches(self, selector: Selector, function: str, touches_input: bool) -> bool:
        if isinstance(selector, tuple):
            return any(self._matches(one, function, touches_input) for one in selector)
        if isinstance(selector, InputLayer):
            return touches_input
        if selector == "*":  # also what runs in no module
            return True
        if isinstance(selector, str):
            paths = (name for module in self.scope.modules for name in self.scope.names(module))
            return any(fnmatch.fnmatchcase(path, selector) for path in paths)
        if isinstance(selector, type):
            return any(isinstance(module, selector) for module in self.scope.modules)
        return function_name(selector) == function


def describe(selector: Selector) -> str:
    if isinstance(selector, tuple):
        return " or ".join(map(describe, selector))
    if isinstance(selector, str | InputLayer):
        return repr(selector)
    return getattr(selector, "__name__", repr(selector))


def _check_selector(selector: Selector) -> None:
    if isinstance(selector, tuple):
        if not selector:
            raise SelectorError("an empty tuple selects nothing")
        for one in selector:
            _check_selector(one)
    elif isinstance(selector, type) and not issubclass(selector, nn.Module):
        raise SelectorError(
            f"selector {selector.__name__} is no torch.nn.Module class; give a path, a module class or a torch function"
        )
    elif not (isinstance(selector, str | InputLayer) or callable(selector)):
        raise SelectorError(f"selector {selector!r} is neither a module path, a module class nor a torch function")
