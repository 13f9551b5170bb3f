"""Attention: the softmax, the fused kernel with its gradients shared out, and the composite that hides its parts."""

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.lrp.conservation import dot, total
from whence.lrp.functions import Call
from whence.lrp.rules import Constant
from whence.lrp.saved import Back
from whence.lrp.treatments import own_gradient, unmasked

if TYPE_CHECKING:
    from whence.lrp.mode import RelevanceMode


def softmax(mode: "RelevanceMode", call: Call) -> Tensor:
    """The softmax's own gradient (AttnLRP, proposition 3.1): R_in = x (R − s ΣR) does not conserve, the rest is absorbed."""
    x, dim = call.bind("input dim", dim=None)
    if not isinstance(dim, int):
        return own_gradient(mode, call)
    path, dtype = mode.scope.path, x.dtype

    def back(g: Tensor, s: Tensor) -> tuple[Tensor]:
        relevance = g * s
        returned = torch.addcmul(relevance, s, relevance.sum(dim, keepdim=True), value=-1)
        # Σ x · g over a row, without x: x = log s + const, and the gradient sums to 0
        log = s.log().nan_to_num_(neginf=0.0)
        mode.meter.add(path, total(relevance) - dot(log, returned))
        return (returned.to(dtype),)

    return mode.node(x, call.run, back, lambda s: (s,))


def scaled_dot_product_attention(mode: "RelevanceMode", call: Call) -> Tensor:
    """softmax(q kᵀ) v by the kernel the model chose (AttnLRP, propositions 3.1 and 3.3 in the gradient form).

    Two products follow each other, the scores q kᵀ and their softmax times v, and each halves what it shares: a quarter of
    the gradient goes to each of q and k, half of it to v. Where the softmax is constant (CP-LRP) all of it goes to v.
    """
    names = ("query", "key", "value", "attn_mask")
    given = dict(zip(names, call.bind(" ".join(names), attn_mask=None), strict=True))
    data = {name: t for name, t in given.items() if isinstance(t, Tensor) and t.requires_grad}
    if isinstance(mode.matcher.function_rule("softmax"), Constant):
        mode.last_constant = f"the attention in '{mode.scope.path}'"
        return _with(call, given | {name: t.detach() for name, t in data.items() if name != "value"})
    if data.keys() <= {"value"}:
        return call.run()
    # how many factors of each of the two products depend on the input: each takes an equal part
    of_scores, of_output = max(len(data.keys() & {"query", "key"}), 1), 2 if "value" in data else 1

    to_scores = _sharing(mode, of_scores * of_output, lambda g, t: -dot(g, t))
    backs = {
        "query": to_scores,
        "key": to_scores,
        "attn_mask": _sharing(mode, of_output, lambda g, mask: -(g * unmasked(mask)).sum()),  # may be one for all samples
        "value": _sharing(mode, of_output, dot),  # as much went to the scores; what they do not pass on is absorbed
    }
    out = _with(call, given | {name: mode.watched(t, backs[name]) for name, t in data.items()})
    if "value" in data:
        return out
    kept = mode.save(out)
    return mode.absorb(out, lambda g: dot(g, kept.value))


def _sharing(mode: "RelevanceMode", divisor: int, amount: Callable[[Tensor, Tensor], Tensor]) -> Back:
    """A part of the gradient g of a tensor t, and `amount(g, t)` counted as absorbed."""
    path, meter = mode.scope.path, mode.meter

    def back(g: Tensor, t: Tensor) -> tuple[Tensor]:
        g = g / divisor
        meter.add(path, amount(g, t))
        return (g,)

    return back


def _with(call: Call, tensors: dict[str, Any]) -> Tensor:
    others = {name: value for name, value in call.kwargs.items() if name not in tensors}
    return call.function(*tensors.values(), *call.args[len(tensors) :], **others)


def written_out(mode: "RelevanceMode", call: Call) -> Any:
    """A composite of torch, run from its own source so that the mode sees the functions it is made of."""
    function = call.function
    unchecked = {name: lambda *args: False for name in function.__globals__ if name.startswith("has_torch_function")}
    visible = FunctionType(
        function.__code__, function.__globals__ | unchecked, function.__name__, function.__defaults__, function.__closure__
    )
    visible.__kwdefaults__ = function.__kwdefaults__
    with mode:
        return visible(*call.args, **call.kwargs)
