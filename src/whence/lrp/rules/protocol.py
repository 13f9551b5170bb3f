"""The protocol of rules: the methods that a rule class must define, and the checks that the engine makes.

A rule is a frozen dataclass. It need not inherit from anything:

* a rule of linear maps defines `factors(z, positive, contributions)`, the shares of relevance as factors of g = R / z;
* a rule of the input layer defines `denominator` and `spread`, for relevance that is not proportional to the input;
* a rule that changes with depth defines `at(depth)`, which returns the rule of a layer at this depth below the output.

`merged` and `merges` offer a faster form of `factors` where both shares are proportional. It is used only if the class that
defines `factors` defines it too: a subclass that overrides `factors` would inherit a form that does not match.
"""

from dataclasses import is_dataclass
from functools import lru_cache
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from whence.errors import RuleError, value_repr

if TYPE_CHECKING:
    from whence.lrp.engine.linear_maps import LinearMap, RuleWeights

Factors = tuple[Tensor | None, Tensor | None]  # (whole, positive)


@runtime_checkable
class SplitRule(Protocol):
    """A rule of linear maps: the share of R that returns along all contributions, and that along the positive ones alone.

    A field or class attribute `bias`, by default True, says whether `positive` includes b⁺.
    """

    def factors(self, z: Tensor, positive: Tensor, contributions: Tensor) -> Factors:
        """Return (whole, positive), the factors of g = R / z, shaped like `z`; either may be None for no share.

        `z` is the output `[N, …]`, `positive` the sum of its positive contributions P (+ b⁺), which may be modified in
        place, and `contributions` the sum of all of them: z, or z − b where `bias` is False.
        """
        ...


@runtime_checkable
class InputRule(Protocol):
    """A rule of the layer that touches the input: R_i = spread of R / denominator, not proportional to the input."""

    def denominator(self, linear: "LinearMap", weights: "RuleWeights", a: Tensor, present: Tensor | None) -> Tensor:
        """Return the divisor of the relevance of each output, shaped like the output or with one row for all samples."""
        ...

    def spread(self, linear: "LinearMap", weights: "RuleWeights", share: Tensor, a: Tensor, present: Tensor | None) -> Tensor:
        """Return the relevance of each input, shaped like `a`, given `share` = R / denominator."""
        ...


@runtime_checkable
class DepthRule(Protocol):
    """A rule that changes with depth."""

    def at(self, depth: int) -> Any:
        """Return the rule of a layer: `Epsilon` or one with `factors`.

        `depth` is 1 + the most layers under this rule on any path from the output to the layer.
        """
        ...


@lru_cache(maxsize=256)
def _definer(kind: type, name: str) -> type | None:
    return next((base for base in kind.__mro__ if name in vars(base)), None)


def is_split_rule(rule: object) -> bool:
    """Return whether the rule defines `factors`, as a rule of linear maps."""
    return _definer(type(rule), "factors") is not None


def is_input_rule(rule: object) -> bool:
    """Return whether the rule belongs to the layer that touches the input."""
    return _definer(type(rule), "spread") is not None


def is_depth_rule(rule: object) -> bool:
    """Return whether the rule changes with depth."""
    return _definer(type(rule), "at") is not None


def includes_bias(rule: object) -> bool:
    """Return whether biases are included in the sums of contributions."""
    return bool(getattr(rule, "bias", True))


def defines(rule: object, name: str, kind: type) -> bool:
    """Return whether the rule's method of that name is the one that `kind` defines, rather than a subclass."""
    return _definer(type(rule), name) is kind


def can_merge(rule: Any, nonnegative: bool, rectified: bool) -> bool:
    """Return whether one modified weight serves both passes, as declared by the class that defines `factors`."""
    owner = _definer(type(rule), "factors")
    own = all(_definer(type(rule), name) is owner for name in ("merged", "merges"))
    return own and rule.merges(nonnegative, rectified)


def check_factors(rule: object, factors: Any, z: Tensor, rectified: bool) -> Factors:
    """Return the factors of a user's rule as new tensors, with 0 where the ReLU that follows outputs 0."""
    if not isinstance(factors, tuple) or len(factors) != 2 or not all(isinstance(f, Tensor | None) for f in factors):
        raise RuleError(
            f"{type(rule).__name__}.factors must return a tuple (whole, positive), each a tensor shaped like z or None"
        )
    try:
        whole, positive = (None if f is None else torch.broadcast_to(f, z.shape).to(z.dtype, copy=True) for f in factors)
    except RuntimeError:
        shapes = " and ".join(str(tuple(f.shape)) for f in factors if f is not None)
        raise RuleError(
            f"{type(rule).__name__}.factors returned tensors of shapes {shapes}, which do not broadcast to the output's "
            f"{tuple(z.shape)}"
        ) from None
    if rectified:  # R = 0 there, whatever g is
        whole, positive = (None if f is None else f.masked_fill_(z == 0, 0) for f in (whole, positive))
    return whole, positive


SIGNATURES = {
    "factors": ("z", "positive", "contributions"),
    "denominator": ("linear", "weights", "a", "present"),
    "spread": ("linear", "weights", "share", "a", "present"),
    "at": ("number",),
}


def _check_signature(rule: object, method: str, parameters: tuple[str, ...]) -> None:
    function = getattr(rule, method, None)
    if not callable(function):
        return
    try:
        signature(function).bind(*parameters)
    except TypeError:
        expected = f"{method}(self, {', '.join(parameters)})"
        raise RuleError(
            f"{type(rule).__name__}.{method}{signature(function)} does not take the expected arguments: {expected}"
        ) from None


def check_rule(rule: object, selector: str, own: tuple[type, ...]) -> None:
    """Raise `RuleError` unless the rule is of one of the `own` classes or a frozen dataclass that follows the protocol."""
    if isinstance(rule, type):
        raise RuleError(
            f"the rule of selector {selector} is the class {rule.__name__}, not an instance; pass {rule.__name__}()"
        )
    if type(rule) in own:
        return
    if not isinstance(rule, own) and not any(is_kind(rule) for is_kind in (is_split_rule, is_input_rule, is_depth_rule)):
        raise RuleError(
            f"the rule of selector {selector} is {value_repr(rule)}, not a rule; pass one of whence.Epsilon(), "
            "whence.ZPlus(), …, or a frozen dataclass with a method factors(z, positive, contributions)"
        )
    name, kind = type(rule).__name__, type(rule)
    for method, parameters in SIGNATURES.items():
        _check_signature(rule, method, parameters)
    if is_input_rule(rule) and _definer(kind, "denominator") is None:
        raise RuleError(f"{name} defines spread but not denominator; a rule of the input layer needs both")
    factors = _definer(kind, "factors")
    for method in ("merged", "merges"):
        definer = _definer(kind, method)
        if factors is not None and definer is not None and definer is not factors and issubclass(definer, factors):
            raise RuleError(
                f"{definer.__name__} overrides {method} but inherits factors from {factors.__name__}; override factors, or all "
                "of factors, merged and merges"
            )
    if not is_dataclass(rule) or not type(rule).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise RuleError(f"{type(rule).__name__} must be a frozen dataclass; decorate it with @dataclass(frozen=True)")
