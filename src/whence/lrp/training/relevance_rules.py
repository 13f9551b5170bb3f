"""`relevance_rules`: modified gradients in plain PyTorch code, and losses that depend on relevance."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from whence.core.argument_checks import check_arguments
from whence.core.fingerprints import fingerprint
from whence.errors import ModelError, RuleError
from whence.lrp.engine.function_mode import RelevanceMode, modified_gradients
from whence.lrp.engine.op_context import Unknown
from whence.lrp.rules.composites import Composite, Selector
from whence.lrp.rules.rules import Rule
from whence.lrp.torch_compat.model_state import model_settings
from whence.lrp.training.differentiable import state_tensors, trace_relevance


@check_arguments
@contextmanager
def relevance_rules(
    model: nn.Module | None,
    rules: Mapping[Selector, Rule] | Composite,
    *,
    unknown: Unknown = "error",
    differentiable: bool = False,
) -> Iterator[RelevanceMode | None]:
    """Modify gradients by LRP rules in plain PyTorch code: afterwards the relevance of x is `x * grad`.

    >>> with whence.relevance_rules(model, {torch.nn.Linear: whence.Gamma(0.1)}):
    ...     logits = model(x)
    >>> (g,) = torch.autograd.grad(logits[0, 483], x)
    >>> relevance = x * g

    With `differentiable`, relevance itself has derivatives with respect to inputs and parameters, for losses that depend on it:

    >>> with whence.relevance_rules(model, rules, differentiable=True):
    ...     logits = model(x)                                          # x requires gradients
    >>> (g,) = torch.autograd.grad(logits[:, 3].sum(), x, create_graph=True)
    >>> ((x * g)[:, mask] ** 2).sum().backward()

    `logits` then serve for relevance alone: their gradients are modified, and have no path to the parameters. A loss of the
    output itself, such as the cross-entropy, needs another call of the model, outside of the block. The model must be in eval
    mode.

    Only the calls of `model` itself then follow the rules. Forward and backward pass are traced as one graph at the first call
    with inputs of a new shape (which takes seconds) and cached with the model; parameters and buffers are read at each call.

    Rules of the input layer (`ZBox`, `WSquare`, `Flat`), and distances at the input, are not of the form x · g and raise an
    error; use `whence.explain`. Those of presets are left out: with `attn_lrp` the convolution that reads a color picture has
    γ here, where `LRP` has the flat rule.

    Args:
        model: The model; None if no selector is a module path and `differentiable` is False.
        rules: A dict from selectors to rules, or a preset.
        unknown: Handling of functions that are not known to be linear and have no rule: "error", "warn" (and use their own
            gradient) or "gradient" (silently).
        differentiable: Whether relevance itself can be differentiated.

    Returns:
        A context manager in which gradients are modified.

    Raises:
        RuleError: For rules of the input layer, or if the model is missing but needed.
        SelectorError: If a selector matched no call in the block.
        ModelError: If another explanation is active in this thread, or the model is in training mode with `differentiable`.
    """
    if isinstance(model, Mapping | Composite):
        raise RuleError("the first argument of relevance_rules must be the model: relevance_rules(model, rules)")
    if not differentiable:
        with modified_gradients(rules, model, unknown) as mode:
            yield mode
        return
    if not isinstance(model, nn.Module):
        raise RuleError("differentiable=True needs the model: relevance_rules(model, rules, …)")
    calls = _DifferentiableForward(model, Composite.of(rules), unknown)
    before = model.__dict__.get("forward")
    model.__dict__["forward"] = calls
    try:
        yield None
    finally:
        if before is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = before


MAX_GRAPHS = 16  # per model, one for each kind of call
GRAPHS: "WeakKeyDictionary[nn.Module, OrderedDict[Any, GraphModule]]" = WeakKeyDictionary()


class _DifferentiableForward:
    """The model's forward while its relevance can be differentiated."""

    def __init__(self, model: nn.Module, rules: Composite, unknown: Unknown):
        self._model, self._rules = model, rules
        self._unknown: Unknown = unknown
        self._rules_key = fingerprint(rules.entries)  # not its repr: two classes may have one name and one repr
        self._forward = model.forward
        self._writing = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        sources = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if self._writing or not sources or not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        if self._model.training:
            raise ModelError("the model is in training mode, where every forward pass differs; call model.eval() first")
        RelevanceMode.refuse_another()
        graph = self._graph(leaves, structure, sources)
        state = state_tensors(self._model)
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        run = _DifferentiableCall(self._plainly, leaves, structure, tensors, sources, list(state), graph)
        found = _RelevanceFunction.apply(run, *[leaves[i] for i in tensors], *state.values())
        assert run.outputs is not None
        kept, places, spec = run.outputs
        for place, out in zip(places, found, strict=True):  # type: ignore[arg-type]
            kept[place] = out
        return tree_unflatten(kept, spec)

    def __reduce__(self):
        raise ModelError("the model cannot be copied or saved within relevance_rules(…, differentiable=True); leave it first")

    def _plainly(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        return self._forward(*args, **kwargs)

    def _graph(self, leaves: list[Any], structure: TreeSpec, sources: list[int]) -> GraphModule:
        """Return the graph of this kind of call, traced once."""
        known = GRAPHS.setdefault(self._model, OrderedDict())
        kinds = tuple((leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves)
        kinds += tuple((t.shape, t.dtype, t.device) for t in state_tensors(self._model).values())
        key = (
            self._rules_key,
            self._unknown,
            structure,
            kinds,
            tuple(sources),
            model_settings(self._model, {"forward"}),
        )
        if key not in known:
            self._writing = True
            try:
                known[key] = trace_relevance(
                    self._model, self._rules, self._unknown, leaves, sources,
                    lambda given: tree_unflatten(given, structure), lambda found: _floating_outputs(found)[0],
                )  # fmt: skip
            finally:
                self._writing = False
        known.move_to_end(key)
        while len(known) > MAX_GRAPHS:
            known.popitem(last=False)
        return known[key]


class _DifferentiableCall:
    """One call of the model: its arguments, and the graph of its backward pass."""

    def __init__(self, forward: Any, leaves: list[Any], structure: TreeSpec, tensors: list[int], sources: list[int],
                 names: list[str], graph: GraphModule):  # fmt: skip
        self.forward, self.leaves, self.structure = forward, leaves, structure
        self.tensors, self.sources, self.names, self.graph = tensors, sources, names, graph
        self.outputs: tuple[list[Any], list[int], TreeSpec] | None = None


class _RelevanceFunction(torch.autograd.Function):
    """Function with the model's outputs, whose backward pass computes the modified gradients by differentiable functions."""

    @staticmethod
    def forward(ctx, run: _DifferentiableCall, *given: Tensor):
        leaves = list(run.leaves)
        for place, t in zip(run.tensors, given, strict=False):
            leaves[place] = t.clone() if place in run.sources else t  # a model may modify it in place
        args, kwargs = tree_unflatten(leaves, run.structure)
        found, places, kept, spec = _floating_outputs(run.forward(args, kwargs))
        run.outputs = kept, places, spec
        ctx.run = run
        ctx.save_for_backward(*given)
        return tuple(found)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        run, saved = ctx.run, ctx.saved_tensors
        leaves = list(run.leaves)
        for place, t in zip(run.tensors, saved, strict=False):
            leaves[place] = t
        state = dict(zip(run.names, saved[len(run.tensors) :], strict=True))
        found = dict(zip(run.sources, run.graph(leaves, state, list(gradients)), strict=True))
        return None, *[found.get(place) for place in run.tensors], *[None] * len(state)


def _floating_outputs(found: Any) -> tuple[list[Tensor], list[int], list[Any], TreeSpec]:
    """Return the floating-point outputs, their indices among all leaves, all leaves, and the tree structure."""
    leaves, spec = tree_flatten(found)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [leaves[i] for i in places], places, leaves, spec
