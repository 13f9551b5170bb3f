"""Modules whose functions cannot be intercepted, propagated by the rule of the module."""

from collections.abc import Callable

import torch
from torch import Tensor

from whence.errors import ModelError, RuleError, is_out_of_memory
from whence.lrp.engine.conservation import batch_dot
from whence.lrp.engine.function_calls import Call, map_tensors
from whence.lrp.engine.linear_maps import Dense
from whence.lrp.engine.op_context import DEFAULT_RULE, OpContext
from whence.lrp.engine.propagation import LinearBackward, LinearStep
from whence.lrp.engine.weight_cache import WeightCache
from whence.lrp.ops.activations import output_input_ratio, scale_gradient
from whence.lrp.rules.protocol import is_input_rule
from whence.lrp.rules.rules import Constant, Epsilon, FunctionRule, Identity


def opaque_module(bench: OpContext, call: Call, source: Tensor, value: Tensor, rule: FunctionRule) -> Tensor:
    """Return the output of an opaque module, one of whose arguments depends on the input and had the value `source`."""
    (x,) = call.data
    if isinstance(rule, Constant):
        bench.hold("an opaque module")
        return value
    if isinstance(rule, Identity):
        return bench.node(x, lambda: value, scale_gradient, output_input_ratio(source, 0.0))
    return _by_own_backward(bench, call, source, value, lambda g, value: g)


def hidden_linear_map(bench: OpContext, call: Call, source: Tensor, value: Tensor) -> Tensor:
    """Return the output of a quantised linear layer, with the gradient by the rule of linear maps that holds for it.

    `Epsilon` uses the layer's own backward pass. Other rules need the weight: the layer's outputs for the unit vectors, which
    exists for one layer at a time.
    """
    (x,), path = call.data, bench.path
    rule = bench.linear_rule("linear", touches_input=bench.companion(x) is not None) or DEFAULT_RULE
    if isinstance(rule, Constant):
        bench.hold("a quantised layer")
        return value
    if is_input_rule(rule):
        raise RuleError(f"{type(rule).__name__} is not available for the quantised layer '{path}'; choose whence.Epsilon()")
    if type(rule) is Epsilon:
        return _by_own_backward(bench, call, source, value, lambda g, value: rule.share(g, value, False), linear=True)
    run = _module_of(call, x)
    step = LinearStep(Dense(value.new_empty(0), None), rule, path, bench.known.inherited(x).nonnegative)
    propagate = LinearBackward(step, source.shape, bench.meter, WeightCache(lasting=False), bench.depths, several=False)

    def back(g: Tensor, source: Tensor, value: Tensor) -> tuple[Tensor]:
        placeholder, step.linear = step.linear, _dequantised(run, source)
        try:
            returned, _ = propagate(g, value, source)
        finally:
            step.linear = placeholder
        assert returned is not None
        return (returned,)

    out = bench.node(x, lambda: value, back, lambda value: (source, value))
    bench.depths.add(out, step)
    return out


def _by_own_backward(
    bench: OpContext,
    call: Call,
    source: Tensor,
    value: Tensor,
    share: Callable[[Tensor, Tensor], Tensor],
    linear: bool = False,
) -> Tensor:
    """Return the module's output, with its own backward pass of `share(g, value)` as the gradient; count what that loses.

    A linear map without a backward pass, as 4-bit layers on CPUs, is transposed.
    """
    (x,), path, meter = call.data, bench.path, bench.meter
    run = _module_of(call, x)

    def back(g: Tensor, source: Tensor, value: Tensor) -> tuple[Tensor]:
        passed = share(g, value)
        returned = _own_gradient(run, source, passed, linear)
        if returned is None and not linear:
            raise ModelError(f"module '{path}' has no backward pass; explain the original model")
        returned = passed @ _dequantised(run, source).weight if returned is None else returned
        meter.add(path, batch_dot(g, value))
        meter.add(path, -batch_dot(returned, source))
        return (returned,)

    return bench.node(x, lambda: value, back, lambda value: (source, value))


def _own_gradient(run: Callable[[Tensor], Tensor], source: Tensor, g: Tensor, linear: bool) -> Tensor | None:
    """Return the gradient of ⟨g, run(source)⟩, or None if the module is an inference kernel, which has none or fails."""
    with torch.enable_grad():
        leaf = source.detach().requires_grad_()
        try:
            out = run(leaf.clone())  # a copy: the module may modify it in place
            return torch.autograd.grad(out, leaf, g, allow_unused=True)[0] if out.requires_grad else None
        except RuntimeError as error:
            if not linear or is_out_of_memory(error):
                raise
            return None


def _module_of(call: Call, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the module's forward pass as a function of `x` alone."""
    place, function = torch.empty(0), call.function  # placeholder for x, so that no tensor of the graph is held
    args, kwargs = map_tensors(lambda t: place if t is x else t, call.args, call.kwargs)

    def run(given: Tensor) -> Tensor:
        filled, named = map_tensors(lambda t: given if t is place else t, args, kwargs)
        return function(*filled, **named)

    return run


def _dequantised(run: Callable[[Tensor], Tensor], source: Tensor) -> Dense:
    """Return the linear map of a layer from its outputs for the unit vectors and for 0."""
    with torch.no_grad():
        offset = run(source.new_zeros(1, source.shape[-1]))[0]
        return Dense((run(torch.eye(source.shape[-1], dtype=source.dtype, device=source.device)) - offset).mT, offset)
