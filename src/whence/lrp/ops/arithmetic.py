"""Ops of sums, products, quotients, powers, and functions that rearrange values."""

from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from whence.lrp.engine.function_calls import Call
from whence.lrp.engine.op_context import OpContext
from whence.lrp.engine.propagation import LinearLink
from whence.lrp.torch_compat.saved_tensors import with_backward_of, with_gradient_hook

# factors of both arguments, given `alpha`
SUMS = {"add": lambda alpha: (1, alpha), "sub": lambda alpha: (1, -alpha), "rsub": lambda alpha: (-alpha, 1)}


def plain_gradient(bench: OpContext, call: Call) -> Any:
    """Keep the gradient of a function that is linear or positively homogeneous in its data: by Euler, Σ x · ∂f = f."""
    return call.run()


def affine(bench: OpContext, call: Call) -> Any:
    """Keep the gradient of a function that is linear up to an offset, f(x) = Lx + f(0); the offset absorbs its share."""
    if no_constant_terms(bench, call):
        return call.run()
    if call.name == "add" and (link := _fold_into_linear(bench, call)) is not None:
        return bench.step(link, call.run)
    offset = _added_constant(bench, call) if call.name in SUMS else _value_at_zero(bench, call)
    if not (bench.saturated and any(bench.saturation(t) for t in call.constants)):
        return bench.absorb(call.run(), lambda g: g * offset())

    meter = bench.meter  # the graph must not hold the context, which holds tensors of the graph

    def into_gates(g: Tensor) -> Tensor:
        meter.gates_reached = True
        return g * offset()

    return bench.absorb(call.run(), into_gates)


def extremum(bench: OpContext, call: Call) -> Any:
    """Propagate relevance of a maximum or minimum to the selected argument; selected constants absorb their share."""
    if not call.constants and not call.name.startswith("clamp"):
        return call.run()
    data = [bench.save(t) for t in call.data]
    out = call.run()
    kept = bench.save(out)

    def constants_that_won(g: Tensor) -> Tensor:
        won_by_data = torch.stack([kept.value == d.value.expand_as(kept.value) for d in data]).any(0)
        return g * kept.value.masked_fill(won_by_data, 0)

    return bench.absorb(out, constants_that_won)


def scale(bench: OpContext, call: Call) -> Any:
    """Halve the gradient of a product if both factors depend on the input, else keep it.

    The scaled output of a linear map is recorded as that of a scaled map, in case a shift or a ReLU follows (FrozenBatchNorm).
    """
    if len(call.data) > 1:
        return product(bench, call)
    link = _fold_into_linear(bench, call)
    out = call.run()
    if link is not None:
        bench.remember(out, link)
    return out


def product(bench: OpContext, call: Call) -> Tensor:
    """Give each of the n factors that depend on the input an equal share (AttnLRP, proposition 3.2).

    A value times a function of itself, x · h(x), is an activation that the model writes out (GELU by tanh, x · sigmoid(x)):
    h(x) is constant.
    """
    if call.name == "mul" and (gate := bench.gate(call)) is not None:
        return call.run_with({id(gate): gate.detach()})
    return divide_gradient(call.run(), len(call.data))


def added_scaling(bench: OpContext, call: Call) -> Tensor:
    """Handle input + value · a · b."""
    offset, a, b, value = call.bind("input tensor1 tensor2 value", value=1)
    if not (a.requires_grad and b.requires_grad):
        return affine(bench, call)
    return with_backward_of(call.run, bench.follow(lambda: offset + a * b * value))


def added_quotient(bench: OpContext, call: Call) -> Tensor:
    """Handle input + value · a / b: the denominator is a statistic."""
    _, _, denominator, _ = call.bind("input tensor1 tensor2 value", value=1)
    data = [t for t in call.data if t is not denominator]
    if not data:
        return bench.constant(call)
    held = denominator.detach()
    over_constant = call.with_replaced({id(denominator): held})
    return affine(bench, replace(over_constant, data=data, constants=[*call.constants, held]))


def lerp(bench: OpContext, call: Call) -> Tensor:
    """Handle (1 − w) · start + w · end."""
    start, end, weight = call.bind("input end weight")
    if not isinstance(weight, Tensor) or not weight.requires_grad:
        return affine(bench, call)
    return with_backward_of(call.run, bench.follow(lambda: start + weight * (end - start)))


def grid_sample(bench: OpContext, call: Call) -> Tensor:
    """Handle interpolation at the positions of a grid: linear in the values, the positions are a statistic."""
    keys = "input grid mode padding_mode align_corners"
    values, grid, *_ = call.bind(keys, mode=None, padding_mode=None, align_corners=None)
    return call.run_with({id(grid): grid.detach()}) if values.requires_grad else bench.constant(call)


def scatter_reduce(bench: OpContext, call: Call) -> Tensor:
    """Handle sums, means and extrema of groups, which are homogeneous; products are refused as unknown."""
    of_products = any(isinstance(given, str) and given == "prod" for given in (*call.args, *call.kwargs.values()))
    return bench.unknown_function(call) if of_products else bench.own_gradient(call)


def quotient(bench: OpContext, call: Call) -> Any:
    """Handle a / b: the denominator is a statistic."""
    numerator, denominator, rounding = call.bind("input other rounding_mode", rounding_mode=None)
    if rounding is not None:
        return bench.constant(call)
    if not isinstance(numerator, Tensor) or not numerator.requires_grad:
        return bench.constant_factor(call)
    return call.function(numerator, denominator.detach() if isinstance(denominator, Tensor) else denominator)


def solution(bench: OpContext, call: Call) -> Any:
    """Handle A⁻¹ b, a quotient of matrices: A is a statistic."""
    a, b = call.bind("A B")
    return bench.constant_factor(call) if not b.requires_grad else call.run_with({id(a): a.detach()})


def power(bench: OpContext, call: Call) -> Any:
    """Divide the gradient of xⁿ, which is homogeneous of degree n, by n; a statistic if n ≤ 0."""
    base, exponent = (call.data[0], 2) if call.name == "square" else call.bind("input exponent")
    if type(exponent) in (int, float) and exponent == 2 and base.is_floating_point():
        return base * base.detach()  # the value of base², its gradient halved
    if isinstance(exponent, Tensor) and exponent.numel() == 1 and not exponent.requires_grad:
        exponent = exponent.item()
    if not isinstance(exponent, Real) or exponent <= 0:
        return bench.constant_factor(call)
    return divide_gradient(call.run(), float(exponent))


def divide_gradient(out: Tensor, divisor: float) -> Tensor:
    """Return the tensor with its gradient divided."""
    return with_gradient_hook(out, lambda g: g / divisor)


def without_mask_values(offset: Tensor) -> Tensor:
    """Replace −∞ and the lowest finite number by 0: masked scores have weight 0 in a softmax, or a whole row is masked."""
    return offset.masked_fill(offset <= torch.finfo(offset.dtype).min / 2, 0) if offset.is_floating_point() else offset


def always(bench: OpContext, call: Call) -> bool:
    """Return True."""
    return True


def single_data_factor(bench: OpContext, call: Call) -> bool:
    """Return whether all but one factor of a product are constant."""
    return len(call.data) == 1


def no_constant_terms(bench: OpContext, call: Call) -> bool:
    """Return whether an affine function has no offset: no constant tensor, number or padding value."""
    if call.name in SUMS:
        return len(call.data) == 2
    if call.name == "pad":
        _, _, mode, value = call.bind("input pad mode value", mode="constant", value=None)
        return mode != "constant" or not value
    return call.name in ("cat", "stack", "hstack", "vstack", "dstack", "column_stack", "copy") and not call.constants


def _fold_into_linear(bench: OpContext, call: Call) -> LinearLink | None:
    """Return `linear(x) · c` or `linear(x) + c`, for c along the channels (FrozenBatchNorm), as one linear map.

    An added constant may have a row a sample (a time embedding): folded only in a batch of one, where the two look alike, the
    relevance of a sample would depend on its batch.
    """
    if call.kwargs or len(call.args) != 2 or len(call.data) != 1:
        return None
    (x,) = call.data
    constant = call.args[1] if call.args[0] is x else call.args[0]
    if (link := bench.link(x)) is None or not isinstance(constant, Tensor) or constant.numel() == 1:
        return None
    aligned = (1,) * (x.dim() - constant.dim()) + tuple(constant.shape)
    along = [d for d, size in enumerate(aligned) if size > 1]
    by_sample = call.name == "add" and len(along) == 2 and along[0] == 0
    if len(along) != 1 + by_sample or len(aligned) != x.dim() or any(aligned[d] != x.shape[d] for d in along):
        return None
    dim = along[-1]
    vector = constant.reshape(x.shape[0], x.shape[dim]) if by_sample else constant.flatten()
    one, zero = (made(vector.shape[-1:]) for made in (vector.new_ones, vector.new_zeros))
    step = link.step.folded(*((vector, zero) if call.name == "mul" else (one, vector)), dim, x.dim())
    return None if step is None else link.followed(step)


def _added_constant(bench: OpContext, call: Call) -> Callable[[], Tensor | float]:
    """Return a function that computes the constant in a sum or difference, with its factor."""
    first, second, alpha = call.bind("input other alpha", alpha=1)
    of_first, of_second = SUMS[call.name](alpha)
    constant, factor = (second, of_second) if first is call.data[0] else (first, of_first)
    if not isinstance(constant, Tensor):
        return lambda: constant * factor
    saved = bench.save(constant)
    return lambda: without_mask_values(saved.value) * factor


def _value_at_zero(bench: OpContext, call: Call) -> Callable[[], Tensor]:
    """Return a function that computes the offset of an affine call: its value at zero data and its current constants."""
    constants = {id(t): bench.save(t) for t in call.constants}
    zeros = {id(t): t.new_zeros(()).expand(t.shape) for t in call.data}
    at_zero = replace(call.with_replaced(zeros), data=())  # without tensors of the graph, which would make a reference cycle
    return lambda: without_mask_values(at_zero.run_with({key: cell.value for key, cell in constants.items()}))
