"""Ops of attention: the softmax, fused attention kernels, and composite functions run from their source."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.lrp.engine.conservation import batch_dot, batch_sum
from whence.lrp.engine.function_calls import Call
from whence.lrp.engine.op_context import OpContext
from whence.lrp.ops.arithmetic import without_mask_values
from whence.lrp.rules.rules import Constant
from whence.lrp.torch_compat.deferred_checks import known_true
from whence.lrp.torch_compat.saved_tensors import with_backward_of

OPERANDS = ("query", "key", "value", "attn_mask")


def softmax(bench: OpContext, call: Call) -> Tensor:
    """Keep the softmax's own gradient (AttnLRP, proposition 3.1): R_in = x (R − s ΣR), the rest is absorbed."""
    x, dim = call.bind("input dim", dim=None)
    if not isinstance(dim, int):
        return bench.own_gradient(call)
    path, meter, dtype = bench.path, bench.meter, x.dtype

    def back(g: Tensor, s: Tensor) -> tuple[Tensor]:
        relevance = g * s
        returned = torch.addcmul(relevance, s, relevance.sum(dim, keepdim=True), value=-1)
        # Σ x · g over a row, without x: x = log s + const, and the gradient sums to 0
        log = s.log().nan_to_num_(neginf=0.0)
        meter.add(path, batch_sum(relevance) - batch_dot(log, returned))
        return (returned.to(dtype),)

    return bench.node(x, call.run, back, lambda s: (s,))


def scaled_dot_product_attention(bench: OpContext, call: Call) -> Tensor:
    """Propagate through softmax(q kᵀ) v with the kernel that the model uses (AttnLRP, propositions 3.1 and 3.3 as gradients).

    There are two products in sequence, the scores q kᵀ and their softmax times v, and each halves the gradient: a quarter goes
    to each of q and k, half of it to v. If the softmax is constant (CP-LRP) all of it goes to v.
    """
    given: dict[str, Any] = dict(zip(OPERANDS, call.bind(" ".join(OPERANDS), attn_mask=None), strict=True))
    data = {name: t for name, t in given.items() if t is not None and t.requires_grad}
    if isinstance(bench.function_rule("softmax"), Constant):
        bench.hold("the attention")
        return _call_with(call, given | {name: t.detach() for name, t in data.items() if name != "value"})
    if data.keys() <= {"value"}:
        return _call_with(call, given)
    shared = bench.watched_together(tuple(data.values()), _shared(bench, tuple(data)))
    out = _call_with(call, given | dict(zip(data, shared, strict=True)))
    if "value" in data:
        return out
    kept = bench.save(out)
    return bench.absorb(out, lambda g: batch_dot(g, kept.value))


def _shared(bench: OpContext, names: tuple[str, ...]) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]:
    """Return the backward function that gives an equal share to each factor of the two products that depends on the input."""
    factors, of_output = len({"query", "key"}.intersection(names)) or 1, 2 if "value" in names else 1
    divisors = {"query": factors * of_output, "key": factors * of_output, "value": of_output, "attn_mask": of_output}
    path, meter = bench.path, bench.meter

    def back(gradients: Sequence[Tensor], operands: Sequence[Tensor]) -> Sequence[Tensor]:
        returned = {name: g / divisors[name] for name, g in zip(names, gradients, strict=True)}
        values = dict(zip(names, operands, strict=True))
        of_scores = next(name for name in ("query", "key", "attn_mask") if name in values)
        if of_scores != "attn_mask":  # the scores are linear in each: both have the same Σ t · g
            meter.add(path, -batch_dot(gradients[names.index(of_scores)], values[of_scores]) / of_output)
        if "value" in values:  # the scores get as much; the part that they do not propagate is absorbed
            meter.add(path, batch_dot(returned["value"], values["value"]))
        if "attn_mask" in values:  # may be one for all samples
            meter.add(path, -(returned["attn_mask"] * without_mask_values(values["attn_mask"])).sum())
        return tuple(returned.values())

    return back


def _call_with(call: Call, tensors: dict[str, Any]) -> Tensor:
    others = {name: value for name, value in call.kwargs.items() if name not in tensors}
    args = (*tensors.values(), *call.args[len(tensors) :])
    of_these = replace(call, args=args, kwargs=others)
    return with_backward_of(call.run, math_kernel(of_these)) if needs_math_kernel(call) else of_these.run()


def needs_math_kernel(call: Call) -> bool:
    """Return whether an attention mask masks a whole row by the lowest finite number (TimesFM).

    Torch's own backward pass on CPUs is wrong there.
    """
    mask = call.bind(" ".join(OPERANDS), attn_mask=None)[3]
    if not isinstance(mask, Tensor) or not mask.is_floating_point() or not mask.is_cpu:
        return False
    return not known_true(mask.detach().amax(-1) > torch.finfo(mask.dtype).min / 2)


def math_kernel(call: Call) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return call.run()


def decompose(bench: OpContext, call: Call) -> Any:
    """Run a composite torch function from its own source, so that the mode intercepts the functions in it."""
    function = call.function
    unchecked = {name: lambda *args: False for name in function.__globals__ if name.startswith("has_torch_function")}
    visible = FunctionType(
        function.__code__, function.__globals__ | unchecked, function.__name__, function.__defaults__, function.__closure__
    )
    visible.__kwdefaults__ = function.__kwdefaults__
    with bench.within():
        return visible(*call.args, **call.kwargs)
