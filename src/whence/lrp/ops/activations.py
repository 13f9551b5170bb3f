"""Ops of elementwise functions: ReLU, activations that relevance passes, gates and statistics that no relevance enters."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes

from whence.lrp.engine.function_calls import Call
from whence.lrp.engine.op_context import OpContext
from whence.lrp.ops.arithmetic import extremum
from whence.lrp.torch_compat.saved_tensors import SaveFunction

HOMOGENEOUS = {"std": 1, "var": 2}  # degrees
DEFERRABLE = frozenset({
    "sigmoid", "hardsigmoid", "softplus", "exp", "exp2", "erf", "sqrt", "log_sigmoid", "cos", "cosh", "std", "var",
})  # functions with a finite f(0)  # fmt: skip
SLOPES: dict[tuple[str, str], float] = {}  # slopes of activations at 0, by name and settings


def rectify(bench: OpContext, call: Call) -> Tensor:
    """Keep the gradient of a ReLU; merge it with a linear map before it, whose rule is cheaper with R = 0 at z < 0."""
    (x,) = call.data
    link = bench.link(x)
    if link is None or (call.overwrites and x._is_view()):
        if call.overwrites:
            bench.before_overwriting(x)
        return call.run()
    link = link.rectified()
    return bench.overwriting_step(link, call.run, x) if call.overwrites else bench.step(link, call.run)


def identity(bench: OpContext, call: Call) -> Tensor:
    """Pass R unchanged through an activation with f(0) = 0, as x · (f(x)/x) with a constant quotient (AttnLRP, eq. 9)."""
    if len(call.data) != 1:
        return bench.unknown_function(call)
    (x,) = call.data
    return bench.node(x, call.run, scale_gradient, output_input_ratio(x, _slope_at_zero(call)))


def clamp(bench: OpContext, call: Call) -> Any:
    """Handle a clamp as an activation if 0 is within the bounds, else as an extremum of data and constants."""
    _, low, high = call.bind("input min max", min=None, max=None)
    if isinstance(low, Tensor) or isinstance(high, Tensor) or (low or 0) > 0 or (high is not None and high < 0):
        return extremum(bench, call)
    return identity(bench, call)


def glu(bench: OpContext, call: Call) -> Tensor:
    """Handle a · σ(b) of the two halves of the input, with a constant gate."""
    x, dim = call.bind("input dim", dim=-1)
    gate = x.detach().chunk(2, dim)[1].sigmoid()

    def back(g: Tensor, gate: Tensor) -> tuple[Tensor]:
        passed = g * gate
        return (torch.cat([passed, torch.zeros_like(passed)], dim),)

    return bench.node(x, call.run, back, lambda value: (gate,))


def hold_constant(bench: OpContext, call: Call) -> Any:
    """Hold a gate or a statistic constant, as a factor of a product; elsewhere it is an activation with an offset."""
    if len(call.data) != 1 or call.overwrites or call.name not in DEFERRABLE:
        return bench.constant_factor(call)
    out = bench.constant(call)
    if isinstance(out, Tensor):
        bench.defer(out, lambda: with_offset(bench, call))
    return out


def with_offset(bench: OpContext, call: Call) -> Tensor:
    """Propagate f(x) = f(0) + x · (f(x) − f(0)) / x with a constant quotient; f(0) absorbs. std and var are homogeneous."""
    (x,) = call.data
    with torch._C.DisableTorchFunction():
        if call.name in HOMOGENEOUS:
            finite = bench.watched(x, lambda g, x: (g.nan_to_num(0.0, 0.0, 0.0) / HOMOGENEOUS[call.name],))
            out = call.run_with({id(x): finite})
        else:
            source, at_zero, slope = x.detach(), _value_at_zero(call), _slope_at_zero(call)
            ratio = lambda value: ((value - at_zero).div_(source).nan_to_num_(slope, slope, slope),)  # noqa: E731
            out = bench.absorb(bench.node(x, call.run, scale_gradient, ratio), lambda g: g * at_zero)
    bench.see(out)
    return out


def scale_gradient(g: Tensor, factor: Tensor) -> tuple[Tensor]:
    """Return the gradient of factor · x."""
    return (g * factor,)


def output_input_ratio(x: Tensor, at_zero: float) -> SaveFunction:
    """Return a function that saves f(x)/x, and its limit where x is 0."""
    source = x.detach()
    return lambda value: (torch.div(value, source).nan_to_num_(at_zero, at_zero, at_zero),)


def _value_at_zero(call: Call) -> float:
    """Return f(0)."""
    with torch.no_grad(), _disable_current_modes():
        return float(call.run_with({id(t): torch.zeros(1, dtype=torch.float64) for t in call.data}))


def _slope_at_zero(call: Call) -> float:
    """Return f'(0), the limit of f(x)/x; 0 for functions of whole rows, where a zero input receives no relevance."""
    if call.name == "local_response_norm":
        return 0.0
    key = (call.name, repr([a for a in (*call.args, *call.kwargs.items()) if a is not call.data[0]]))
    if key not in SLOPES:
        # hidden from the saved-tensor hooks of a checkpoint and from a graph that is being traced
        with torch.enable_grad(), saved_tensors_hooks(lambda t: t, lambda t: t), _disable_current_modes():
            zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
            out = call.run_with({id(t): zero.clone() for t in call.data})
            SLOPES[key] = torch.autograd.grad(out, zero)[0].item()
    return SLOPES[key]
