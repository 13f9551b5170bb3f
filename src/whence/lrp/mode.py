"""The function mode: it sees every torch function a model calls and gives some of them another gradient.

Forward values are the plain ones. After the forward, one ordinary backward pass brings the modified gradient g = R/a to
every tensor a, so that its relevance is a · g.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from whence.errors import OpaqueError, RuleError, UnknownFunctionError
from whence.lrp import inheritance, operations, treatments
from whence.lrp.composites import Composite, Matcher, Selector
from whence.lrp.conservation import Meter
from whence.lrp.functions import Call, constant_parameters, depends, function_name, overwrites, tensors
from whence.lrp.linear import LinearMap
from whence.lrp.propagation import Companion, Link, Propagation, Step
from whence.lrp.rules import Constant, Epsilon, Gradient, Identity, InputRule, LinearRule, Rule
from whence.lrp.saved import Back, Cells, Node, OverwritingNode, Saved
from whence.lrp.scope import Scope

Unknown = Literal["error", "warn", "gradient"]


@dataclass(frozen=True)
class Knowledge:
    """What the mode knows of a tensor, as long as nobody overwrites it."""

    version: int
    nonnegative: bool = False
    link: Link | None = None  # the linear map it came from
    companion: Companion | None = None


NOTHING = Knowledge(-1)
DEFAULT_RULE = Epsilon()


class ConstantParameters(TorchFunctionMode):
    """Plain gradients with respect to the input, parameters read as constants."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = constant_parameters(args, kwargs or {})
        return function(*args, **kwargs)


class RelevanceMode(TorchFunctionMode):
    """Gradients modified by the rules while entered. `explain` and `relevance_rules` are made of it."""

    def __init__(self, rules: Composite, scope: Scope, unknown: Unknown = "error", inputs: Sequence[Tensor] = ()):
        super().__init__()
        self.matcher = Matcher(rules, scope)
        self.scope = scope
        self.unknown = unknown
        self.meter = Meter(len(inputs[0]) if inputs else 0)
        self.written = [torch.zeros_like(x, requires_grad=True) for x in inputs if self.matcher.writes_to_input]
        self.last_constant: str | None = None
        self._cells = Cells()
        # what native functions keep for their gradients goes through the cells as well
        self.saving = saved_tensors_hooks(self._cells.save, lambda cell: cell.value)
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        for i, x in enumerate(inputs):
            companion = Companion(self.written[i]) if self.written else None
            self._known[x] = Knowledge(x._version, bool((x.detach() >= 0).all()), None, companion)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = constant_parameters(args, kwargs or {})
        data = depends(args, kwargs)
        if not data or not torch.is_grad_enabled():
            if overwrites(function, kwargs) and isinstance(args[0], Tensor):
                self._cells.before_overwriting(args[0])
            return function(*args, **kwargs)
        call = Call(function, function_name(function), args, kwargs, data)
        self._check_visible(call)
        inherited = self._inherit(call)
        out = self._treat(call)
        for t in tensors(args[0] if out is None else out):
            self._learn(t, inherited)
        return out

    def what_blocks(self) -> str:
        """For an error message: what may have cut the output off from the input."""
        if self.last_constant is None:
            return "; a detach, an integer or a no_grad may cut it off"
        held = f"{self.last_constant} is held constant as a gate or statistic"
        return f"; {held}. Explain the value before it (the logits), or give it a rule"

    # what treatments ask for

    def follow(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """A function that a treatment calls as if the model had."""
        result: Any = self.__torch_function__(function, (), args)
        return result

    def knowledge(self, t: Tensor) -> Knowledge:
        known = self._known.get(t)
        return known if known is not None and known.version == t._version else NOTHING

    def save(self, t: Tensor) -> Saved:
        return self._cells.save(t)

    def link(self, t: Tensor) -> Link | None:
        """The linear map that `t` came from, if its input still is what the map read."""
        link = self.knowledge(t).link
        return link if link is not None and link.source._version == link.version else None

    def before_overwriting(self, t: Tensor) -> None:
        self._cells.before_overwriting(t)

    def pin(self, t: Tensor) -> None:
        """Let nobody take over the map that made `t`: relevance is to be read off at `t`."""
        self._known[t] = replace(self.knowledge(t), version=t._version, link=None)

    def node(self, call: Call, back: Back, source: Tensor) -> Tensor:
        """The call's value, `back(g, value, source)` for a gradient; written into its target where the call overwrites one."""
        if not call.overwrites:
            return Node.apply(call.run, back, (source.detach(),), source)  # type: ignore[return-value]
        before = source.detach().clone()
        fresh = call.run_with({id(source): before.clone()})
        self._cells.before_overwriting(source)
        return OverwritingNode.apply(lambda: fresh, back, (before,), source)  # type: ignore[return-value]

    def linear(self, call: Call, source: Tensor, linear: LinearMap, default: LinearRule = DEFAULT_RULE) -> Tensor:
        """A linear map with the rule the user has for it."""
        companion = self.knowledge(source).companion
        rule = self.matcher.linear_rule(call.name, companion is not None) or default
        zeros, present = (None, None) if companion is None else (companion.zeros, companion.present)
        step = Step(linear, rule, self.scope.path, self.knowledge(source).nonnegative, present=present)
        return self.step(Link(source, zeros, source._version, step), call.run)

    def step(self, link: Link, value: Callable[[], Tensor]) -> Tensor:
        """Hang the node of a step on its input; the result remembers the link."""
        return self._hang(Node, link, value)

    def overwriting_step(self, link: Link, value: Callable[[], Tensor], target: Tensor) -> Tensor:
        """As `step`, where `value` overwrites `target`, the output that the link was remembered by."""
        del self._known[target]
        target.detach_()  # off the way back: the new node stands in for the one that made it
        self._cells.before_overwriting(target)
        return self._hang(OverwritingNode, link, value, target)

    def remember(self, out: Tensor, link: Link) -> None:
        """Let consumers of `out` take over the linear map it came from."""
        self._known[out] = Knowledge(out._version, link.step.rectified, link)

    def constant(self, call: Call) -> Any:
        """The call's value with no way back."""
        self.last_constant = f"{call.name} in '{self.scope.path}'"
        detached = {id(t): t.detach() for t in call.data}
        if not call.overwrites:
            return call.run_with(detached)
        target = call.args[0]
        fresh = call.run_with(detached | {id(target): target.detach().clone()})
        self._cells.before_overwriting(target)
        return (target if target._is_view() else target.detach_()).copy_(fresh)

    def absorb(self, out: Tensor, amount: Callable[[Tensor], Tensor]) -> None:
        """Count `amount(g)` [batch, …] as absorbed here when the gradient g of `out` comes by."""
        path, meter = self.scope.path, self.meter
        out.register_hook(lambda g: meter.add(path, amount(g)) if g is not None else None)

    # the inside

    def _hang(self, node: type[torch.autograd.Function], link: Link, value: Callable[[], Tensor], *target: Tensor) -> Tensor:
        back = Propagation(link.step, link.source.shape, self.meter)
        kept = (link.source.detach(),) if back.reads_input else ()
        out: Tensor = node.apply(value, back, kept, *target, link.source, link.zeros)  # type: ignore[assignment]
        self.remember(out, link)
        return out

    def _treat(self, call: Call) -> Any:
        treatment = operations.TREATMENTS.get(call.name)
        if treatment in operations.RELEVANCE_FOLLOWS_THE_GRADIENT and call.overwrites:
            self._cells.before_overwriting(call.args[0])
        if treatment is None and not call.overwrites:
            return self._untabled(call)
        rule = None if treatment in operations.WITHOUT_FUNCTION_RULES else self.matcher.function_rule(call.name)
        if rule is not None:
            return RULED[type(rule)](self, call)
        return self._untabled(call) if treatment is None else treatment(self, call)

    def _untabled(self, call: Call) -> Any:
        out = call.run()
        if not any(t.requires_grad and all(t is not d for d in call.data) for t in tensors(out)):
            return out  # a size, an arg max, a comparison: nothing that relevance could enter
        rule = self.matcher.function_rule(call.name)
        return self.unknown_function(call) if rule is None else RULED[type(rule)](self, call)

    def unknown_function(self, call: Call) -> Any:
        """What the caller wants done with a function that may not be linear and has no rule."""
        message = (
            f"'{call.name}' in '{self.scope.path}' is not known to be linear and has no rule; give it one, such as "
            f"LRP({{{_spelling(call)}: whence.Identity()}}) (activation with f(0) = 0), whence.Constant() (gate, statistic) or "
            "whence.Gradient(), or pass LRP(unknown='gradient')"
        )
        if self.unknown == "error":
            raise UnknownFunctionError(message)
        if self.unknown == "warn":
            warnings.warn(message, stacklevel=2)
        return treatments.own_gradient(self, call)

    def _check_visible(self, call: Call) -> None:
        for t in call.data:
            if t not in self._known and t.grad_fn is not None:
                raise OpaqueError(
                    f"'{call.name}' in '{self.scope.path}' reads a tensor made by {t.grad_fn.name()}, which whence did not "
                    "see: an autograd.Function, a compiled extension, or a part run outside the rules; detach it if it is no "
                    "part of the explanation, or write it in torch functions"
                )

    def _inherit(self, call: Call) -> Knowledge:
        """What the outputs will be known by from the inputs."""
        companion = None
        if self.matcher.writes_to_input:
            companion = inheritance.companion(call, lambda t: self.knowledge(t).companion)
        return Knowledge(0, inheritance.stays_nonnegative(call, lambda t: self.knowledge(t).nonnegative), None, companion)

    def _learn(self, t: Tensor, inherited: Knowledge) -> None:
        known = self.knowledge(t)
        if known is NOTHING:
            self._known[t] = replace(inherited, version=t._version)


RULED: dict[type, Callable[[RelevanceMode, Call], Any]] = {
    Identity: treatments.identity,
    Constant: RelevanceMode.constant,
    Gradient: treatments.own_gradient,
}


@contextmanager
def relevance_rules(
    rules: Mapping[Selector, Rule] | Composite, model: torch.nn.Module | None = None, unknown: Unknown = "error"
) -> Iterator[RelevanceMode]:
    """Plain PyTorch with modified gradients, for one's own loops: afterwards the relevance of x is `x * grad`.

    >>> with whence.relevance_rules({torch.nn.Linear: whence.Gamma(0.1)}):
    ...     logits = model(x)
    >>> (g,) = torch.autograd.grad(logits[0, 483], x)
    >>> relevance = x * g

    Selectors by module path need `model`. Rules of the input layer (ZBox, WSquare, Flat) are not of the form x · g and are
    refused here; use `explain`.
    """
    composite = Composite.of(rules)
    for selector, rule in composite.entries[: composite.required]:
        if isinstance(rule, InputRule):
            raise RuleError(f"{type(rule).__name__} cannot be written as x * gradient; use whence.explain(method=LRP(...))")
        if isinstance(selector, str) and model is None:
            raise RuleError(f"selector {selector!r} is a module path; pass the model: relevance_rules(rules, model)")
    optional = tuple(entry for entry in composite.entries if not isinstance(entry[1], InputRule))
    scope = Scope(model)
    mode = RelevanceMode(Composite(optional, composite.required), scope, unknown)
    with scope, mode.saving, mode:
        yield mode
    mode.matcher.check_all_matched()


def _spelling(call: Call) -> str:
    module = getattr(call.function, "__module__", None) or "torch.Tensor"
    return f"{'torch' if module.startswith('torch._') else module}.{getattr(call.function, '__name__', call.name)}"
