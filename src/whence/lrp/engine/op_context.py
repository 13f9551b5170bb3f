"""What treatments may ask for while a network runs: what is known of a tensor, which rule holds here, a node on the way back.

The mode makes one for each forward pass and hands it to the treatment of each call.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from whence.errors import RuleError, UnknownFunctionError, WhenceError
from whence.lrp.engine.calls import Call, iter_tensors
from whence.lrp.engine.conservation import ConservationMeter, batch_dot, batch_sum
from whence.lrp.engine.linear_maps import LinearMap
from whence.lrp.engine.prepared_model import PreparedModel
from whence.lrp.engine.propagation import DepthCounter, InputCompanion, LinearBackward, LinearLink, LinearStep
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
    """What is known of values that a sigmoid or softmax made."""

    name: str
    version: int  # of the tensor: once overwritten it is no sigmoid any more
    value: Callable[[], Tensor]  # of what


class UnguardedOverwrite(BaseException):
    """A network that never overwrote a value does, and what autograd saved before is not guarded: it is to be run again."""


class OpContext:
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
        self.made = prepared.kept  # what is made of constants: made(name, constants, make)
        self.overwrote = False
        self.within = within  # a context in which torch functions are treated as the model's are
        self.known = TensorFacts()
        self.cells = SavedTensors()
        self.saturated: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # values by a sigmoid or softmax: `Saturated`
        self.gates_reached = False  # by relevance that ends in values that a sigmoid or softmax made
        self._held: tuple[str, ModulePlace] | None = None
        self.copies = False  # whether what is kept is: of a part computed again, torch keeps the tensors themselves
        self._matcher, self._unknown, self._several = matcher, unknown, several
        self.descent = DepthCounter()

    # what is known

    @property
    def path(self) -> str:
        """Of the module that the call came from."""
        return self.scope.place.path

    def function_rule(self, name: str) -> FunctionRule | None:
        return self._matcher.function_rule(self.scope.place, name)

    def linear_rule(self, name: str, touches_input: bool) -> LinearRule | InputRule | Constant | None:
        return self._matcher.linear_rule(self.scope.place, name, touches_input)

    def companion(self, t: Tensor) -> InputCompanion | None:
        return self.known.inherited(t).companion

    def link(self, t: Tensor) -> LinearLink | None:
        """The linear map that `t` came from, if its input still is what the map read."""
        known = self.known.of(t)
        link = None if known is None else known.link
        return link if link is not None and link.source._version == link.version else None

    def gate(self, call: Call) -> Tensor | None:
        """Of a product x · h(x) of a value and a function of the same value, the second factor."""
        return gate_factor(call, self.known)

    def saturation(self, t: Tensor) -> SaturatedValue | None:
        """Of what sigmoid or softmax the tensor still is."""
        found = self.saturated.get(t)
        return found if found is not None and found.version == t._version else None

    def see(self, t: Tensor) -> None:
        """A tensor that a treatment made of what was seen is seen too."""
        self.known.see(t)

    def follow(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """A function that a treatment calls as if the model had."""
        with self.within():
            return function(*args)

    # values kept for the way back

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

    # ways back

    def constant(self, call: Call) -> Any:
        """The call's value with no way back."""
        self.hold(call.name)
        return call.held_constant()

    def hold(self, what: str) -> None:
        """Remember, for error messages, what has no way back."""
        self._held = what, self.scope.place

    @property
    def last_constant(self) -> str | None:
        if self._held is None:
            return None
        what, place = self._held
        return f"{what} in '{place.path}'"

    def node(self, source: Tensor, value: Callable[[], Tensor], back: BackwardFunction, keep: SaveFunction) -> Tensor:
        """A value made of `source`, and `back(g, *keep(value))` for its gradient."""
        return ModifiedBackward.apply(value, back, self._kept(keep), source)  # type: ignore[return-value]

    def watched(self, t: Tensor, back: BackwardFunction) -> Tensor:
        """The same tensor for a function that is not seen, and `back(g, t)` for its gradient."""
        return self.node(t, t.detach, back, lambda value: (value,))

    def watched_together(self, sources: Sequence[Tensor], back: Callable[..., Sequence[Tensor]]) -> Sequence[Tensor]:
        """The same tensors for a function that is not seen, and `back(gradients, tensors)` for their gradients."""
        return JointBackward.apply(back, self.copies, *sources)  # type: ignore[return-value]

    def absorb(self, out: Tensor, amount: Callable[[Tensor], Tensor]) -> Tensor:
        """Count `amount(g)` [batch, …] as absorbed here when the gradient g of `out` comes by."""
        path, meter = self.path, self.meter

        def counted(g: Tensor) -> Tensor:
            meter.add(path, amount(g))
            return g

        return with_gradient_hook(out, counted)

    def own_gradient(self, call: Call) -> Any:
        """The function's own gradient, what it does not conserve measured as absorbed."""
        path, meter = self.path, self.meter

        def given_on(g: Tensor, value: Tensor) -> tuple[Tensor]:
            meter.add(path, -batch_dot(g, value))
            return (g,)

        out = call.run_with({id(t): self.watched(t, given_on) for t in call.data})
        for t in iter_tensors(out):
            if t.requires_grad:
                saved = self.save(t)
                t.register_hook(lambda g, saved=saved: meter.add(path, batch_dot(g, saved.value)))
        return out

    def unknown_function(self, call: Call) -> Any:
        """What the caller wants done with a function that may not be linear and has no rule."""
        selector = selector_name(call.function) or repr(self.path)
        message = (
            f"'{call.name}' in '{self.path}' is not known to be linear and has no rule; give it one, such as "
            f"LRP({{{selector}: whence.Identity()}}) (activation with f(0) = 0), whence.Constant() (gate, statistic) or "
            "whence.Gradient(), or pass LRP(unknown='gradient')"
        )
        if self._unknown == "error":
            return self.refused(call, UnknownFunctionError(message))
        if self._unknown == "warn":
            warnings.warn(message, stacklevel=2)
        return self.own_gradient(call)

    def refused(self, call: Call, error: WhenceError) -> Any:
        """The call's value; the error is for relevance that comes back by it. A loss on the side may do as it likes."""
        return call.run_with({id(t): self.impassable(t, error) for t in call.data})

    def impassable(self, t: Tensor, error: WhenceError) -> Tensor:
        """The same tensor, and an error for its gradient."""

        def back(g: Tensor) -> tuple[Tensor]:
            raise error

        return self.node(t, t.detach, back, lambda value: ())

    def distributed(
        self, source: Tensor, value: Callable[[], Tensor], distribute: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """A value whose relevance goes to `source` as `distribute(relevance, source, value)` says: beside the input where the
        source is the input moved about, else as R / a, and what falls on hidden zeros is absorbed."""
        companion, path, a = self.companion(source), self.path, source.detach()
        if companion is None and source.is_leaf:  # within relevance_rules
            raise RuleError(f"'{path}' touches the input, where its relevance is not of the form x * gradient; use explain()")
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
        """A linear map with the rule the user has for it. `native`: autograd's own gradient is the transposed map."""
        known = self.known.inherited(source)
        companion = known.companion
        rule = self.linear_rule(call.name, companion is not None) or default
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
        """Hang the node of a step on its input; the result remembers the link."""
        return self._hang(ModifiedBackward, link, value)

    def overwriting_step(self, link: LinearLink, value: Callable[[], Tensor], target: Tensor) -> Tensor:
        """As `step`, where `value` overwrites `target`, the output that the link was remembered by."""
        self.known.note(target)
        target.detach_()  # off the way back: the new node stands in for the one that made it
        self.before_overwriting(target)
        return self._hang(InPlaceBackward, link, value, target)

    def remember(self, out: Tensor, link: LinearLink) -> None:
        """Let consumers of `out` take over the linear map it came from."""
        self.known.note(out, link=link)

    def _hang(self, node: Any, link: LinearLink, value: Callable[[], Tensor], *target: Tensor) -> Tensor:
        step, source = link.step, link.source.detach()
        back = LinearBackward(step, source.shape, self.meter, self.made, self.descent, self._several)
        out: Tensor = node.apply(value, back, self._kept(lambda z: back.reads(z, source)), *target, link.source, link.zeros)
        if step.rectified:  # nobody takes a ReLU over: what follows it does not follow the map
            self.known.note(out, Facts(nonnegative=True))
        else:
            self.remember(out, link)
        return out
