"""Modules whose functions cannot be intercepted, propagated by the rule of the module."""

import torch
from torch import Tensor

from whence.lrp.engine.conservation import batch_dot
from whence.lrp.engine.function_calls import Call, map_tensors
from whence.lrp.engine.op_context import OpContext
from whence.lrp.ops.activations import output_input_ratio, scale_gradient
from whence.lrp.rules.rules import Constant, FunctionRule, Identity


def opaque_module(bench: OpContext, call: Call, source: Tensor, value: Tensor, rule: FunctionRule) -> Tensor:
    """Return the output of an opaque module, one of whose arguments depends on the input and had the value `source`."""
    (x,), path, meter = call.data, bench.path, bench.meter
    if isinstance(rule, Constant):
        bench.hold("an opaque module")
        return value
    if isinstance(rule, Identity):
        return bench.node(x, lambda: value, scale_gradient, output_input_ratio(source, 0.0))
    place, function = (
        torch.empty(0),
        call.function,
    )  # placeholder for x among the arguments, so that no tensor of the graph is held
    args, kwargs = map_tensors(lambda t: place if t is x else t, call.args, call.kwargs)

    def back(g: Tensor, source: Tensor, value: Tensor) -> tuple[Tensor]:
        with torch.enable_grad():
            leaf = source.detach().requires_grad_()
            given = leaf.clone()  # the module may modify it in place
            filled, named = map_tensors(lambda t: given if t is place else t, args, kwargs)
            (returned,) = torch.autograd.grad(function(*filled, **named), leaf, g)
        meter.add(path, batch_dot(g, value))
        meter.add(path, -batch_dot(returned, source))
        return (returned,)

    return bench.node(x, lambda: value, back, lambda value: (source, value))
