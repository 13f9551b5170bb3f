"""Ops of normalisation layers: statistics are constant; batch norm with stored statistics is a linear map."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.lrp.engine.function_calls import Call
from whence.lrp.engine.linear_maps import Diagonal
from whence.lrp.engine.op_context import OpContext
from whence.lrp.ops.activations import scale_gradient
from whence.lrp.ops.function_facts import function_facts
from whence.lrp.rules.rules import LRP_0
from whence.lrp.torch_compat.saved_tensors import with_backward_of


def batch_norm(bench: OpContext, call: Call) -> Tensor:
    """Fold batch norm into the linear map before it, or treat it as a diagonal map; batch statistics are constants."""
    x, mean, var, weight, bias, training, _, eps = _in_order_of(F.batch_norm, call, "training")
    if _depends(weight) or _depends(bias):
        return bench.unknown_function(call)
    if training or mean is None:
        var, mean = torch.var_mean(x.detach(), [d for d in range(x.dim()) if d != 1], correction=0)

    def scale_and_shift() -> tuple[Tensor, Tensor]:
        scale = (var + eps).rsqrt() * (1 if weight is None else weight)
        return scale, -mean * scale if bias is None else bias - mean * scale

    scale, shift = bench.made(("batch norm", eps), (mean, var, weight, bias), scale_and_shift)
    if (link := bench.link(x)) is not None and (step := link.step.folded(scale, shift, 1, x.dim())) is not None:
        return bench.step(link.followed(step), call.run)
    return bench.linear(call, x, Diagonal(scale, shift), LRP_0)  # one input per output: only the shift absorbs


def layer_norm(bench: OpContext, call: Call) -> Tensor:
    """Handle (x − mean) / deviation · weight + bias with a constant deviation (AttnLRP, proposition 3.4)."""
    x, shape, weight, bias, eps = call.bind("input normalized_shape weight bias eps", weight=None, bias=None, eps=1e-5)
    return _standardise(bench, call, x, (*x.shape[: x.dim() - len(shape)], -1), weight, bias, eps)


def rms_norm(bench: OpContext, call: Call) -> Tensor:
    """Handle x / rms(x) · weight with a constant root mean square (AttnLRP, proposition 3.4)."""
    x, shape, weight, eps = call.bind("input normalized_shape weight eps", weight=None, eps=None)
    if _depends(weight):
        return bench.unknown_function(call)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    dims = list(range(-len(shape), 0))
    spread = (x.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    back = scale_gradient if weight is None else lambda g, spread: (g * weight * spread,)
    return bench.node(x, call.run, back, lambda value: (spread,))


def normalize(bench: OpContext, call: Call) -> Tensor:
    """Handle x / ‖x‖ with a constant norm."""
    x, p, dim, eps = call.bind("input p dim eps", p=2.0, dim=1, eps=1e-12)
    norm = torch.linalg.vector_norm(x.detach(), p, dim, keepdim=True).clamp_min(eps)
    return bench.node(x, call.run, lambda g, norm: (g / norm,), lambda value: (norm,))


def cosine(bench: OpContext, call: Call) -> Tensor:
    """Handle a · b / (‖a‖ ‖b‖) with constant norms."""
    first, second, dim, eps = call.bind("x1 x2 dim eps", dim=1, eps=1e-8)

    def written_out() -> Tensor:
        a, b = torch.broadcast_tensors(first, second)
        return (F.normalize(a, dim=dim, eps=eps) * F.normalize(b, dim=dim, eps=eps)).sum(dim)

    return with_backward_of(call.run, bench.follow(written_out))


def distance(bench: OpContext, call: Call) -> Tensor:
    """Handle ‖a − b + ε‖."""
    first, second, p, eps, keepdim = call.bind("x1 x2 p eps keepdim", p=2.0, eps=1e-6, keepdim=False)
    return with_backward_of(call.run, bench.follow(lambda: torch.linalg.vector_norm(first - second + eps, p, -1, keepdim)))


def group_norm(bench: OpContext, call: Call) -> Tensor:
    """Handle (x − mean) / deviation · weight + bias by groups of channels, with a constant deviation."""
    x, groups, weight, bias, eps = call.bind("input num_groups weight bias eps", weight=None, bias=None, eps=1e-5)
    return _standardise(bench, call, x, (x.shape[0], groups, -1), _channelwise(weight, x), _channelwise(bias, x), eps)


def _in_order_of(functional: Callable, call: Call, mode: str) -> Sequence[Any]:
    """Return the arguments in the order of `torch.nn.functional`; `torch.batch_norm` takes weight and bias first."""
    more = {"running_mean": None, "running_var": None, "weight": None, "bias": None, "momentum": 0.1, "eps": 1e-5}
    more[mode] = mode == "use_input_stats"
    if call.function is functional:
        return call.bind(f"input running_mean running_var weight bias {mode} momentum eps", **more)
    x, weight, bias, mean, var, given, momentum, eps, _ = call.bind(
        f"input weight bias running_mean running_var {mode} momentum eps cudnn_enabled", **more, cudnn_enabled=True
    )
    return x, mean, var, weight, bias, given, momentum, eps


def instance_norm(bench: OpContext, call: Call) -> Tensor:
    """Handle (x − mean) / deviation · weight + bias by channels; a diagonal linear map with running statistics."""
    x, mean, var, weight, bias, own_statistics, momentum, eps = _in_order_of(F.instance_norm, call, "use_input_stats")
    if not own_statistics:
        args, function = (x, mean, var, weight, bias, False, momentum, eps), F.batch_norm
        return batch_norm(bench, replace(call, args=args, kwargs={}, function=function, facts=function_facts(function)))
    return _standardise(bench, call, x, (*x.shape[:2], -1), _channelwise(weight, x), _channelwise(bias, x), eps)


def _standardise(
    bench: OpContext,
    call: Call,
    x: Tensor,
    grouped: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Standardise over the last dimension of `grouped` with a constant standard deviation (AttnLRP, proposition 3.4)."""
    if _depends(weight) or _depends(bias):
        return bench.unknown_function(call)

    def spread(value: Tensor) -> tuple[Tensor]:
        return ((x.detach().reshape(grouped).var(-1, keepdim=True, correction=0) + eps).rsqrt(),)

    def back(g: Tensor, spread: Tensor) -> tuple[Tensor]:
        centred = (g if weight is None else g * weight).reshape(grouped) * spread
        return (centred.sub_(centred.mean(-1, keepdim=True)).reshape(shape),)

    shape = x.shape
    out = bench.node(x, call.run, back, spread)
    return out if bias is None else bench.absorb(out, lambda g: g * bias)


def _channelwise(vector: Tensor | None, x: Tensor) -> Tensor | None:
    return None if vector is None else vector.view(-1, *[1] * (x.dim() - 2))


def _depends(t: Tensor | None) -> bool:
    return t is not None and t.requires_grad
