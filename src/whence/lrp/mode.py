"""The function mode: it sees every torch function a model calls and gives some of them another gradient.

Forward values are the plain ones. After the forward, one ordinary backward pass brings the modified gradient g = R/a to
every tensor a, so that its relevance is a · g.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from whence.errors import ModelError, OpaqueError, RuleError, UnknownFunctionError
from whence.lrp import inheritance, operations, treatments
from whence.lrp.composites import Composite, Matcher, Selector
from whence.lrp.conservation import Meter, dot, total
from whence.lrp.functions import (
    Call,
    asks_about,
    constant_parameters,
    depends,
    function_name,
    mapped,
    overwrites,
    spelling,
    tensors,
    the_parameter_itself,
)
from whence.lrp.inheritance import Origin
from whence.lrp.linear import LinearMap
from whence.lrp.lookups import Lookups
from whence.lrp.propagation import Companion, Link, Propagation, Step
from whence.lrp.rules import Constant, Epsilon, Gradient, Identity, InputRule, LinearRule, Rule, ratio
from whence.lrp.saved import Back, Cells, Keep, Node, OverwritingNode, Saved, hooked
from whence.lrp.scope import Scope
from whence.lrp.surroundings import CHECKPOINTS_CARRIED, EAGERLY, recomputing_by

Unknown = Literal["error", "warn", "gradient"]


@dataclass(frozen=True)
class Knowledge:
    """What the mode knows of a tensor, as long as nobody overwrites it."""

    version: int
    nonnegative: bool = False
    link: Link | None = None  # the linear map it came from
    companion: Companion | None = None
    origin: Origin | None = None  # the one tensor it is a function of, value by value


NOTHING = Knowledge(-1)
DEFAULT_RULE = Epsilon()


class GradientMode(TorchFunctionMode):
    """One at a time in a thread: a gradient modified twice would be neither of the two."""

    _entered = threading.local()

    def __init__(self, scope: Scope):
        super().__init__()
        self.scope = scope
        self.recomputing = False  # a checkpointed part, on the way back
        self._outer: list[GradientMode | None] = []
        self._around = ExitStack()

    def __enter__(self):
        outer = getattr(self._entered, "mode", None)
        if outer not in (None, self):
            raise ModelError(
                "an explanation is already under way here; leave relevance_rules before explaining, or the reverse"
            )
        if outer is None and not self.recomputing:
            for context in (EAGERLY, CHECKPOINTS_CARRIED, recomputing_by(self._recompute)):
                self._around.enter_context(context)
        self._outer.append(outer)
        self._entered.mode = self
        return super().__enter__()

    def __exit__(self, *exception):
        self._entered.mode = self._outer.pop()
        if self._entered.mode is None and not self.recomputing:
            self._around.close()
        return super().__exit__(*exception)

    def pin(self, t: Tensor) -> None:
        """Let the gradient at `t` be read off."""

    def _recompute(
        self, function: Callable[..., Any], args: tuple
    ) -> tuple[Callable[..., Any], Callable[[], AbstractContextManager]]:
        """A checkpointed function, and the context to compute it again in."""
        return function, partial(self._recomputed, list(self.scope.modules))

    @contextmanager
    def _recomputed(self, modules: list[torch.nn.Module]) -> Iterator[None]:
        before, self.recomputing = self.recomputing, True
        try:
            with self.scope.resumed(modules, self.pin), self:
                yield
        finally:
            self.recomputing = before


class ConstantParameters(GradientMode):
    """Plain gradients with respect to the input, parameters read as constants."""

    def __init__(self, scope: Scope, lookups: Lookups):
        super().__init__(scope)
        self.lookups = lookups

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if asks_about(function):
            return function(*args, **(kwargs or {}))
        given = args, kwargs or {}
        args, kwargs = constant_parameters(*given)
        out = self.lookups.run(function, args, kwargs, record=not self.recomputing)
        out = the_parameter_itself(out, given, (args, kwargs))
        if function is torch.nn.functional.batch_norm and out.requires_grad:
            out.register_hook(torch.Tensor.contiguous)  # else torch 2.13 can compute a wrong gradient on CPU, in eval mode
        return out


class RelevanceMode(GradientMode):
    """Gradients modified by the rules while entered. `explain` and `relevance_rules` are made of it."""

    def __init__(
        self,
        rules: Composite,
        scope: Scope,
        unknown: Unknown = "error",
        inputs: Sequence[Tensor] = (),
        lookups: Lookups | None = None,
        batch_size: int = 0,
    ):
        super().__init__(scope)
        self.matcher = Matcher(rules, scope)
        scope.leaving = self._opaque_module
        self.unknown = unknown
        self.lookups = lookups or Lookups({})
        self.meter = Meter(batch_size)
        self.written = [torch.zeros_like(x, requires_grad=True) for x in inputs]
        self.last_constant: str | None = None
        self._inputs_known = batch_size > 0
        self._cells = Cells()
        # what native functions keep for their gradients goes through the cells as well
        self.saving = saved_tensors_hooks(self._cells.save, lambda cell: cell.value)
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        for x, written in zip(inputs, self.written, strict=True):
            self._known[x] = Knowledge(x._version, bool((x.detach() >= 0).all()), None, Companion(written))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if asks_about(function):
            return function(*args, **(kwargs or {}))
        given = args, kwargs or {}
        args, kwargs = mapped(self._constant, *given)
        data = depends(args, kwargs)
        writes = overwrites(function, kwargs)
        if not data or not torch.is_grad_enabled():
            if writes and args and isinstance(args[0], Tensor):
                self._overwrite_unseen(args[0], function)
            out = self.lookups.run(function, args, kwargs, record=not self.recomputing, see=self.see)
            return the_parameter_itself(out, given, (args, kwargs))
        call = Call(function, function_name(function), args, kwargs, data, writes)
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

    def see(self, t: Tensor) -> None:
        """A tensor that a treatment made of what the mode has seen is seen too."""
        self._learn(t, NOTHING)

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
        self._known[t] = replace(self.knowledge(t), version=t._version, link=None, origin=None)

    def gate(self, call: Call) -> Tensor | None:
        """Of a product x · h(x) of a value (or a multiple of it) and a function of the same value, the second factor."""
        if len(call.data) != 2 or call.data[0] is call.data[1]:
            return None
        a, b = call.data
        first, second = inheritance.origin_of(a, self.knowledge(a).origin), inheritance.origin_of(b, self.knowledge(b).origin)
        if not first.same_as(second) or not (first.proportional or second.proportional):
            return None
        return b if first.proportional else a

    def node(self, source: Tensor, value: Callable[[], Tensor], back: Back, keep: Keep) -> Tensor:
        """A value made of `source`, and `back(g, *keep(value))` for its gradient."""
        return Node.apply(value, back, self._kept(keep), source)  # type: ignore[return-value]

    def watched(self, t: Tensor, back: Back) -> Tensor:
        """The same tensor, and `back(g, t)` for its gradient."""
        alias = self.node(t, lambda: t.detach(), back, lambda value: (value,))
        self._known[alias] = replace(self.knowledge(t), version=alias._version, link=None)
        return alias

    def distributed(
        self, source: Tensor, value: Callable[[], Tensor], distribute: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """A value whose relevance goes to `source` as `distribute(relevance, source, value)` says: beside the input where the
        source is the input moved about, else as R / a, and what falls on hidden zeros is absorbed."""
        companion, path, a = self.knowledge(source).companion, self.scope.path, source.detach()
        if companion is None and source.is_leaf:  # within relevance_rules
            raise RuleError(f"'{path}' touches the input, where its relevance is not of the form x * gradient; use explain()")
        meter, present = self.meter, 1 if companion is None or companion.present is None else companion.present

        def back(g: Tensor, a: Tensor, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
            relevance = g * z
            returned = distribute(relevance, a, z)
            meter.add(path, total(relevance))
            if companion is not None:
                meter.add(path, -total(returned * present))
                return None, returned
            held = ratio(returned, a.clone())
            meter.add(path, -dot(held, a))
            return held, None

        beside = None if companion is None else companion.zeros
        return Node.apply(value, back, self._kept(lambda z: (a, z)), source, beside)  # type: ignore[return-value]

    def linear(
        self, call: Call, source: Tensor, linear: LinearMap, default: LinearRule = DEFAULT_RULE, native: bool = False
    ) -> Tensor:
        """A linear map with the rule the user has for it. `native`: autograd's own gradient is the transposed map."""
        companion = self.knowledge(source).companion
        rule = self.matcher.linear_rule(call.name, companion is not None) or default
        if isinstance(rule, Constant):
            return self.constant(call)
        if native and rule == Epsilon(0):
            out = call.run()
            bias = linear.bias
            return out if bias is None else self.absorb(out, lambda g: linear.bias_share(g, bias.to(g.dtype)))
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
        self._known[out] = Knowledge(out._version, False, link)

    def constant(self, call: Call) -> Any:
        """The call's value with no way back."""
        self.last_constant = f"{call.name} in '{self.scope.path}'"
        return call.run_with({id(t): t.detach() for t in call.data})

    def absorb(self, out: Tensor, amount: Callable[[Tensor], Tensor]) -> Tensor:
        """Count `amount(g)` [batch, …] as absorbed here when the gradient g of `out` comes by."""
        path, meter = self.scope.path, self.meter

        def counted(g: Tensor) -> Tensor:
            meter.add(path, amount(g))
            return g

        return hooked(out, counted)

    # the inside

    def _hang(self, node: type[torch.autograd.Function], link: Link, value: Callable[[], Tensor], *target: Tensor) -> Tensor:
        back = Propagation(link.step, link.source.shape, self.meter, link.step.linear.weight._version)
        source = link.source.detach()
        keep = self._kept(lambda z: back.kept(z, source))
        out: Tensor = node.apply(value, back, keep, *target, link.source, link.zeros)  # type: ignore[assignment]
        if link.step.rectified:  # nobody takes a ReLU over: what follows it does not follow the map
            self._known[out] = Knowledge(out._version, True)
        else:
            self.remember(out, link)
        return out

    def _kept(self, keep: Keep) -> Keep:
        """Of a part computed again, torch keeps the tensors themselves, beside the cells: a copy is safe from overwriting."""
        return (lambda value: tuple(t.clone() for t in keep(value))) if self.recomputing else keep

    def _recompute(
        self, function: Callable[..., Any], args: tuple
    ) -> tuple[Callable[..., Any], Callable[[], AbstractContextManager]]:
        """A recomputation starts from what is known of its arguments and cannot take over a map made before them. So the
        first pass may not either: both have to save the same."""
        for t in tensors(args):
            if t.requires_grad:
                self.pin(t)
        known = [self._known.get(t) for t in tensors(args)]

        def with_knowledge(*args: Any, **kwargs: Any) -> Any:
            for t, knowledge in zip(tensors((args, kwargs)), known, strict=True):
                if knowledge is not None:
                    self._known[t] = replace(knowledge, version=t._version)
            return function(*args, **kwargs)

        return with_knowledge, partial(self._recomputed, list(self.scope.modules))

    def _treat(self, call: Call) -> Any:
        treatment = operations.treatment_of(call)
        if not call.overwrites or treatment is treatments.rectify:
            return self._pass(call)
        target = call.args[0]
        if call.name in operations.LEAVES_VALUES or (target.is_leaf and target.requires_grad):
            return call.run()
        if treatments.gradient_alone(call, treatment):
            self._cells.before_overwriting(target)
            return call.run()
        return self._write_back(target, self._pass(call.out_of_place()))

    def _write_back(self, target: Tensor, value: Tensor) -> Tensor:
        """Let `target` hold `value` with its way back, as an in-place function would."""
        if target._is_view() and target.requires_grad and not value.requires_grad:
            raise ModelError(
                f"{self.last_constant} overwrites a part of a tensor with a gate or statistic; run it out of place"
            )
        self._cells.before_overwriting(target)
        if target.requires_grad and not target._is_view():
            target.detach_()  # what it held before leads on through `value` alone
        target.copy_(value)
        if target._base is not None:
            self._learn(target._base, NOTHING)
        return target

    def _pass(self, call: Call) -> Any:
        treatment = operations.treatment_of(call)
        if treatment is None:
            return self._untabled(call)
        rule = None if treatment in operations.WITHOUT_FUNCTION_RULES else self.matcher.function_rule(call.name)
        return treatment(self, call) if rule is None else RULED[type(rule)](self, call)

    def _untabled(self, call: Call) -> Any:
        out = call.run()
        if not any(t.requires_grad and all(t is not d for d in call.data) for t in tensors(out)):
            return out  # a size, an arg max, a comparison: nothing that relevance could enter
        rule = self.matcher.function_rule(call.name)
        return self.unknown_function(call) if rule is None else RULED[type(rule)](self, call)

    def unknown_function(self, call: Call) -> Any:
        """What the caller wants done with a function that may not be linear and has no rule."""
        example = f"LRP({{{spelling(call.function)}: whence.Identity()}})"
        message = (
            f"'{call.name}' in '{self.scope.path}' is not known to be linear and has no rule; give it one, such as {example} "
            "(activation with f(0) = 0), whence.Constant() (gate, statistic) or whence.Gradient(), or pass "
            "LRP(unknown='gradient')"
        )
        if self.unknown == "error":
            raise UnknownFunctionError(message)
        if self.unknown == "warn":
            warnings.warn(message, stacklevel=2)
        return treatments.own_gradient(self, call)

    def _constant(self, t: Tensor) -> Tensor:
        """Parameters are constants, and so is any other leaf where the explained inputs are known."""
        other_leaf = self._inputs_known and t.requires_grad and t.grad_fn is None and t not in self._known
        return t.detach() if other_leaf or isinstance(t, torch.nn.Parameter) else t

    def _overwrite_unseen(self, target: Tensor, function: Callable[..., Any]) -> None:
        """Something is written where no gradient goes: right for buffers, wrong for what depends on the input."""
        if target.requires_grad and function_name(function) not in operations.LEAVES_VALUES:
            name = f"'{function_name(function)}' in '{self.scope.path}'"
            raise ModelError(
                f"{name} overwrites a value that depends on the input under no_grad, where relevance cannot follow; "
                "run it outside no_grad or out of place"
            )
        self._cells.before_overwriting(target)

    def _unseen(self, t: Tensor) -> bool:
        return t not in self._known and t.grad_fn is not None

    def _check_visible(self, call: Call) -> None:
        for t in call.data:
            if not self._unseen(t):
                continue
            maker = t.grad_fn.name()  # type: ignore[union-attr]
            if maker.startswith("CheckpointFunction"):
                raise OpaqueError(
                    f"'{call.name}' in '{self.scope.path}' follows reentrant checkpointing, which hides what runs inside; "
                    "use checkpoint(…, use_reentrant=False)"
                )
            raise OpaqueError(
                f"'{call.name}' in '{self.scope.path}' reads a tensor made by {maker}, which whence did not see: an "
                "autograd.Function, a compiled extension, or a part run outside the rules; give the module that makes it a "
                "rule, such as LRP({'its.path': whence.Identity()} | …), detach it, or write it in torch functions"
            )

    def _opaque_module(self, module: torch.nn.Module, args: tuple, kwargs: dict, output: object) -> Tensor | None:
        """The output of a module whose inside cannot be seen, by the rule there is for the module."""
        if not isinstance(output, Tensor) or not output.requires_grad or not self._unseen(output):
            return None
        rule, data = self.matcher.function_rule(""), depends(args, kwargs)
        if rule is None or len(data) != 1:
            return None
        call = Call(module.forward, type(module).__name__, args, kwargs, data)
        seen = treatments.opaque(self, call, output.detach(), rule)
        if seen.requires_grad:
            self.see(seen)
        return seen

    def _inherit(self, call: Call) -> Knowledge:
        """What the outputs will be known by from the inputs."""
        companion = inheritance.companion(call, lambda t: self.knowledge(t).companion)
        nonnegative = inheritance.stays_nonnegative(call, lambda t: self.knowledge(t).nonnegative)
        return Knowledge(0, nonnegative, None, companion, inheritance.origin(call, lambda t: self.knowledge(t).origin))

    def _learn(self, t: Tensor, inherited: Knowledge) -> None:
        known = self.knowledge(t)
        if known is NOTHING:
            self._known[t] = replace(inherited, version=t._version)
        elif inherited.nonnegative and not known.nonnegative:
            self._known[t] = replace(known, nonnegative=True)


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

    Selectors by module path need `model`. Rules of the input layer (ZBox, WSquare, Flat), and distances at the input, are not
    of the form x · g and are refused here; use `explain`.
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
