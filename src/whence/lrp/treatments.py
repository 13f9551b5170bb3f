"""How relevance passes a torch function: each treatment gets the mode and a call, and returns the call's value with the
right way back. Which function gets which treatment stands in `operations.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from whence.lrp.conservation import dot
from whence.lrp.functions import Call, mapped, tensors
from whence.lrp.linear import Bilinear, Convolution, Dense, Diagonal
from whence.lrp.rules import Constant, Epsilon, FunctionRule, Identity
from whence.lrp.saved import Keep, hooked

if TYPE_CHECKING:
    from whence.lrp.mode import RelevanceMode
    from whence.lrp.propagation import Link

PLAIN_RULE = Epsilon(0)  # LRP-0, the gradient
SLOPES: dict[tuple[str, str], float] = {}  # of activations at 0, by name and settings

# relevance follows the gradient ----------------------------------------------------------------------------------------


def plain(mode: "RelevanceMode", call: Call) -> Any:
    """Linear or positively homogeneous in its data: by Euler, Σ x · ∂f = f, the gradient is right."""
    return call.run()


def affine(mode: "RelevanceMode", call: Call) -> Any:
    """Linear in its data up to an offset, f(x) = Lx + f(0): the gradient is right and the offset absorbs."""
    if call.name == "add" and (link := _folded(mode, call)) is not None:
        return mode.step(link, call.run)
    if _only_data(call):
        return call.run()
    at_zero = _at_zero(mode, call)
    return mode.absorb(call.run(), lambda g: g * unmasked(at_zero()))


def gradient_alone(call: Call, treatment: Callable[..., Any] | None) -> bool:
    """Whether autograd's own gradient is all there is to it, so that the call may overwrite its target as it does."""
    return treatment is plain or (treatment is affine and _only_data(call)) or (treatment is scale and len(call.data) == 1)


def winner(mode: "RelevanceMode", call: Call) -> Any:
    """The larger or smaller of data and constants: relevance follows the winner, constants that win absorb."""
    constants = [t for t in tensors((call.args, call.kwargs)) if not t.requires_grad]
    if not constants and not call.name.startswith("clamp"):
        return call.run()
    data = [mode.save(t) for t in call.data]
    out = call.run()
    kept = mode.save(out)

    def constants_that_won(g: Tensor) -> Tensor:
        won_by_data = torch.stack([kept.value == d.value.expand_as(kept.value) for d in data]).any(0)
        return g * kept.value.masked_fill(won_by_data, 0)

    return mode.absorb(out, constants_that_won)


# linear maps with a constant weight: the rules act on them ----------------------------------------------------------------


def dense(mode: "RelevanceMode", call: Call) -> Tensor:
    x, weight, bias = call.bind("input weight bias", bias=None)
    if weight.requires_grad or _depends(bias):
        return _made_weight(mode, call, bias, dim=-1)
    if x.dim() == 1:
        return _unbatched(mode, call, x, dense)
    return mode.linear(call, x, Dense(weight, None if bias is None else bias.expand(len(weight))), native=True)


def convolution(mode: "RelevanceMode", call: Call) -> Tensor:
    names = "input weight bias stride padding dilation groups"
    x, weight, bias, stride, padding, dilation, groups = call.bind(names, bias=None, stride=1, padding=0, dilation=1, groups=1)
    if weight.requires_grad or _depends(bias):
        return _made_weight(mode, call, bias, dim=1)
    if x.dim() < weight.dim():
        return _unbatched(mode, call, x, convolution)
    rank = weight.dim() - 2
    both, single = _padding(weight, padding, _each(dilation, rank))
    linear = Convolution(weight, bias, _each(stride, rank), both, _each(dilation, rank), False, [0] * rank, groups, single)
    return mode.linear(call, x, linear, native=True)


def transposed_convolution(mode: "RelevanceMode", call: Call) -> Tensor:
    names = "input weight bias stride padding output_padding groups dilation"
    x, weight, bias, stride, padding, output_padding, groups, dilation = call.bind(
        names, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
    )
    if weight.requires_grad or _depends(bias):
        return _made_weight(mode, call, bias, dim=1)
    if x.dim() < weight.dim():
        return _unbatched(mode, call, x, transposed_convolution)
    rank = weight.dim() - 2
    linear = Convolution(
        weight,
        bias,
        _each(stride, rank),
        _each(padding, rank),
        _each(dilation, rank),
        True,
        _each(output_padding, rank),
        groups,
    )
    return mode.linear(call, x, linear, native=True)


def bilinear(mode: "RelevanceMode", call: Call) -> Tensor:
    """matmul and its kin: a linear map where one factor is constant, a product where both depend on the input."""
    factors = [t for t in tensors((call.args, call.kwargs)) if t.is_floating_point()]
    if len(call.data) != 1 or len(factors) != 2:
        return product(mode, call)
    (data,) = call.data
    if data.dim() == 1:
        return _unbatched(mode, call, data, bilinear) if call.name == "matmul" and factors[0] is data else product(mode, call)
    if call.name in ("matmul", "mm") and factors[0] is data and factors[1].dim() == 2:
        return mode.linear(call, data, Dense(factors[1].mT, None), native=True)
    constant = next(t for t in factors if t is not data)
    return mode.linear(call, data, Bilinear(lambda a, w: call.run_with({id(data): a, id(constant): w}), constant), native=True)


def added_product(mode: "RelevanceMode", call: Call) -> Tensor:
    """β · offset + α · a @ b: a dense layer where offset and b are constant, else a product and an offset that absorbs."""
    offset, a, b, beta, alpha = call.bind("input batch1 batch2 beta alpha", beta=1, alpha=1)
    if call.name == "addmm" and len(call.data) == 1 and a.requires_grad and offset.dim() == 1:
        return mode.linear(call, a, Dense(b.mT * alpha, offset.expand(b.shape[1]) * beta), native=True)
    if not (a.requires_grad and b.requires_grad):
        return affine(mode, call)
    out = call.function(offset, mode.watched(a, _half), mode.watched(b, _half), beta=beta, alpha=alpha)
    return out if offset.requires_grad else mode.absorb(out, lambda g: g * unmasked(offset) * beta)


def batch_norm(mode: "RelevanceMode", call: Call) -> Tensor:
    """Folded into the linear map it follows; a diagonal map by itself. Batch statistics count as constants."""
    x, mean, var, weight, bias, training, _, eps = call.bind(
        "input running_mean running_var weight bias training momentum eps",
        weight=None, bias=None, training=False, momentum=0.1, eps=1e-5,
    )  # fmt: skip
    if _depends(weight) or _depends(bias):
        return mode.unknown_function(call)
    if training or mean is None:
        var, mean = torch.var_mean(x.detach(), [d for d in range(x.dim()) if d != 1], correction=0)
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    shift = -mean * scale if bias is None else bias - mean * scale
    if (link := mode.link(x)) is not None and (step := link.step.folded(scale, shift, 1, x.dim())) is not None:
        return mode.step(replace(link, step=step), call.run)
    return mode.linear(call, x, Diagonal(scale, shift), PLAIN_RULE)  # one input an output: only the shift absorbs


def rectify(mode: "RelevanceMode", call: Call) -> Tensor:
    """ReLU: its gradient is right; after a linear map it takes the map's node over, since R = 0 at z < 0 makes that cheaper."""
    (x,) = call.data
    link = mode.link(x)
    if link is None or (call.overwrites and x._is_view()):
        if call.overwrites:
            mode.before_overwriting(x)
        return call.run()
    link = replace(link, step=replace(link.step, rectified=True))
    return mode.overwriting_step(link, call.run, x) if call.overwrites else mode.step(link, call.run)


def scale(mode: "RelevanceMode", call: Call) -> Any:
    """A product: halved where both factors depend on the input, else the gradient is right. The scaled output of a linear
    map is that of a scaled map, should a shift or a ReLU follow (FrozenBatchNorm)."""
    if len(call.data) > 1:
        return product(mode, call)
    link = _folded(mode, call)
    out = call.run()
    if link is not None:
        mode.remember(out, link)
    return out


# everything else ----------------------------------------------------------------------------------------------------------


def identity(mode: "RelevanceMode", call: Call) -> Tensor:
    """An activation with f(0) = 0, as x · (f(x)/x) with the quotient constant: R passes unchanged (AttnLRP, eq. 9)."""
    if len(call.data) != 1:
        return mode.unknown_function(call)
    (x,) = call.data
    return mode.node(x, call.run, _times, _quotient(x, _slope_at_zero(call)))


def glu(mode: "RelevanceMode", call: Call) -> Tensor:
    """a · σ(b) of the two halves of the input, the gate constant."""
    x, dim = call.bind("input dim", dim=-1)
    gate = x.detach().chunk(2, dim)[1].sigmoid()

    def back(g: Tensor, gate: Tensor) -> tuple[Tensor]:
        passed = g * gate
        return (torch.cat([passed, torch.zeros_like(passed)], dim),)

    return mode.node(x, call.run, back, lambda value: (gate,))


def product(mode: "RelevanceMode", call: Call) -> Tensor:
    """Each of n factors that depend on the input takes an equal part (AttnLRP, proposition 3.2). A value times a function
    of itself, x · h(x), is an activation that the network writes out (GELU by tanh, x · sigmoid(x)): h(x) is constant."""
    if call.name == "mul" and (gate := mode.gate(call)) is not None:
        return call.run_with({id(gate): gate.detach()})
    return _divided(call.run(), len(call.data))


def quotient(mode: "RelevanceMode", call: Call) -> Any:
    """a / b: the denominator is a statistic."""
    numerator, denominator, rounding = call.bind("input other rounding_mode", rounding_mode=None)
    if rounding is not None or not numerator.requires_grad:
        return mode.constant(call)
    return call.function(numerator, denominator.detach() if isinstance(denominator, Tensor) else denominator)


def solution(mode: "RelevanceMode", call: Call) -> Any:
    """A⁻¹ b, a quotient of matrices: A is a statistic."""
    a, b = call.bind("A B")
    return mode.constant(call) if not b.requires_grad else call.run_with({id(a): a.detach()})


def power(mode: "RelevanceMode", call: Call) -> Any:
    """xⁿ is homogeneous of degree n: the gradient divided by n; a statistic where n ≤ 0."""
    exponent = 2.0 if call.name == "square" else call.bind("input exponent")[1]
    if isinstance(exponent, Tensor) and exponent.numel() == 1 and not exponent.requires_grad:
        exponent = exponent.item()
    if not isinstance(exponent, Real) or exponent <= 0:
        return mode.constant(call)
    return _divided(call.run(), float(exponent))


def clamp(mode: "RelevanceMode", call: Call) -> Any:
    _, low, high = call.bind("input min max", min=None, max=None)
    if isinstance(low, Tensor) or isinstance(high, Tensor) or (low or 0) > 0 or (high is not None and high < 0):
        return winner(mode, call)
    return identity(mode, call)


def statistic(mode: "RelevanceMode", call: Call) -> Any:
    """A gate or a statistic: constant."""
    return mode.constant(call)


def layer_norm(mode: "RelevanceMode", call: Call) -> Tensor:
    x, shape, weight, bias, eps = call.bind("input normalized_shape weight bias eps", weight=None, bias=None, eps=1e-5)
    return _standardise(mode, call, x, (*x.shape[: x.dim() - len(shape)], -1), weight, bias, eps)


def rms_norm(mode: "RelevanceMode", call: Call) -> Tensor:
    """x / rms(x) · weight, the root mean square constant (AttnLRP, proposition 3.4)."""
    x, shape, weight, eps = call.bind("input normalized_shape weight eps", weight=None, eps=None)
    if _depends(weight):
        return mode.unknown_function(call)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    dims = list(range(-len(shape), 0))
    spread = (x.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    back = _times if weight is None else lambda g, spread: (g * weight * spread,)
    return mode.node(x, call.run, back, lambda value: (spread,))


def normalize(mode: "RelevanceMode", call: Call) -> Tensor:
    """x / ‖x‖, the norm constant."""
    x, p, dim, eps = call.bind("input p dim eps", p=2.0, dim=1, eps=1e-12)
    norm = torch.linalg.vector_norm(x.detach(), p, dim, keepdim=True).clamp_min(eps)
    return mode.node(x, call.run, lambda g, norm: (g / norm,), lambda value: (norm,))


def group_norm(mode: "RelevanceMode", call: Call) -> Tensor:
    x, groups, weight, bias, eps = call.bind("input num_groups weight bias eps", weight=None, bias=None, eps=1e-5)
    return _standardise(mode, call, x, (len(x), groups, -1), _channelwise(weight, x), _channelwise(bias, x), eps)


def instance_norm(mode: "RelevanceMode", call: Call) -> Tensor:
    x, mean, var, weight, bias, own_statistics, momentum, eps = call.bind(
        "input running_mean running_var weight bias use_input_stats momentum eps",
        running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5,
    )  # fmt: skip
    if not own_statistics:
        plain_call = replace(call, args=(x, mean, var, weight, bias, False, momentum, eps), kwargs={}, function=F.batch_norm)
        return batch_norm(mode, plain_call)
    return _standardise(mode, call, x, (*x.shape[:2], -1), _channelwise(weight, x), _channelwise(bias, x), eps)


def own_gradient(mode: "RelevanceMode", call: Call) -> Any:
    """The function's own gradient, what it does not conserve measured as absorbed."""
    path, meter = mode.scope.path, mode.meter

    def given_on(g: Tensor, value: Tensor) -> tuple[Tensor]:
        meter.add(path, -dot(g, value))
        return (g,)

    out = call.run_with({id(t): mode.watched(t, given_on) for t in call.data})
    for t in tensors(out):
        if t.requires_grad:
            saved = mode.save(t)
            t.register_hook(lambda g, saved=saved: meter.add(path, dot(g, saved.value)))
    return out


def opaque(mode: "RelevanceMode", call: Call, value: Tensor, rule: FunctionRule) -> Tensor:
    """The value of a module of hidden functions, one of whose arguments depends on the input."""
    (x,), path = call.data, mode.scope.path
    if isinstance(rule, Constant):
        mode.last_constant = f"'{path}'"
        return value
    if isinstance(rule, Identity):
        return mode.node(x, lambda: value, _times, _quotient(x, 0.0))
    source = x.detach()
    place, function = torch.empty(0), call.function  # in the arguments stands for x: no tensor of the graph is held
    args, kwargs = mapped(lambda t: place if t is x else t, call.args, call.kwargs)

    def back(g: Tensor, source: Tensor, value: Tensor) -> tuple[Tensor]:
        with torch.enable_grad():
            leaf = source.detach().requires_grad_()
            filled, named = mapped(lambda t: leaf if t is place else t, args, kwargs)
            (returned,) = torch.autograd.grad(function(*filled, **named), leaf, g)
        mode.meter.add(path, dot(g, value))
        mode.meter.add(path, -dot(returned, source))
        return (returned,)

    return mode.node(x, lambda: value, back, lambda value: (source, value))


# helpers ------------------------------------------------------------------------------------------------------------------


def unmasked(offset: Tensor) -> Tensor:
    """Without −∞: what is masked so has weight 0 in a softmax."""
    return offset.masked_fill(offset.isneginf(), 0) if offset.is_floating_point() else offset


def _times(g: Tensor, factor: Tensor) -> tuple[Tensor]:
    return (g * factor,)


def _quotient(x: Tensor, at_zero: float) -> Keep:
    """Keeps f(x)/x, and its limit where x is 0."""
    source = x.detach()
    return lambda value: (torch.div(value, source).nan_to_num_(nan=at_zero, posinf=at_zero, neginf=at_zero),)


def _half(g: Tensor, value: Tensor) -> tuple[Tensor]:
    return (g / 2,)


def _divided(out: Tensor, divisor: float) -> Tensor:
    """The same with its gradient divided."""
    return hooked(out, lambda g: g / divisor)


def _only_data(call: Call) -> bool:
    """Whether an affine function has nothing but data to add: no constant tensor, no number, no padding value."""
    if call.name == "pad":
        _, _, mode, value = call.bind("input pad mode value", mode="constant", value=None)
        return mode != "constant" or not value
    if call.name in ("add", "sub"):
        return all(isinstance(t, Tensor) and t.requires_grad for t in call.bind("input other"))
    if call.name in ("cat", "stack", "hstack", "vstack", "dstack", "column_stack", "copy"):
        return all(t.requires_grad for t in tensors((call.args, call.kwargs)))
    return False


def _depends(t: Tensor | None) -> bool:
    return t is not None and t.requires_grad


def _made_weight(mode: "RelevanceMode", call: Call, bias: Tensor | None, dim: int) -> Tensor:
    """A layer whose weight the network computes itself: a product, and a constant bias absorbs."""
    if _depends(bias):
        return mode.unknown_function(call)
    if bias is None:
        return product(mode, call)
    out, path, meter, factors = call.run(), mode.scope.path, mode.meter, len(call.data)
    shape = [-1 if d == dim % out.dim() else 1 for d in range(out.dim())]

    def shared(g: Tensor) -> Tensor:
        meter.add(path, g * bias.view(shape))
        return g / factors

    return hooked(out, shared)


def _folded(mode: "RelevanceMode", call: Call) -> "Link | None":
    """`linear(x) · c` and `linear(x) + c` for c along the channels (FrozenBatchNorm) as one linear map."""
    if call.kwargs or len(call.args) != 2 or len(call.data) != 1:
        return None
    (x,) = call.data
    constant = call.args[1] if call.args[0] is x else call.args[0]
    if (link := mode.link(x)) is None or not isinstance(constant, Tensor) or constant.numel() == 1:
        return None
    aligned = (1,) * (x.dim() - constant.dim()) + tuple(constant.shape)
    along = [d for d, size in enumerate(aligned) if size > 1]
    if len(along) != 1 or len(aligned) != x.dim() or aligned[along[0]] != x.shape[along[0]]:
        return None
    vector, (dim,) = constant.flatten(), along
    one, zero = torch.ones_like(vector), torch.zeros_like(vector)
    step = link.step.folded(*((vector, zero) if call.name == "mul" else (one, vector)), dim, x.dim())
    return None if step is None else replace(link, step=step)


def _padding(weight: Tensor, padding: Any, dilation: list[int]) -> tuple[list[int], list[int]]:
    """Padding in numbers: of both sides alike, and before that of single sides, where 'same' is uneven."""
    rank = weight.dim() - 2
    if not isinstance(padding, str):
        return _each(padding, rank), []
    if padding == "valid":
        return [0] * rank, []
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if all(total % 2 == 0 for total in totals):
        return [total // 2 for total in totals], []
    return [0] * rank, [side for total in reversed(totals) for side in (total // 2, total - total // 2)]


def _unbatched(mode: "RelevanceMode", call: Call, x: Tensor, treatment: Callable) -> Tensor:
    """A single sample without a batch dimension, as a batch of one."""
    batch = mode.follow(torch.unsqueeze, x, 0)
    args = tuple(batch if a is x else a for a in call.args)
    kwargs = {k: batch if v is x else v for k, v in call.kwargs.items()}
    function = lambda *args, **kwargs: call.run().unsqueeze(0)  # noqa: E731 - the very call, for a value equal to the bit
    one = treatment(mode, Call(function, call.name, args, kwargs, (batch,)))
    mode.see(one)
    return mode.follow(torch.squeeze, one, 0)


def _each(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _channelwise(vector: Tensor | None, x: Tensor) -> Tensor | None:
    return None if vector is None else vector.view(-1, *[1] * (x.dim() - 2))


def _standardise(
    mode: "RelevanceMode",
    call: Call,
    x: Tensor,
    grouped: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """(x − mean)/std · weight + bias over the last dimension of `grouped`, the standard deviation constant (AttnLRP, 3.4)."""
    if _depends(weight) or _depends(bias):
        return mode.unknown_function(call)

    def spread(value: Tensor) -> tuple[Tensor]:
        return ((x.detach().reshape(grouped).var(-1, keepdim=True, correction=0) + eps).rsqrt(),)

    def back(g: Tensor, spread: Tensor) -> tuple[Tensor]:
        centred = (g if weight is None else g * weight).reshape(grouped) * spread
        return (centred.sub_(centred.mean(-1, keepdim=True)).reshape(shape),)

    shape = x.shape
    out = mode.node(x, call.run, back, spread)
    return out if bias is None else mode.absorb(out, lambda g: g * bias)


def _slope_at_zero(call: Call) -> float:
    """f'(0), the limit of f(x)/x; 0 for functions of whole rows, where a zero input has no relevance to pass."""
    if call.name == "local_response_norm":
        return 0.0
    settings = [a for a in (*call.args, *call.kwargs.items()) if not any(a is t for t in call.data)]
    key = (call.name, repr(settings))
    if key not in SLOPES:
        with torch.enable_grad(), saved_tensors_hooks(lambda t: t, lambda t: t):  # of no concern to a checkpoint's count
            zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
            out = call.run_with({id(t): zero.clone() for t in call.data})
            SLOPES[key] = torch.autograd.grad(out, zero)[0].item()
    return SLOPES[key]


def _at_zero(mode: "RelevanceMode", call: Call) -> Callable[[], Tensor]:
    """The call's value with zeros for all data, its constants as they are now: the offset of an affine function."""
    constants = {id(t): mode.save(t) for t in tensors((call.args, call.kwargs)) if not t.requires_grad}
    zeros = {id(t): t.new_zeros(()).expand(t.shape) for t in call.data}
    args, kwargs = mapped(lambda t: zeros.get(id(t), t), call.args, call.kwargs)
    at_zero = replace(call, args=args, kwargs=kwargs, data=())  # holds no tensor of the graph that will hold it
    return lambda: at_zero.run_with({key: cell.value for key, cell in constants.items()})
