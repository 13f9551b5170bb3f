"""Composites: ordered lists of selectors and rules, of which the first match applies."""

import fnmatch
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from whence.core.argument_checks import check_arguments
from whence.core.public_names import equivalent
from whence.errors import RuleError, SelectorError, suggest
from whence.lrp.ops.function_facts import function_name
from whence.lrp.rules.protocol import check_rule, is_input_rule
from whence.lrp.rules.rules import OWN_RULES, Constant, FunctionRule, InputRule, LinearRule, Rule
from whence.lrp.torch_compat.module_tracker import ModulePlace

GLOB_CHARACTERS = frozenset("*?[")  # of shell globs


class InputLayer:
    """Selector of every linear map that touches the explained input, in any module."""

    def __repr__(self) -> str:
        return "input_layer"


input_layer = InputLayer()


class PictureConvolution:
    """Selector of the convolution that touches the explained input, if it reads three channels in windows that overlap."""

    def __repr__(self) -> str:
        return "picture_convolution"


picture_convolution = PictureConvolution()

Selector = str | nn.Module | type[nn.Module] | Callable[..., Any] | InputLayer | PictureConvolution | tuple[Any, ...]


@dataclass(frozen=True, repr=False)
class Composite:
    """An ordered list of selectors and rules. Entries of a user's mapping must match a call; those of a preset need not.

    >>> {"features.0": whence.ZBox(0, 1)} | whence.presets.epsilon_plus()     # user-defined rules prepended to a preset

    Args:
        entries: Pairs of a selector and a rule; the first match applies. A selector is a module path or glob ("features.*"), a
            module, a module class, a torch function, `input_layer`, or a tuple of these.
        required: Number of leading entries that must match a call.
        label: Text shown by `repr`.
    """

    entries: tuple[tuple[Selector, Rule], ...] = ()
    required: int = 0
    label: str = field(default="", compare=False)

    def __post_init__(self):
        for selector, rule in self.entries:
            check_rule(rule, selector_repr(selector), OWN_RULES)
            _check_selector(selector)

    def __repr__(self) -> str:
        return self.label or "{" + ", ".join(f"{selector_repr(selector)}: {rule!r}" for selector, rule in self.entries) + "}"

    @classmethod
    @check_arguments
    def of(cls, rules: "Mapping[Selector, Rule] | Composite") -> "Composite":
        if isinstance(rules, Composite):
            return rules
        if not isinstance(rules, Mapping):
            name = getattr(rules, "__name__", "")
            here = equivalent(name)
            raise RuleError(
                f"rules must be a mapping of selectors to rules or a preset, got {type(rules).__name__}"
                + (f"; pass {here}()" if here else "")
            )
        return cls(tuple(rules.items()), len(rules))

    def without_input_rules(self, reason: str) -> "Composite":
        """Return the composite without rules of the input layer, whose relevance is not of the form x · gradient.

        Raise `RuleError`, with the reason, if a user-defined entry has one.
        """
        for _, rule in self.entries[: self.required]:
            if is_input_rule(rule):
                raise RuleError(f"{type(rule).__name__} is a rule of the input layer, {reason}")
        return Composite(tuple(entry for entry in self.entries if not is_input_rule(entry[1])), self.required, self.label)

    def __or__(self, front: "Mapping[Selector, Rule]") -> "Composite":
        """Return this composite with user-defined rules in front, on whichever side of | they stand."""
        return self.__ror__(front) if isinstance(front, Mapping) else NotImplemented

    def __ror__(self, front: "Mapping[Selector, Rule]") -> "Composite":
        own = Composite.of(front)
        return Composite(own.entries + self.entries, own.required + self.required, f"{own!r} | {self!r}")


def has_input_rule(composite: Composite) -> bool:
    """Return whether a composite has a rule of the input layer, other than that of color pictures."""
    return any(is_input_rule(rule) and selector is not picture_convolution for selector, rule in composite.entries)


def _selects_classes(selector: Selector) -> bool:
    return all(isinstance(atom, type) for atom in _flatten_selector(selector))


class SelectorMatch:
    """The calls that one selector matches: by module, by function, or all."""

    def __init__(self, selector: Selector):
        atoms = list(_flatten_selector(selector))
        patterns = [atom for atom in atoms if isinstance(atom, str) and atom != "*"]
        # the most common form: "*mixer.x_proj"
        self._ends = tuple(p[1:] for p in patterns if p.startswith("*") and not GLOB_CHARACTERS.intersection(p[1:]))
        others = [fnmatch.translate(p) for p in patterns if not (p.startswith("*") and p[1:] in self._ends)]
        self._paths = re.compile("|".join(others)) if others else None
        self._classes = tuple(atom for atom in atoms if isinstance(atom, type))
        self._instances = tuple(atom for atom in atoms if isinstance(atom, nn.Module))
        self.modules = bool(patterns or self._classes or self._instances)
        self.everything = "*" in atoms  # including calls outside all modules
        self.at_input = any(isinstance(atom, InputLayer) for atom in atoms)
        self.at_pictures = any(isinstance(atom, PictureConvolution) for atom in atoms)
        self.functions = {function_name(atom) for atom in atoms if callable(atom) and not isinstance(atom, type | nn.Module)}

    def function(self, function: str, touches_input: bool, reads_picture: bool) -> bool:
        """Return whether the selector matches a call of the function, wherever in the model."""
        at_input = (touches_input and self.at_input) or (reads_picture and self.at_pictures)
        return self.everything or function in self.functions or at_input

    def module(self, place: ModulePlace) -> bool:
        for name in place.names:
            if name.endswith(self._ends) or (self._paths is not None and self._paths.match(name)):
                return True
        if any(place.module is instance for instance in self._instances):
            return True
        return bool(self._classes) and isinstance(place.module, self._classes)


class Matcher:
    """Matcher of rules to function calls, which caches its decisions and records the selectors that matched."""

    def __init__(self, composite: Composite):
        self._composite = composite
        self._entries = [(SelectorMatch(selector), rule) for selector, rule in composite.entries]
        self._by_module = [(position, picks) for position, (picks, _) in enumerate(self._entries) if picks.modules]
        self._matched: set[int] = set()
        self._decided: dict[Hashable, Any] = {}

    def linear_rule(
        self, place: ModulePlace, function: str, touches_input: bool, reads_picture: bool = False
    ) -> LinearRule | InputRule | Constant | None:
        key = (self._around(place), function, touches_input, reads_picture)
        if key not in self._decided:
            kinds = LinearRule | InputRule | Constant
            self._decided[key] = self._search(place, function, touches_input, kinds, reads_picture)
        return self._decided[key]

    def function_rule(self, place: ModulePlace, function: str) -> FunctionRule | None:
        key = (self._around(place), function)
        if key not in self._decided:
            self._decided[key] = self._search(place, function, False, FunctionRule)
        return self._decided[key]

    def check_all_matched(self, modules: Mapping[str, nn.Module]) -> None:
        """Raise `SelectorError` for the first user-defined selector that no function call matched.

        Module classes may match nothing, so that one set of rules serves many networks; paths and functions must match.
        """
        for position, (selector, rule) in enumerate(self._composite.entries[: self._composite.required]):
            if position in self._matched or _selects_classes(selector):
                continue
            kind = "nonlinear function" if isinstance(rule, FunctionRule) else "linear map"
            near = suggest(selector, modules) if isinstance(selector, str) else ""
            if isinstance(selector, str) and selector in modules and not position:
                near = f"; it is of type {type(modules[selector]).__name__}, which calls none"
                if isinstance(modules[selector], nn.Embedding | nn.EmbeddingBag):
                    near = "; it looks up the vectors that are explained: give the layer behind it a rule"
            earlier = " that an earlier selector did not match" if position else ""
            raise SelectorError(f"selector {selector_repr(selector)} matched no {kind} of the model{earlier}{near}")

    def _search(
        self, place: ModulePlace, function: str, touches_input: bool, kind: Any, reads_picture: bool = False
    ) -> Rule | None:
        around = self._around(place)
        for position, (picks, rule) in enumerate(self._entries):
            picked = position in around or picks.function(function, touches_input, reads_picture)
            if picked and isinstance(rule, kind):
                self._matched.add(position)
                if is_input_rule(rule) and not touches_input:
                    raise _misplaced_error(rule, place)
                return rule
        return None

    def _around(self, place: ModulePlace) -> frozenset[int]:
        """Return the entries that match this module or an enclosing one: a path or class selects all calls inside it."""
        around = place.decided.get(self)
        if around is None:
            here = frozenset([position for position, picks in self._by_module if picks.module(place)])
            around = here if place.outer is None else here | self._around(place.outer)
            place.decided[self] = around
        return around


def _misplaced_error(rule: Rule, place: ModulePlace) -> RuleError:
    return RuleError(
        f"{type(rule).__name__} belongs to the layer that touches the input, but '{place.path}' reads hidden activations "
        "(or it runs within relevance_rules; use whence.explain for rules of the input layer)"
    )


def _flatten_selector(selector: Selector) -> Iterator[Selector]:
    if not isinstance(selector, tuple):
        yield selector
        return
    for one in selector:
        yield from _flatten_selector(one)


def selector_repr(selector: Selector) -> str:
    if isinstance(selector, tuple):
        return " or ".join(map(selector_repr, selector))
    if isinstance(selector, str | InputLayer | PictureConvolution):
        return repr(selector)
    if isinstance(selector, nn.Module):
        return f"the module {type(selector).__name__}"
    return getattr(selector, "__name__", repr(selector))


def _check_selector(selector: Selector) -> None:
    if isinstance(selector, tuple):
        if not selector:
            raise SelectorError("a selector is an empty tuple, which matches nothing; remove it or list selectors in it")
        for one in selector:
            _check_selector(one)
    elif isinstance(selector, type) and not issubclass(selector, nn.Module):
        raise SelectorError(
            f"selector {selector.__name__} is not a torch.nn.Module class; pass a path, a module class or a torch function"
        )
    elif not (isinstance(selector, str | InputLayer | PictureConvolution) or callable(selector)):
        raise SelectorError(f"selector {selector!r} is not valid; expected a module path, a module class or a torch function")
