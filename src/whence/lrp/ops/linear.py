"""Ops of linear maps with a constant weight, which the rules act on: dense layers, convolutions, matrix products."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from whence.errors import UnknownFunctionError
from whence.lrp.engine.function_calls import Call, iter_tensors
from whence.lrp.engine.linear_maps import Bilinear, ConvGeometry, Convolution, Dense
from whence.lrp.engine.op_context import OpContext
from whence.lrp.ops.arithmetic import affine, product, without_mask_values
from whence.lrp.rules.rules import LRP_0
from whence.lrp.torch_compat.saved_tensors import with_gradient_hook


def plain_dense(bench: OpContext, call: Call) -> bool:
    """Return whether a dense layer has no bias and the rule LRP-0, so that its own gradient suffices."""
    args = call.args
    if len(args) != 3 or args[2] is not None or len(call.data) > 1 or call.data[0] is not args[0] or _is_quantised(args[1]):
        return False
    rule = bench.linear_rule(call.facts.name, touches_input=False)
    return rule is LRP_0 or rule == LRP_0


def _is_quantised(weight: Tensor) -> bool:
    """Return whether a weight is a quantised tensor, as of torchao, whose own backward pass may round the gradient."""
    return type(weight) not in (Tensor, Parameter) and hasattr(weight, "dequantize")


def dense(bench: OpContext, call: Call) -> Tensor:
    """Handle a dense layer as a linear map with its rule."""
    x, weight, bias = call.bind("input weight bias", bias=None)
    if _is_quantised(weight):
        return bench.linear(call, x, Dense(weight.dequantize(), bias))
    if len(call.data) > 1 or call.data[0] is not x:
        return _computed_weight(bench, call, bias, dim=-1)
    if x.dim() == 1:
        return _as_batch_of_one(bench, call, x, dense)
    if bias is not None and bias.shape[0] != weight.shape[0]:
        bias = bias.expand(len(weight))
    return bench.linear(call, x, Dense(weight, bias), native=True)


def convolution(bench: OpContext, call: Call) -> Tensor:
    """Handle a convolution as a linear map with its rule."""
    names = "input weight bias stride padding dilation groups"
    x, weight, bias, stride, padding, dilation, groups = call.bind(names, bias=None, stride=1, padding=0, dilation=1, groups=1)
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return _computed_weight(bench, call, bias, dim=1)
    if x.dim() < weight.dim():
        return _as_batch_of_one(bench, call, x, convolution)
    rank = weight.dim() - 2
    both, single = _padding(weight, padding, _per_dimension(dilation, rank))
    geometry = ConvGeometry(
        _per_dimension(stride, rank), both, _per_dimension(dilation, rank), False, [0] * rank, groups, single
    )
    return bench.linear(call, x, Convolution(weight, bias, geometry), native=True)


def transposed_convolution(bench: OpContext, call: Call) -> Tensor:
    """Handle a transposed convolution as a linear map with its rule."""
    names = "input weight bias stride padding output_padding groups dilation"
    x, weight, bias, stride, padding, output_padding, groups, dilation = call.bind(
        names, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
    )
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return _computed_weight(bench, call, bias, dim=1)
    if x.dim() < weight.dim():
        return _as_batch_of_one(bench, call, x, transposed_convolution)
    rank = weight.dim() - 2
    stride, padding, dilation, output_padding = (
        _per_dimension(size, rank) for size in (stride, padding, dilation, output_padding)
    )
    geometry = ConvGeometry(stride, padding, dilation, True, output_padding, groups)
    return bench.linear(call, x, Convolution(weight, bias, geometry), native=True)


def bilinear(bench: OpContext, call: Call) -> Tensor:
    """Handle matmul and similar functions as a linear map if one factor is constant, else as a product."""
    factors = [t for t in iter_tensors((call.args, call.kwargs)) if t.is_floating_point()]
    if len(call.data) != 1 or len(factors) != 2:
        return product(bench, call)
    (data,) = call.data
    if data.dim() == 1:
        return (
            _as_batch_of_one(bench, call, data, bilinear)
            if call.name == "matmul" and factors[0] is data
            else product(bench, call)
        )
    if call.name in ("matmul", "mm") and factors[0] is data and factors[1].dim() == 2:
        return bench.linear(call, data, Dense(factors[1].mT, None), native=True)
    constant = next(t for t in factors if t is not data)
    return bench.linear(call, data, Bilinear(lambda a, w: call.run_with({id(data): a, id(constant): w}), constant), native=True)


def added_product(bench: OpContext, call: Call) -> Tensor:
    """Handle β · offset + α · a @ b as a dense layer if offset and b are constant, else as a product whose offset absorbs."""
    offset, a, b, beta, alpha = call.bind("input batch1 batch2 beta alpha", beta=1, alpha=1)
    if call.name == "addmm" and len(call.data) == 1 and a.requires_grad and offset.dim() == 1:
        return bench.linear(call, a, Dense(b.mT * alpha, offset.expand(b.shape[1]) * beta), native=True)
    if not (a.requires_grad and b.requires_grad):
        return affine(bench, call)
    out = call.function(offset, bench.watched(a, _halve), bench.watched(b, _halve), beta=beta, alpha=alpha)
    return out if offset.requires_grad else bench.absorb(out, lambda g: g * without_mask_values(offset) * beta)


def embedding_bag(bench: OpContext, call: Call) -> Any:
    """Refuse an embedding bag whose weights depend on the input."""
    return bench.refused(
        call,
        UnknownFunctionError(
            f"the per_sample_weights of an EmbeddingBag in '{bench.path}' depend on the input; explain a function of the ids "
            "alone with fixed weights, or multiply the vectors of F.embedding by the weights"
        ),
    )


def _halve(g: Tensor, value: Tensor) -> tuple[Tensor]:
    return (g / 2,)


def _computed_weight(bench: OpContext, call: Call, bias: Tensor | None, dim: int) -> Tensor:
    """Handle a layer whose weight depends on the input as a product whose constant bias absorbs."""
    if bias is None:
        return product(bench, call)
    if bias.requires_grad:
        return bench.unknown_function(call)
    out, path, meter, factors = call.run(), bench.path, bench.meter, len(call.data)
    shape = [-1 if d == dim % out.dim() else 1 for d in range(out.dim())]

    def shared(g: Tensor) -> Tensor:
        meter.add(path, g * bias.view(shape))
        return g / factors

    return with_gradient_hook(out, shared)


def _per_dimension(value: Any, rank: int) -> Sequence[int]:
    values = (value,) if isinstance(value, int) else value
    return tuple(values) * rank if len(values) == 1 else values


def _padding(weight: Tensor, padding: Any, dilation: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Return the symmetric padding, and the padding of single sides applied before it, where 'same' is uneven."""
    rank = weight.dim() - 2
    if not isinstance(padding, str):
        return _per_dimension(padding, rank), []
    if padding == "valid":
        return [0] * rank, []
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if all(total % 2 == 0 for total in totals):
        return [total // 2 for total in totals], []
    return [0] * rank, [side for total in reversed(totals) for side in (total // 2, total - total // 2)]


def _as_batch_of_one(bench: OpContext, call: Call, x: Tensor, treatment: Callable) -> Tensor:
    """Handle a single sample without a batch dimension as a batch of one."""
    batch = bench.follow(torch.unsqueeze, x, 0)
    args = tuple(batch if a is x else a for a in call.args)
    kwargs = {k: batch if v is x else v for k, v in call.kwargs.items()}
    function = lambda *args, **kwargs: call.run().unsqueeze(0)  # noqa: E731 - runs the original call, so that the value is bit-identical
    one = treatment(bench, replace(call, function=function, args=args, kwargs=kwargs, data=(batch,)))
    bench.see(one)
    return bench.follow(torch.squeeze, one, 0)
