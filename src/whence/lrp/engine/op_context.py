"""The context that ops use during a forward pass: facts about tensors, the rule that applies, nodes of the backward pass.

The mode creates one for each forward pass and passes it to the op of each call.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode
from torch.utils.weak import WeakTensorKeyDictionary

from whence.errors import RuleError, UnknownFunctionError, WhenceError, describe_attention_kernel
from whence.lrp.engine.conservation import ConservationMeter, batch_dot, batch_sum
from whence.lrp.engine.function_calls import Call, iter_tensors
from whence.lrp.engine.linear_maps import LinearMap, reads_picture
from whence.lrp.engine.prepared_model import PreparedModel
from whence.lrp.engine.propagation import InputCompanion, LayerDepths, LinearBackward, LinearLink, LinearStep
from whence.lrp.engine.tensor_facts import Facts, TensorFacts, gate_factor
from whence.lrp.ops.function_facts import selector_name
from whence.lrp.rules.composites import Matcher
from whence.lrp.rules.rules import LRP_0, Constant, Epsilon, FunctionRule, InputRule, LinearRule, safe_divide
from whence.lrp.torch_compat.model_state import save_before_overwrite
from whence.lrp.torch_compat.module_tracker import ModulePlace, ModuleTracker
from whence.lrp.torch_compat.saved_tensors import (
    BackwardFunction,
    InPlaceBackward,
    JointBackward,
    ModifiedBackward,
    SavedTensor,
    SavedTensors,
    SaveFunction,
    with_gradient_hook,
)

Unknown = Literal["error", "warn", "gradient"]
DEFAULT_RULE = Epsilon()


class SaturatedValue(NamedTuple):
    """Record of the input of a sigmoid or softmax, kept for its output."""

    name: str
    version: int  # of the tensor: once modified in place it is not a sigmoid any more
    value: Callable[[], Tensor]  # returns the input
    rearranged: bool = True  # the same values in other places; else joined, selected by size or multiplied with others


class DeferredGate:
    """Record of a value that is held constant as a factor of a product, but carries relevance where it is added or an output.

    Args:
        version: Version of the tensor; once modified in place it is another value.
        live: Returns the value with a gradient; it is called once.
    """

    __slots__ = ("_live", "_value", "version")

    def __init__(self, version: int, live: Callable[[], Tensor]):
        self.version, self._live, self._value = version, live, None

    def live(self) -> Tensor:
        if self._value is None:
            self._value = self._live()
        return self._value


class UnguardedOverwrite(BaseException):
    """Signal that the model modifies a tensor in place while saved tensors are not guarded: run it again with guards."""


class OpContext:
    """Context of the ops in one forward pass: rules, facts, saved tensors and the conservation meter."""

    def __init__(
        self,
        prepared: PreparedModel,
        matcher: Matcher,
        scope: ModuleTracker,
        meter: ConservationMeter,
        unknown: Unknown,
        several: bool,
        within: Callable[[], AbstractContextManager],
    ):
        self.prepared, self.scope, self.meter = prepared, scope, meter
        self.made = prepared.kept  # cache of values computed from constants: made(name, constants, make)
        self.overwrote = False
        self.within = within  # context in which torch functions are handled as the model's are
        self.known = TensorFacts()
        self.cells = SavedTensors()
        self.saturated: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # outputs of a sigmoid or softmax: `SaturatedValue`
        self.deferred: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by held value: `DeferredGate`
        self._held: tuple[str, ModulePlace] | None = None
        self.copies = False  # whether to save copies: of a recomputed part, torch saves the tensors themselves
        self._matcher, self._unknown, self._several = matcher, unknown, several
        self.depths = LayerDepths()
        self.reads_picture = False  # whether a convolution read the input as a color picture
        self.reads_modified: str | None = None  # path of a convolution of three channels that did not read the input itself

    def forget(self) -> None:
        """Discard what is known about the tensors of the forward pass."""
        self.known.forget()
        self.saturated.clear()
        self.deferred.clear()

    # facts

    @property
    def path(self) -> str:
        """The path of the module that the call came from."""
        return self.scope.place.path

    def function_rule(self, name: str) -> FunctionRule | None:
        return self._matcher.function_rule(self.scope.place, name)

    def linear_rule(
        self, name: str, touches_input: bool, reads_picture: bool = False
    ) -> LinearRule | InputRule | Constant | None:
        return self._matcher.linear_rule(self.scope.place, name, touches_input, reads_picture)

    def companion(self, t: Tensor) -> InputCompanion | None:
        return self.known.inherited(t).companion

    def link(self, t: Tensor) -> LinearLink | None:
        """Return the linear map that `t` came from, if the map's input was not modified since."""
        known = self.known.of(t)
        link = None if known is None else known.link
        return link if link is not None and link.source._version == link.version else None

    def gate(self, call: Call) -> Tensor | None:
        """Return h(x) if the call is a product x · h(x) of a value and a function of the same value, else None."""
        return gate_factor(call, self.known)

    def saturation(self, t: Tensor) -> SaturatedValue | None:
        """Return the record of the sigmoid or softmax that made `t`, if `t` was not modified since."""
        found = self.saturated.get(t)
        return found if found is not None and found.version == t._version else None

    def defer(self, out: Tensor, live: Callable[[], Tensor]) -> None:
        """Record that `out`, held constant, is `live()` where it is not a factor of a product."""
        self.deferred[out] = DeferredGate(out._version, live)

    def defer_all(self, results: Iterable[Tensor], live: Callable[[], Sequence[Tensor]]) -> None:
        """Record that the results of one call, held constant, are those of `live()`, which runs once if at all."""
        once = cache(live)
        for place, t in enumerate(results):
            if t.is_floating_point():
                self.defer(t, lambda place=place: once()[place])

    def hold_gate(self, t: Tensor) -> Tensor:
        """Return a gate that stays constant wherever it stands, as where the state that it multiplies is a constant."""
        self.deferred.pop(t, None)
        return t

    def deferred_gate(self, t: Tensor) -> DeferredGate | None:
        """Return the record of a value that is held constant, if it was not modified since."""
        found = self.deferred.get(t)
        return found if found is not None and found.version == t._version else None

    def see(self, t: Tensor) -> None:
        """Register a tensor that an op made of registered tensors."""
        self.known.see(t)

    def follow(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Call a function from an op as if the model called it."""
        mode = self.within()
        if _get_current_function_mode() is mode:  # not within the handling of a call, where the mode is off
            return function(*args)
        with mode:
            return function(*args)

    # tensors saved for the backward pass

    def save(self, t: Tensor) -> SavedTensor:
        return self.cells.save(t)

    def before_overwriting(self, t: Tensor) -> None:
        save_before_overwrite(t)
        if not self.prepared.guarded:
            raise UnguardedOverwrite
        self.overwrote = True
        self.cells.before_overwriting(t)

    def _kept(self, keep: SaveFunction) -> SaveFunction:
        return (lambda value: tuple([t.clone() for t in keep(value)])) if self.copies else keep

    # nodes of the backward pass

    def constant(self, call: Call) -> Any:
        """Return the call's value without a gradient."""
        self.hold(call.name)
        return call.held_constant()

    def constant_factor(self, call: Call) -> Any:
        """Return the call's value without a gradient, as a factor of products; where it is added, with the function's own."""

        def live() -> list[Tensor]:
            with torch._C.DisableTorchFunction():
                several = list(iter_tensors(self.own_gradient(call)))
            for t in several:
                self.see(t)
            return several

        out = self.constant(call)
        if not call.overwrites:
            self.defer_all(iter_tensors(out), live)
        return out

    def hold(self, what: str) -> None:
        """Record, for error messages, which function was held constant."""
        self._held = what, self.scope.place

    @property
    def last_constant(self) -> str | None:
        if self._held is None:
            return None
        what, place = self._held
        return f"{what} in '{place.path}'"

    def node(self, source: Tensor, value: Callable[[], Tensor], back: BackwardFunction, keep: SaveFunction) -> Tensor:
        """Return a value computed from `source`, with `back(g, *keep(value))` as its gradient."""
        return ModifiedBackward.apply(value, back, self._kept(keep), source)  # type: ignore[return-value]

    def watched(self, t: Tensor, back: BackwardFunction) -> Tensor:
        """Return an alias of `t` for a native function, with `back(g, t)` as its gradient."""
        return self.node(t, t.detach, back, lambda value: (value,))

    def watched_together(self, sources: Sequence[Tensor], back: Callable[..., Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return aliases of the tensors for a native function, with `back(gradients, tensors)` as their gradients."""
        return JointBackward.apply(back, self.copies, *sources)  # type: ignore[return-value]

    def absorb(self, out: Tensor, amount: Callable[[Tensor], Tensor]) -> Tensor:
        """Count `amount(g)` [batch, …] as absorbed here when the gradient g of `out` is computed."""
        path, meter = self.path, self.meter

        def counted(g: Tensor) -> Tensor:
            meter.add(path, amount(g))
            return g

        return with_gradient_hook(out, counted)

    def own_gradient(self, call: Call) -> Any:
        """Return the call's value with the function's own gradient; relevance that it does not conserve counts as absorbed."""
        path, meter = self.path, self.meter

        def given_on(g: Tensor, value: Tensor) -> tuple[Tensor]:
            meter.add(path, -batch_dot(g, value))
            return (g,)

        out = call.run_with({id(t): self.watched(t, given_on) for t in call.data})
        for t in iter_tensors(out):
            if t.requires_grad:
                saved = self.save(t)
                t.register_hook(lambda g, saved=saved: None if g is None else meter.add(path, batch_dot(g, saved.value)))
        return out

    def unknown_function(self, call: Call) -> Any:
        """Handle a function that may be nonlinear and has no rule, as the user's `unknown` option says."""
        selector = selector_name(call.function) or repr(self.path)
        message = (
            f"'{call.name}' in '{self.path}' is not known to be linear and has no rule; give it one, such as "
            f"LRP({{{selector}: whence.Identity()}}) (activation with f(0) = 0), whence.Constant() (gate, statistic) or "
            "whence.Gradient(), or pass LRP(unknown='gradient')"
        )
        if self._unknown == "error":
            kernel = describe_attention_kernel(call.name)
            return self.refused(call, UnknownFunctionError(f"in '{self.path}', {kernel}" if kernel else message))
        if self._unknown == "warn":
            warnings.warn(message, stacklevel=2)
        return self.own_gradient(call)

    def refused(self, call: Call, error: WhenceError) -> Any:
        """Return the call's value; raise `error` only if relevance is propagated through it; side outputs may use it."""
        return call.run_with({id(t): self.impassable(t, error) for t in call.data})

    def impassable(self, t: Tensor, error: WhenceError) -> Tensor:
        """Return an alias of `t` that raises `error` in the backward pass."""

        def back(g: Tensor) -> tuple[Tensor]:
            raise error

        return self.node(t, t.detach, back, lambda value: ())

    def distributed(
        self, source: Tensor, value: Callable[[], Tensor], distribute: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return a value whose relevance goes to `source` as `distribute(relevance, source, value)`.

        It is written to the companion where `source` is the rearranged input. Else it is propagated as R / a, and the share
        of hidden activations that are 0 is absorbed.
        """
        companion, path, a = self.companion(source), self.path, source.detach()
        if companion is None and source.is_leaf:  # within relevance_rules
            raise RuleError(
                f"'{path}' is applied to the input, where relevance is not of the form x * gradient; use whence.explain"
            )
        meter, present = self.meter, 1 if companion is None or companion.present is None else companion.present

        def back(g: Tensor, a: Tensor, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
            relevance = g * z
            returned = distribute(relevance, a, z)
            meter.add(path, batch_sum(relevance))
            if companion is not None:
                meter.add(path, -batch_sum(returned * present))
                return None, returned
            held = safe_divide(returned, a.clone())
            meter.add(path, -batch_dot(held, a))
            return held, None

        beside = None if companion is None else companion.zeros
        return ModifiedBackward.apply(value, back, self._kept(lambda z: (a, z)), source, beside)  # type: ignore[return-value]

    # linear maps

    def linear(
        self, call: Call, source: Tensor, linear: LinearMap, default: LinearRule = DEFAULT_RULE, native: bool = False
    ) -> Tensor:
        """Return the value of a linear map with the user's rule for it; `native`: autograd's gradient is the transposed map."""
        known = self.known.inherited(source)
        companion = known.companion
        touches_input = companion is not None
        picture = reads_picture(linear)
        if picture and not touches_input and self.reads_modified is None:
            self.reads_modified = self.path
        self.reads_picture |= picture and touches_input
        rule = self.linear_rule(call.name, touches_input, touches_input and picture) or default
        if isinstance(rule, Constant):
            return self.constant(call)
        if native and (rule is LRP_0 or rule == LRP_0):
            out = call.run()
            bias = linear.bias
            return out if bias is None else self.absorb(out, lambda g: linear.bias_share(g, bias.to(g.dtype)))
        zeros, present = (None, None) if companion is None else (companion.zeros, companion.present)
        step = LinearStep(linear, rule, self.path, known.nonnegative, present=present)
        return self.step(LinearLink(source, zeros, source._version, step), call.run)

    def step(self, link: LinearLink, value: Callable[[], Tensor]) -> Tensor:
        """Attach the backward node of a step to its input; the result records the link."""
        return self._hang(ModifiedBackward, link, value)

    def overwriting_step(self, link: LinearLink, value: Callable[[], Tensor], target: Tensor) -> Tensor:
        """Attach a step as `step` does, where `value` modifies `target` in place, the tensor that recorded the link."""
        self.known.note(target)
        target.detach_()  # cut from the graph: the new node replaces the one that made it
        self.before_overwriting(target)
        return self._hang(InPlaceBackward, link, value, target)

    def remember(self, out: Tensor, link: LinearLink) -> None:
        """Record the linear map that `out` came from, so that the function that follows can merge with it."""
        self.known.note(out, link=link)

    def _hang(self, node: Any, link: LinearLink, value: Callable[[], Tensor], *target: Tensor) -> Tensor:
        step, source = link.step, link.source.detach()
        back = LinearBackward(step, source.shape, self.meter, self.made, self.depths, self._several)
        out: Tensor = node.apply(value, back, self._kept(lambda z: back.reads(z, source)), *target, link.source, link.zeros)
        self.depths.add(out, step)
        if step.rectified:  # later functions follow the ReLU rather than the linear map, so none may merge with it
            self.known.note(out, Facts(nonnegative=True))
        else:
            self.remember(out, link)
        return out
