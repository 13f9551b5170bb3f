"""The `TorchFunctionMode` that intercepts every torch function a model calls and modifies the gradients of some of them.

Forward values are unchanged. After the forward pass, one ordinary backward pass computes the modified gradient g = R/a of
every tensor a, so that its relevance is a · g.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from whence.errors import FLEX_ATTENTION, ModelError, OpaqueError, RuleError, describe_attention_kernel
from whence.lrp.engine.arguments import ArgumentReader
from whence.lrp.engine.conservation import ConservationMeter
from whence.lrp.engine.embeddings import EmbeddingLookups
from whence.lrp.engine.function_calls import (
    INERT_TYPES,
    Call,
    constant_parameters,
    input_dependent,
    iter_tensors,
    overwrites,
    undetached,
)
from whence.lrp.engine.model_outputs import logits_of
from whence.lrp.engine.op_context import DeferredGate, OpContext, SaturatedValue, Unknown
from whence.lrp.engine.prepared_model import PreparedModel
from whence.lrp.engine.propagation import InputCompanion
from whence.lrp.engine.tensor_facts import NO_FACTS, Facts, propagate_facts
from whence.lrp.ops.activations import identity, rectify
from whence.lrp.ops.attention import math_kernel, needs_math_kernel
from whence.lrp.ops.function_facts import function_facts
from whence.lrp.ops.function_names import LEAVES_VALUES
from whence.lrp.ops.opaque_modules import hidden_linear_map, opaque_module
from whence.lrp.ops.registry import ADDS, LINEAR_MAPS, Op, find_op
from whence.lrp.ops.saturated_flow import Flow, can_flow, flow_of_logits
from whence.lrp.rules.composites import Composite, Selector, has_input_rule, picture_convolution
from whence.lrp.rules.rules import Constant, FunctionRule, Gradient, Identity, Rule
from whence.lrp.torch_compat.deferred_checks import known_true
from whence.lrp.torch_compat.interrupts import raise_pending
from whence.lrp.torch_compat.model_state import save_before_overwrite
from whence.lrp.torch_compat.module_tracker import ModulePlace, ModuleTracker
from whence.lrp.torch_compat.saved_tensors import SavedTensor, function_name
from whence.lrp.torch_compat.torch_patches import FORCE_EAGER, LOOPED_VMAP, TRACKED_CHECKPOINTS, recompute_with

DIFFERENTIATING = ("grad", "backward")
HOOK_REGISTRATION = "register_hook"
SHAPED_LIKE = frozenset({"view_as", "reshape_as", "expand_as", "type_as"})
# arguments, by position and name, to which something is added: a gate there is no factor
ADDED_ARGUMENTS = dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "addr", "addcmul", "addcdiv"), ((0, "input"),)) | {
    "lerp": ((0, "input"), (1, "end")), "scaled_dot_product_attention": ((3, "attn_mask"),),
}  # fmt: skip
RANDOM_FUNCTIONS = frozenset(
    {"dropout", "bernoulli", "multinomial", "normal", "rand_like", "randn_like", "rrelu", "gumbel_softmax"}
)
# autograd.Functions that only store values, whose own backward pass holds for every rule
LINEAR_FUNCTIONS = frozenset({"torchdiffeq._impl.rk_common._UncheckedAssign"})


class GradientMode(TorchFunctionMode):
    """Base class of the modes; only one may be active in a thread, since two sets of rules cannot modify the same gradient."""

    _entered = threading.local()

    def __init__(self, scope: ModuleTracker, lookups: EmbeddingLookups, meter: ConservationMeter | None = None):
        super().__init__()
        self.scope, self.lookups = scope, lookups
        self.meter = meter or ConservationMeter(idle=True)
        self.saving: AbstractContextManager = nullcontext()  # to enter around the forward pass
        self.written: list[Tensor] = []  # further tensors whose gradients are read
        self.observed = False  # whether hooks that the model registers in its forward pass read gradients
        self.recomputing = False  # a checkpointed part, in the backward pass
        self._outer: list[GradientMode | None] = []
        self._around = ExitStack()

    def __enter__(self):
        outer = self.under_way()
        if outer is not self:
            self.refuse_another()
        if outer is None and not self.recomputing:
            for context in (FORCE_EAGER, LOOPED_VMAP, TRACKED_CHECKPOINTS, recompute_with(self._recompute)):
                self._around.enter_context(context)
        self._outer.append(outer)
        self._entered.mode = self
        return super().__enter__()

    @classmethod
    def under_way(cls) -> "GradientMode | None":
        """Return the mode that is active in this thread, or None."""
        return getattr(cls._entered, "mode", None)

    @classmethod
    def refuse_another(cls) -> None:
        """Raise `ModelError` if a mode is active in this thread."""
        if cls.under_way() is not None:
            raise ModelError(
                "another explanation or relevance_rules block is already active in this thread; leave it before starting "
                "this one"
            )

    def __exit__(self, *exception):
        self._entered.mode = self._outer.pop()
        if self._entered.mode is None and not self.recomputing:
            self._around.close()
        return super().__exit__(*exception)

    def pin(self, t: Tensor) -> None:
        """Keep `t` in the graph, so that its gradient can be read."""

    def what_blocks(self) -> str:
        """Return the end of an error message: the likely reason why the output does not depend on the input."""
        return ""

    def before_saturation(self, outputs: Any, of_boxes: bool = False) -> Any:
        """Return the outputs that classes are selected from."""
        return outputs

    def with_gradient(self, value: Tensor) -> Tensor:
        """Return the value to explain for a selected one."""
        return value

    def from_the_middle(self) -> AbstractContextManager:
        """Prepare a backward pass from an intermediate layer."""
        return nullcontext()

    def _observing_hook(self, register: Callable[..., Any], args: tuple) -> Any:
        """Register a hook of the model for observation only: the gradient that it returns is for training and is ignored."""
        t, hook = args
        self.observed = True

        def look(g: Tensor) -> None:
            hook(g)

        return register(t, look)

    def _recompute(
        self, function: Callable[..., Any], args: tuple
    ) -> tuple[Callable[..., Any], Callable[[], AbstractContextManager]]:
        """Return a checkpointed function and the context to recompute it in."""
        return function, partial(self._recomputed, self.scope.place)

    @contextmanager
    def _recomputed(self, place: ModulePlace) -> Iterator[None]:
        before, self.recomputing = self.recomputing, True
        try:
            with self.scope.resumed(place, self.pin), self:
                yield
        finally:
            self.recomputing = before


class ConstantParameters(GradientMode):
    """Mode for plain gradients with respect to the input; parameters are treated as constants."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        raise_pending()
        facts = function_facts(function)
        if facts.asks:
            return function(*args, **(kwargs or {}))
        if facts.name == HOOK_REGISTRATION:
            return self._observing_hook(function, args)
        if overwrites(facts, kwargs or {}) and args and isinstance(args[0], Tensor):
            save_before_overwrite(args[0])
        given = args, kwargs or {}
        args, kwargs = constant_parameters(*given)
        if facts.name == "scaled_dot_product_attention" and needs_math_kernel(call := Call.of(function, args, kwargs)):
            return math_kernel(call)
        out = self.lookups.run(function, args, kwargs, record=not self.recomputing)
        out = undetached(out, given, (args, kwargs))
        if function is torch.nn.functional.batch_norm and out.requires_grad:
            out.register_hook(torch.Tensor.contiguous)  # else torch 2.13 can compute a wrong gradient on CPU, in eval mode
        return out


class RelevanceMode(GradientMode):
    """Mode that replaces gradients by those of the rules; `explain` and `relevance_rules` are built on it.

    Args:
        rules: Composite, or mapping of selectors to rules.
        scope: Tracker of the running module.
        prepared: Model with its module outline and weight cache.
        unknown: What happens at a function that is not known to be linear and has no rule: an error, a warning and its own
            gradient, or its own gradient.
        inputs: Tensors to explain, which rules of the input layer apply to.
        lookups: Embedding look-ups of the integer inputs.
        explains: Whether `inputs` are all that is explained and the conservation account is read.
        several: Whether several backward passes start from the same forward pass.
    """

    def __init__(
        self,
        rules: Mapping[Selector, Rule] | Composite,
        scope: ModuleTracker,
        prepared: PreparedModel,
        unknown: Unknown = "error",
        inputs: Sequence[Tensor] = (),
        lookups: EmbeddingLookups | None = None,
        explains: bool = False,
        several: bool = False,
    ):
        super().__init__(scope, lookups or EmbeddingLookups({}), ConservationMeter(idle=not explains))
        self.matcher = prepared.matcher(rules)
        self.bench = OpContext(prepared, self.matcher, scope, self.meter, unknown, several, lambda: self)
        scope.leaving, scope.replacing = self._opaque_module, self.bench.known.stands_for
        # zeros whose gradients are the relevance by rules of the input layer: one per input, then one per recorded look-up
        self.written = [torch.zeros_like(x, requires_grad=True) for x in inputs]
        self.beside_lookups: list[int] = []  # indices of those look-ups
        # of any kind of input: the default's rule of pictures does not act on looked-up vectors
        self._rules_at_input = has_input_rule(Composite.of(rules))
        self._rules_of_pictures = any(selector is picture_convolution for selector, _ in Composite.of(rules).entries)
        self._explains = explains
        self.saturated = ""  # note for the explanation where the logits are explained instead of the probabilities
        # values that an opaque module modified in place
        self._before_module: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        # outputs of modules with backward hooks: keep them alive, since facts are held by weak references
        self._looked_at: list[object] = []
        self._reader = ArgumentReader(self.bench.known, all_known=self._explains)
        # tensors that native functions save for their gradients go through the cells as well
        guard = saved_tensors_hooks(self.bench.cells.save, SavedTensor.value.fget)  # type: ignore[attr-defined]
        self.saving = guard if prepared.guarded else nullcontext()
        for x, written in zip(inputs, self.written, strict=True):
            self.bench.known.note(x, Facts(known_true(x.detach() >= 0), InputCompanion(written)))

    @property
    def picture_note(self) -> str:
        """The note where no convolution has the rule of color pictures, but one of three channels could have had it."""
        layer = self.bench.reads_modified
        if not self._rules_of_pictures or self.bench.reads_picture or layer is None:
            return ""
        return (
            f"the flat rule of pictures is not used: the convolution {layer or 'of three channels'!r} does not read the pixels "
            "of the input; if it reads a modified picture, explain that picture, explain(network, modify(x))"
        )

    def __torch_function__(self, function, types, args=(), kwargs=None):
        raise_pending()
        operation, known = find_op(function), self.bench.known
        if operation.asks:
            return function(*args, **kwargs) if kwargs else function(*args)
        if self.scope.place.hides_linear_map:  # its kernels may have no gradients
            with torch.no_grad():
                return function(*args, **kwargs) if kwargs else function(*args)
        if operation.passes_by and self._unremarkable(args, kwargs):
            out = function(*args, **kwargs) if kwargs else function(*args)
            for t in (out,) if type(out) is Tensor else iter_tensors(out):
                known.see(t)
            return out
        facts = operation.facts
        if facts.name in SHAPED_LIKE and len(args) == 2 and isinstance(args[0], Tensor) and not args[0].requires_grad:
            args = (args[0], args[1].detach() if isinstance(args[1], Tensor) else args[1])  # only its shape or type is read
        call = self._reader.call(function, facts, args, kwargs or {})
        if self.bench.deferred and call.constants and torch.is_grad_enabled():
            call = self._with_live_gates(operation, call)
        if not call.data or not torch.is_grad_enabled():
            gates = self._gates_among(call.constants) if self.bench.deferred and torch.is_grad_enabled() else {}
            out = self._beside(call, (args, kwargs or {}))
            if gates:
                self._follow_gates(gates, call, out)
            return out
        if self._reader.strangers:
            if self._explains and self.bench.function_rule("") is not None and not self._aliases(self._reader.strangers):
                return function(*args, **(kwargs or {}))  # in a module that its rule treats as a whole when it is left
            call = self._meet(self._reader.strangers, call)
        results = propagate_facts(call, known) if facts.passes_on else NO_FACTS
        if call.overwrites:
            out = self._overwrite(operation, call)
        elif operation.alone and all(map(known.plain, call.data)) and operation.alone(self.bench, call):
            out = call.run()
        else:
            out = self._pass(operation, call)
        if self.bench.saturated and not call.overwrites:
            self._follow_saturated(call, out)
        for t in (out,) if type(out) is Tensor else iter_tensors(args[0] if out is None else out):
            if results is not NO_FACTS:
                known.learn(t, results)
            elif t.requires_grad:
                known.see(t)
        return out

    def what_blocks(self) -> str:
        """Return the end of an error message: the likely reason why the output does not depend on the input."""
        if self.bench.last_constant is None:
            return "; look for a .detach(), a cast to integers or a torch.no_grad() block in the forward pass"
        held = f"{self.bench.last_constant} is held constant as a gate or statistic, so no relevance passes through it"
        explain = "explain the value before it (the logits), as in target=whence.objectives.Neuron('head', 3)"
        return f"; {held}. Either {explain}, or give it a rule"

    def before_saturation(self, outputs: Any, of_boxes: bool = False) -> Any:
        """Return the logits if the outputs are a sigmoid or softmax, through which no relevance passes, else the outputs.

        The scores of boxes may be products, joined or sorted; of other outputs, the class of the largest logit would then not
        be the predicted one.
        """
        logits = logits_of(outputs)
        before = self.bench.saturation(logits) if isinstance(logits, Tensor) else None
        if before is None or not (before.rearranged or of_boxes):
            return outputs
        self.saturated = f"before the final {before.name}"
        return before.value()

    def with_gradient(self, value: Tensor) -> Tensor:
        """Return an explained value; one that is held constant as a gate, or computed from gates alone, with its gradient."""
        gate = self.bench.deferred_gate(value)
        return value if gate is None else gate.live()

    def forget(self) -> None:
        """Discard the tensors of the forward pass, which would wait for garbage collection: the mode refers to itself."""
        self.bench.forget()
        self.written.clear()

    def pin(self, t: Tensor) -> None:
        """Prevent later functions from merging with the linear map that made `t`, since relevance is read at `t`."""
        self.bench.known.without_link(t)

    @contextmanager
    def from_the_middle(self) -> Iterator[None]:
        """Prepare a backward pass from an intermediate layer: a new conservation account, the same layer numbers."""
        self.meter.forget()
        with self.bench.depths.as_before():
            yield

    # reading arguments

    def _unremarkable(self, args: tuple, kwargs: dict[str, Any] | None) -> bool:
        """Return whether the first argument depends on the input without relevant facts, and no other argument is a tensor."""
        if not args or not self.bench.known.plain(args[0]) or not args[0].requires_grad:
            return False
        if self.bench.saturated and self.bench.saturation(args[0]) is not None:  # its logits are followed
            return False
        for value in args[1:]:
            if type(value) not in INERT_TYPES and not (type(value) is tuple and INERT_TYPES.issuperset(map(type, value))):
                return False
        return not kwargs or (INERT_TYPES.issuperset(map(type, kwargs.values())) and "inplace" not in kwargs)

    def _aliases(self, strangers: Sequence[Tensor]) -> bool:
        """Return whether all strangers are leaves or aliases of registered tensors by a module's backward hook."""
        return all(t.grad_fn is None or self.bench.known.looked_at(t) is not None for t in strangers)

    def _meet(self, strangers: Sequence[Tensor], call: Call) -> Call:
        """Register tensors seen for the first time: leaves, aliases by a module's backward hook, opaque functions' outputs."""
        replaced = {}
        for t in strangers:
            original = self.bench.known.looked_at(t) if t.grad_fn is not None else None
            if original is not None:
                self.bench.known.stands_for(t, original)
            elif t.grad_fn is not None and function_name(t.grad_fn) not in LINEAR_FUNCTIONS:
                replaced[id(t)] = self.bench.impassable(t, self._unseen(t.grad_fn.name(), call.name))
                self.bench.see(replaced[id(t)])
            else:
                self.bench.see(t)
        return call.with_replaced(replaced) if replaced else call

    def _unseen(self, maker: str, reader: str) -> OpaqueError:
        here = f"'{reader}' in '{self.scope.path}'"
        if maker.startswith("CheckpointFunction"):
            return OpaqueError(
                f"{here} reads the output of a reentrant checkpoint, whose functions cannot be intercepted; use "
                "checkpoint(…, use_reentrant=False)"
            )
        if maker.startswith("FlexAttention"):
            return OpaqueError(f"{here}: {FLEX_ATTENTION}")
        if kernel := describe_attention_kernel(maker):
            return OpaqueError(f"{here}: {kernel}")
        return OpaqueError(
            f"{here} reads a tensor made by {maker}, which whence cannot intercept: an autograd.Function, a compiled "
            "extension, or code that ran outside the rules; write it with torch functions, detach it, or give its module "
            "a rule: LRP({'path.of.module': whence.Gradient()}) uses its own backward pass, which is right where it is "
            "linear, whence.Identity() is right for an elementwise activation"
        )

    # dispatch

    def _beside(self, call: Call, given: tuple[tuple, dict]) -> Any:
        """Run a call that no relevance passes through: constants, token ids before their look-up, code without gradients."""
        if self._reader.met_own_graph:
            out = call.function(*given[0], **given[1])
            self._reader.of_own_graph(out)
            return out
        if call.overwrites and call.args and isinstance(call.args[0], Tensor):
            self._overwrite_unseen(call.args[0], call.name)
        out = self.lookups.run(call.function, call.args, call.kwargs, record=not self.recomputing, see=self._see_looked_up)
        if self.bench.saturated:
            self._follow_saturated(call, out)
        return undetached(out, given, (call.args, call.kwargs))

    def _see_looked_up(self, t: Tensor) -> None:
        """Register looked-up vectors as the input, for rules of the input layer, unless the look-up pooled them itself."""
        lookup = self.lookups.found[-1]
        self.bench.see(lookup.vectors)  # the leaf: graphs of functions that cannot be intercepted lead to it
        if not self._rules_at_input or self.recomputing or t.numel() != lookup.vectors.numel():
            self.bench.see(t)
            return
        self.written.append(torch.zeros_like(t, requires_grad=True))
        self.beside_lookups.append(len(self.lookups.found) - 1)
        self.bench.known.note(t, Facts(companion=InputCompanion(self.written[-1])))

    def _with_live_gates(self, operation: Op, call: Call) -> Call:
        """Return the call with the gates that it adds to data, or maps linearly, as values with a gradient."""
        resolves = operation.treatment in (ADDS if call.data else LINEAR_MAPS)
        if not resolves and not (call.overwrites and operation.treatment in ADDS):
            places = ADDED_ARGUMENTS.get(call.name, ()) if call.data else ()
            added = [t for place, key in places if isinstance(t := call.kwargs.get(key, _at(call.args, place)), Tensor)]
            gates = self._gates_among([t for t in added if not t.requires_grad])
        else:
            gates = self._gates_among(call.constants)
        if call.overwrites and call.args:  # modified in place: no other tensor may replace it
            gates.pop(id(call.args[0]), None)
        if not gates:
            return call
        live = {key: gate.live() for key, gate in gates.items()}
        for t in call.constants:
            if id(t) in live and (record := self.bench.saturation(t)) is not None:  # of a score that is added has a logit too
                self.bench.saturated[live[id(t)]] = record._replace(version=live[id(t)]._version)
        call = call.with_replaced(live)
        return self._reader.call(call.function, call.facts, call.args, call.kwargs)

    def _gates_among(self, constants: Sequence[Tensor]) -> dict[int, DeferredGate]:
        return {id(t): gate for t in constants if (gate := self.bench.deferred_gate(t)) is not None}

    def _follow_gates(self, gates: dict[int, DeferredGate], call: Call, out: Any) -> None:
        """Defer the results of functions of gates alone, as in `1 - sigmoid(x)`: held constant, and live where added."""
        if torch.Tag.nondeterministic_seeded in getattr(call.function, "tags", ()) or call.name in RANDOM_FUNCTIONS:
            return
        again = call.out_of_place() if call.overwrites else call

        def live() -> list[Tensor]:
            run = partial(again.run_with, {key: gate.live() for key, gate in gates.items()})
            return [self.with_gradient(t) for t in iter_tensors(self.bench.follow(run))]

        results = list(iter_tensors(call.args[0] if call.overwrites else out))
        if not any(t.requires_grad or self.bench.deferred_gate(t) is not None for t in results):
            self.bench.defer_all(results, live)

    def _follow_saturated(self, call: Call, out: Any) -> None:
        """Follow saturated values through functions that rearrange, select, join or multiply them.

        Examples are `sigmoid(x).squeeze(1)`, the scores of the boxes that non-maximum suppression keeps, and
        σ(class) · σ(objectness), whose logits are added, since the logarithms of small scores are.
        """
        if not can_flow(call):
            return
        given = (*call.constants, *call.data)
        before = {id(t): found for t in given if (found := self.bench.saturation(t)) is not None}
        flow = flow_of_logits(call, out, before) if before else None
        if flow is None:
            return
        logits = cache(lambda: self.bench.follow(self._logits_behind, flow, before))
        name = " and ".join(dict.fromkeys(found.name for found in before.values()))
        rearranged = call.facts.moves and all(found.rearranged for found in before.values())
        for place, t in enumerate(t for t in iter_tensors(out) if t.is_floating_point()):
            value = lambda place=place: logits()[place]  # noqa: E731
            self.bench.saturated[t] = SaturatedValue(name, t._version, value, rearranged)

    def _logits_behind(self, flow: Flow, before: Mapping[int, SaturatedValue]) -> Any:
        return flow({key: found.value() for key, found in before.items()})

    def _overwrite_unseen(self, target: Tensor, name: str) -> None:
        """Check an in-place operation without gradients: allowed on buffers, an error on tensors that depend on the input."""
        if target.requires_grad and self.bench.function_rule("") is not None:  # within a module that has a rule as a whole
            if target not in self._before_module:
                self._before_module[target] = target.detach().clone()
        elif target.requires_grad and name not in LEAVES_VALUES:
            raise ModelError(
                f"'{name}' in '{self.scope.path}' modifies a tensor that depends on the input in place under "
                "torch.no_grad(), which relevance cannot be propagated through; run it outside no_grad or make it out-of-place"
            )
        self.bench.before_overwriting(target)

    def _overwrite(self, operation: Op, call: Call) -> Any:
        if operation.treatment is rectify:
            return self._pass(operation, call)
        target = call.args[0]
        if call.name in LEAVES_VALUES or (target.is_leaf and target.requires_grad):
            return call.run()
        if operation.alone and operation.alone(self.bench, call):
            self.bench.before_overwriting(target)
            return call.run()
        return self._write_back(target, self._pass(operation, call.out_of_place()))

    def _write_back(self, target: Tensor, value: Tensor) -> Tensor:
        """Store `value` and its graph in `target`, as an in-place function would."""
        if target._is_view() and target.requires_grad and not value.requires_grad:
            raise ModelError(
                f"{self.bench.last_constant} is written into a part of a tensor in place, but is held constant as a gate or "
                "statistic; make that operation out-of-place"
            )
        self.bench.before_overwriting(target)
        if target.requires_grad and not target._is_view():
            target.detach_()  # its earlier value is reached through `value` alone
        target.copy_(value)
        if target._base is not None:
            self.bench.see(target._base)
        return target

    def _pass(self, operation: Op, call: Call) -> Any:
        if operation.treatment is None:
            return self._untabled(call)
        rule = self.bench.function_rule(call.name) if operation.by_rule else None
        out = operation.treatment(self.bench, call) if rule is None else _rule_treatment(rule)(self.bench, call)
        if operation.saturates and (rule is None or isinstance(rule, Constant)) and not call.overwrites:
            self.bench.saturated[out] = SaturatedValue(call.name, out._version, lambda source=call.data[0]: source)
        return out

    def _untabled(self, call: Call) -> Any:
        if call.name in DIFFERENTIATING and self._explains:
            raise ModelError(
                f"the model calls torch.autograd in its forward pass, in '{self.scope.path}', on a tensor that depends on the "
                "input; the rules would change the gradients it computes. Explain the part of the model before that call"
            )
        if call.name == HOOK_REGISTRATION and self._explains:
            return self._observing_hook(call.function, call.args)
        out = call.run()
        if not any(t.requires_grad and all(t is not d for d in call.data) for t in iter_tensors(out)):
            return out  # a size, an argmax, a comparison: without a gradient, so no relevance enters it
        rule = self.bench.function_rule(call.name)
        return self.bench.unknown_function(call) if rule is None else _rule_treatment(rule)(self.bench, call)

    def _opaque_module(self, module: torch.nn.Module, args: tuple, kwargs: dict, output: object) -> Tensor | None:
        """Return the output of a module whose functions cannot be intercepted, with the gradient by the module's rule."""
        if module._backward_hooks or module._backward_pre_hooks:
            self._looked_at.append(output)
        if not isinstance(output, Tensor) or self.bench.known.seen(output):
            return None
        with torch._C.DisableTorchFunction():
            hidden = self.scope.place.hides_linear_map
            if not hidden and (not output.requires_grad or output.grad_fn is None):
                return None
            rule, data = self.bench.function_rule(""), input_dependent(args, kwargs)
            if len(data) != 1 or (rule is None and not hidden):
                return None
            return self._by_rule(rule, Call.of(module.forward, args, kwargs, data), output)

    def _by_rule(self, rule: FunctionRule | None, call: Call, output: Tensor) -> Tensor:
        (x,) = call.data
        before = self._before_module.get(x)
        source, value = x.detach() if before is None else before, output.detach()
        if rule is None:
            seen = hidden_linear_map(self.bench, call, source, value)
        else:
            seen = opaque_module(self.bench, call, source, value, rule)
        if seen.requires_grad:
            self.bench.see(seen)
        return seen

    # parts that are recomputed

    def _recompute(
        self, function: Callable[..., Any], args: tuple
    ) -> tuple[Callable[..., Any], Callable[[], AbstractContextManager]]:
        """Return a checkpointed function that restores the facts about its arguments, and the context to recompute it in.

        A recomputation cannot merge with a linear map made before its arguments. So the first pass must not either: both
        have to save the same tensors.
        """
        known = self.bench.known
        given = []
        for t in iter_tensors(args):
            if t.requires_grad:
                self.pin(t)
            given.append(known.inherited(t) if known.seen(t) else None)

        def with_knowledge(*args: Any, **kwargs: Any) -> Any:
            for t, inherited_before in zip(iter_tensors((args, kwargs)), given, strict=True):
                if inherited_before is not None:
                    known.note(t, inherited_before)
            return function(*args, **kwargs)

        return with_knowledge, partial(self._recomputed, self.scope.place)

    @contextmanager
    def _recomputed(self, place: ModulePlace) -> Iterator[None]:
        before, self.bench.copies = self.bench.copies, True
        try:
            with super()._recomputed(place):
                yield
        finally:
            self.bench.copies = before


def _at(values: Sequence[Any], place: int) -> Any:
    return values[place] if place < len(values) else None


RULE_TREATMENTS: dict[type, Callable[[OpContext, Call], Any]] = {
    Identity: identity,
    Constant: OpContext.constant,
    Gradient: OpContext.own_gradient,
}


def _rule_treatment(rule: object) -> Callable[[OpContext, Call], Any]:
    return next(treatment for kind, treatment in RULE_TREATMENTS.items() if isinstance(rule, kind))


@contextmanager
def modified_gradients(rules: Mapping[Selector, Rule] | Composite, model: object, unknown: Unknown) -> Iterator[RelevanceMode]:
    """Modify the gradients of all code that runs in this context."""
    composite = Composite.of(rules)
    reason = "whose relevance is not of the form x * gradient; use whence.explain(model, x, method=whence.LRP(rules))"
    proportional = composite.without_input_rules(reason)
    for selector, _ in composite.entries[: composite.required]:
        if isinstance(selector, str) and model is None:
            raise RuleError(f"selector {selector!r} is a module path; pass the model: relevance_rules(model, rules)")
    prepared = PreparedModel(model)
    scope = ModuleTracker(prepared.outline)
    mode = RelevanceMode(proportional, scope, prepared, unknown)
    with scope, mode.saving, mode:
        yield mode
    mode.matcher.check_all_matched(prepared.outline.modules)
