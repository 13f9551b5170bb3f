"""Tracing of forward and backward pass as one graph of functions without side effects, which can be differentiated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.lrp.engine.function_mode import modified_gradients
from whence.lrp.engine.op_context import Unknown
from whence.lrp.rules.composites import Composite
from whence.lrp.torch_compat.traced_constants import CONSTANT_READS

PASS_THROUGH = (torch.ops.aten.expand.default, torch.ops.aten._to_copy.default)
ALIASES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)

Call = Callable[[Sequence[Any]], tuple[Any, Mapping[str, Any]]]  # leaves of the arguments -> (args, kwargs)


def trace_relevance(
    model: nn.Module,
    rules: Composite,
    unknown: Unknown,
    leaves: Sequence[Any],
    sources: Sequence[int],
    arguments: Call,
    outputs: Callable[[Any], list[Tensor]],
) -> GraphModule:
    """Return `graph(tensors, state, gradients)`, which computes the modified gradients at the `sources`.

    `sources` are indices of the leaves of the arguments, `gradients` those at the outputs, and `state` the parameters and
    buffers by name.
    """
    tensors = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    state = state_tensors(model, detached=True)

    def way_back(tensors: list[Any], state: dict[str, Tensor], gradients: list[Tensor]) -> list[Tensor]:
        given = list(tensors)
        for i in sources:
            given[i] = given[i].detach().requires_grad_()
        args, kwargs = arguments(given)
        with modified_gradients(rules, model, unknown):
            found = outputs(functional_call(model, state, args, dict(kwargs)))
        pairs = [(out, g) for out, g in zip(found, gradients, strict=True) if out.requires_grad]
        at_sources = [given[i] for i in sources]
        back = torch.autograd.grad([o for o, _ in pairs], at_sources, [g for _, g in pairs], allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(at_sources, back, strict=True)]

    with torch.no_grad():
        args, kwargs = arguments(tensors)
        like = [torch.zeros_like(out) for out in outputs(functional_call(model, state, args, dict(kwargs)))]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # other kernels have no second derivatives
        written = _remove_aliases(make_fx(way_back, decomposition_table=CONSTANT_READS)(tensors, state, like))
    pure = make_fx(functionalize(written, remove="mutations"), decomposition_table={torch.ops.aten.copy.default: _copy})
    return _make_quotients_safe(_remove_aliases(pure(tensors, state, like)))


def state_tensors(model: nn.Module, detached: bool = False) -> dict[str, Tensor]:
    """Return the parameters and buffers by name."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.detach() for name, t in found.items()} if detached else found


def _make_quotients_safe(graph: GraphModule) -> GraphModule:
    """Replace quotients n / d that are 0 where d is 0, so that their derivatives there are 0 rather than NaN."""
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is not aten.nan_to_num.default:
            continue
        quotient = node.args[0]
        while quotient.op == "call_function" and quotient.target in PASS_THROUGH:
            quotient = quotient.args[0]
        if quotient.target is not aten.div.Tensor or not isinstance(quotient.args[1], Node):
            continue
        numerator, denominator = quotient.args
        with graph.graph.inserting_before(quotient):
            empty = graph.graph.call_function(aten.eq.Scalar, (denominator, 0))
            safe = graph.graph.call_function(aten.masked_fill.Scalar, (denominator, empty, 1))
            divided = graph.graph.call_function(aten.div.Tensor, (numerator, safe))
            result = graph.graph.call_function(aten.masked_fill.Scalar, (divided, empty, 0))
        quotient.replace_all_uses_with(result)
        graph.graph.erase_node(quotient)
    graph.recompile()
    return graph


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Return the value that `target.copy_(source)` leaves in it; torch has no derivative for its functional form."""
    return source.to(target.dtype).expand(target.shape)


def _remove_aliases(graph: GraphModule) -> GraphModule:
    """Remove detach and alias nodes, whose derivative counts here."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target in ALIASES:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
