"""The table: how relevance passes each torch function. What is not in it, and not linear, is refused.

A treatment gets the mode and the call and returns the call's value with the right way back.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.lrp.conservation import dot
from whence.lrp.functions import Call, mapped, tensors
from whence.lrp.linear import Bilinear, Convolution, Dense, Diagonal
from whence.lrp.propagation import Companion

if TYPE_CHECKING:
    from whence.lrp.mode import RelevanceMode
    from whence.lrp.propagation import Link

Treatment = Callable[["RelevanceMode", Call], Any]


# relevance follows the gradient ----------------------------------------------------------------------------------------


def plain(mode: "RelevanceMode", call: Call) -> Any:
    """Linear or positively homogeneous in its data: by Euler, Σ x · ∂f = f, the gradient is right."""
    return call.run()


def affine(mode: "RelevanceMode", call: Call) -> Any:
    """Linear in its data up to an offset, f(x) = Lx + f(0): the gradient is right and the offset absorbs."""
    if call.name == "add" and (link := _folded(mode, call)) is not None:
        return mode.step(link, call.run)
    if _all_data(call):
        return call.run()
    at_zero = _at_zero(call)
    out = call.run()
    out = call.args[0] if out is None else out
    mode.absorb(out, lambda g: g * at_zero())
    return out


def winner(mode: "RelevanceMode", call: Call) -> Any:
    """The larger or smaller of data and constants: relevance follows the winner, constants that win absorb."""
    if sum(1 for _ in tensors((call.args, call.kwargs))) == len(call.data) and call.name not in ("clamp", "clamp_min", "clamp_max"):
        return call.run()
    data = mode.save(call.data[0])
    out = call.run()
    kept = mode.save(out)
    mode.absorb(out, lambda g: g * kept.value.masked_fill(kept.value == data.value, 0))
    return out


# linear maps with a constant weight: the rules act on them ----------------------------------------------------------------


def dense(mode: "RelevanceMode", call: Call) -> Tensor:
    x, weight, bias = _bind(call, "input weight bias", bias=None)
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return product(mode, call)
    return mode.linear(call, x, Dense(weight, bias))


def convolution(mode: "RelevanceMode", call: Call) -> Tensor:
    names = "input weight bias stride padding dilation groups"
    x, weight, bias, stride, padding, dilation, groups = _bind(
        call, names, bias=None, stride=1, padding=0, dilation=1, groups=1
    )
    if weight.requires_grad:
        return product(mode, call)
    if x.dim() < weight.dim():
        return _unbatched(mode, call, x)
    rank = weight.dim() - 2
    both, single = _padding(weight, padding, _each(dilation, rank))
    linear = Convolution(weight, bias, _each(stride, rank), both, _each(dilation, rank), False, [0] * rank, groups, single)
    return mode.linear(call, x, linear)


def transposed_convolution(mode: "RelevanceMode", call: Call) -> Tensor:
    names = "input weight bias stride padding output_padding groups dilation"
    x, weight, bias, stride, padding, output_padding, groups, dilation = _bind(
        call, names, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
    )
    if weight.requires_grad:
        return product(mode, call)
    if x.dim() < weight.dim():
        return _unbatched(mode, call, x)
    rank = weight.dim() - 2
    linear = Convolution(
        weight, bias, _each(stride, rank), _each(padding, rank), _each(dilation, rank), True, _each(output_padding, rank), groups
    )
    return mode.linear(call, x, linear)


def bilinear(mode: "RelevanceMode", call: Call) -> Tensor:
    """matmul and its kin: a linear map where one factor is constant, a product where both depend on the input."""
    factors = [t for t in tensors((call.args, call.kwargs)) if t.is_floating_point()]
    if len(call.data) != 1 or len(factors) != 2:
        return product(mode, call)
    (data,) = call.data
    if call.name in ("matmul", "mm") and factors[0] is data and factors[1].dim() == 2:
        return mode.linear(call, data, Dense(factors[1].mT, None))
    constant = next(t for t in factors if t is not data)
    return mode.linear(call, data, Bilinear(lambda a, w: call.run_with({id(data): a, id(constant): w}), constant))


def addmm(mode: "RelevanceMode", call: Call) -> Tensor:
    """bias + x @ weight with a constant bias and weight, as dense layers are sometimes written."""
    bias, x, weight, beta, alpha = _bind(call, "input mat1 mat2 beta alpha", beta=1, alpha=1)
    if len(call.data) > 1 or not x.requires_grad or bias.dim() != 1:
        return mode.unknown_function(call)
    return mode.linear(call, x, Dense(weight.mT * alpha, bias * beta))


def batch_norm(mode: "RelevanceMode", call: Call) -> Tensor:
    """Folded into the linear map it follows; a diagonal map by itself. Batch statistics count as constants."""
    x, mean, var, weight, bias, training, _, eps = _bind(
        call, "input running_mean running_var weight bias training momentum eps",
        weight=None, bias=None, training=False, momentum=0.1, eps=1e-5,
    )  # fmt: skip
    if training or mean is None:
        var, mean = torch.var_mean(x.detach(), [d for d in range(x.dim()) if d != 1], correction=0)
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    shift = -mean * scale if bias is None else bias - mean * scale
    if (link := mode.link(x)) is not None and (step := link.step.folded(scale, shift, 1, x.dim())) is not None:
        return mode.step(replace(link, step=step), call.run)
    return mode.linear(call, x, Diagonal(scale, shift))


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
    (x,) = call.data
    before, after = mode.save(x), []
    slope = _slope_at_zero(call)

    def back(g: Tensor) -> tuple[Tensor]:
        quotient = after[0].value / before.value
        return (quotient.nan_to_num_(nan=slope, posinf=slope, neginf=slope).mul_(g),)

    out = mode.node(call, call.run, back, x)
    after.append(mode.save(out))
    return out


def product(mode: "RelevanceMode", call: Call) -> Tensor:
    """Each of n factors that depend on the input takes an equal part (AttnLRP, proposition 3.2)."""
    factors = len(call.data)
    out = call.run()
    _divide_gradient(out, factors)
    return out


def quotient(mode: "RelevanceMode", call: Call) -> Any:
    """a / b: the denominator is a statistic."""
    numerator = call.args[0]
    if not numerator.requires_grad:
        return mode.constant(call)
    if call.overwrites:
        mode.before_overwriting(numerator)
    return call.run_with({id(t): t.detach() for t in call.data if t is not numerator})


def power(mode: "RelevanceMode", call: Call) -> Any:
    """xⁿ is homogeneous of degree n: the gradient divided by n; a statistic where n ≤ 0."""
    exponent = {"square": 2.0}.get(call.name) or _bind(call, "input exponent")[1]
    if not isinstance(exponent, int | float) or exponent <= 0:
        return mode.constant(call)
    if call.overwrites:
        mode.before_overwriting(call.args[0])
    out = call.run()
    _divide_gradient(out, exponent)
    return out


def clamp(mode: "RelevanceMode", call: Call) -> Any:
    _, low, high = _bind(call, "input min max", min=None, max=None)
    if isinstance(low, Tensor) or isinstance(high, Tensor) or (low or 0) > 0 or (high is not None and high < 0):
        return winner(mode, call)
    return identity(mode, call)


def statistic(mode: "RelevanceMode", call: Call) -> Any:
    """A gate or a statistic: constant."""
    return mode.constant(call)


def layer_norm(mode: "RelevanceMode", call: Call) -> Tensor:
    x, shape, weight, bias, eps = _bind(call, "input normalized_shape weight bias eps", weight=None, bias=None, eps=1e-5)
    return _standardise(mode, call, x, (*x.shape[: x.dim() - len(shape)], -1), weight, bias, eps)


def group_norm(mode: "RelevanceMode", call: Call) -> Tensor:
    x, groups, weight, bias, eps = _bind(call, "input num_groups weight bias eps", weight=None, bias=None, eps=1e-5)
    return _standardise(mode, call, x, (len(x), groups, -1), _channelwise(weight, x), _channelwise(bias, x), eps)


def instance_norm(mode: "RelevanceMode", call: Call) -> Tensor:
    x, mean, var, weight, bias, own_statistics, momentum, eps = _bind(
        call, "input running_mean running_var weight bias use_input_stats momentum eps",
        running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5,
    )  # fmt: skip
    if not own_statistics:
        plain_call = replace(call, args=(x, mean, var, weight, bias, False, momentum, eps), kwargs={}, function=F.batch_norm)
        return batch_norm(mode, plain_call)
    return _standardise(mode, call, x, (*x.shape[:2], -1), _channelwise(weight, x), _channelwise(bias, x), eps)


def own_gradient(mode: "RelevanceMode", call: Call) -> Any:
    """The function's own gradient, what it does not conserve measured as absorbed."""
    aliases = {id(t): t.view_as(t) for t in call.data}
    values = {key: mode.save(alias) for key, alias in aliases.items()}
    if call.overwrites:
        mode.before_overwriting(call.args[0])
    out = call.run_with(aliases)
    for key, alias in aliases.items():
        mode.absorb(alias, lambda g, value=values[key]: -dot(g, value.value))
    for t in tensors(out):
        if t.requires_grad:
            mode.absorb(t, lambda g, value=mode.save(t): dot(g, value.value))
    return out


# helpers ------------------------------------------------------------------------------------------------------------------


def _bind(call: Call, names: str, **defaults: Any) -> list[Any]:
    """The arguments of a call in order, by position, keyword (`self` for `input`) or default."""
    keys = names.split()
    given = dict(zip(keys, call.args, strict=False)) | {("input" if k == "self" else k): v for k, v in call.kwargs.items()}
    return [given[key] if key in given else defaults[key] for key in keys]


def _divide_gradient(out: Tensor, divisor: float) -> None:
    out.register_hook(lambda g: None if g is None else g / divisor)


def _all_data(call: Call) -> bool:
    """Whether nothing but data enters: no constant tensor, no number to add, no padding value."""
    if call.name in ("add", "sub", "cat", "stack", "lerp", "addcmul", "index_add", "scatter_add"):
        numbers = call.args if call.name in ("add", "sub") else ()
        floats = [t for t in tensors((call.args, call.kwargs)) if t.is_floating_point()]
        return all(t.requires_grad for t in floats) and not any(isinstance(n, int | float) for n in numbers)
    if call.name == "pad":
        _, _, mode, value = _bind(call, "input pad mode value", mode="constant", value=None)
        return mode != "constant" or not value
    return False


def _folded(mode: "RelevanceMode", call: Call) -> "Link | None":
    """`linear(x) · c` and `linear(x) + c` for c along the channels (FrozenBatchNorm) as one linear map."""
    if call.overwrites or call.kwargs or len(call.args) != 2 or len(call.data) != 1:
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


def _unbatched(mode: "RelevanceMode", call: Call, x: Tensor) -> Tensor:
    """A single sample without a batch dimension, as a batch of one."""
    batch = mode.follow(torch.unsqueeze, x, 0)
    args = tuple(batch if a is x else a for a in call.args)
    kwargs = {k: batch if v is x else v for k, v in call.kwargs.items()}
    function = lambda *args, **kwargs: call.run().unsqueeze(0)  # noqa: E731 - the very call, for a value equal to the bit
    one = TREATMENTS[call.name](mode, Call(function, call.name, args, kwargs, (batch,)))
    return mode.follow(torch.squeeze, one, 0)


def _each(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _channelwise(vector: Tensor | None, x: Tensor) -> Tensor | None:
    return None if vector is None else vector.view(-1, *[1] * (x.dim() - 2))


def _standardise(
    mode: "RelevanceMode", call: Call, x: Tensor, grouped: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """(x − mean)/std · weight + bias over the last dimension of `grouped`, the standard deviation constant (AttnLRP, 3.4)."""
    saved = mode.save(x)

    def back(g: Tensor) -> tuple[Tensor]:
        spread = (saved.value.reshape(grouped).var(-1, keepdim=True, correction=0) + eps).rsqrt()
        centred = (g if weight is None else g * weight).reshape(grouped) * spread
        return ((centred - centred.mean(-1, keepdim=True)).reshape(x_shape),)

    x_shape = x.shape
    out = mode.node(call, call.run, back, x)
    if bias is not None:
        mode.absorb(out, lambda g: g * bias)
    return out


def _slope_at_zero(call: Call) -> float:
    """f'(0), the limit of f(x)/x; 0 for functions of whole rows, where a zero input has no relevance to pass."""
    if call.name in WHOLE_ROWS:
        return 0.0
    with torch.enable_grad():
        zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(call.run_with({id(t): zero.clone() for t in call.data}), zero)[0].item()


def _at_zero(call: Call) -> Callable[[], Tensor]:
    """The call's value with zeros for all data: the offset of an affine function."""
    zeros = {id(t): t.new_zeros(()).expand(t.shape) for t in call.data}
    if call.overwrites and not call.args[0].requires_grad:
        zeros[id(call.args[0])] = call.args[0].clone()
    args, kwargs = mapped(lambda t: zeros.get(id(t), t), call.args, call.kwargs)

    def value() -> Tensor:
        target = (args[0].clone(memory_format=torch.contiguous_format), *args[1:]) if call_overwrites else args
        out = function(*target, **kwargs)
        return target[0] if out is None else out

    function, call_overwrites = call.function, call.overwrites  # not the call: its target holds the graph
    return value


# the table ----------------------------------------------------------------------------------------------------------------

MOVES_VALUES = """T H mT mH alias_copy as_strided atleast_1d atleast_2d atleast_3d broadcast_to broadcast_tensors chunk
    channel_shuffle clone contiguous cpu cuda dsplit diagonal diag double expand expand_as flatten flip fliplr flipud float
    gather getitem half bfloat16 hsplit index_select masked_select moveaxis narrow native_channel_shuffle permute pixel_shuffle
    pixel_unshuffle ravel repeat repeat_interleave reshape reshape_as roll rot90 select slice split
    split_with_sizes squeeze swapaxes t take take_along_dim tensor_split tile to transpose tril triu type type_as unbind
    unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as vsplit real fold im2col col2im meshgrid""".split()

PLAIN = """neg positive sum mean nanmean nansum cumsum diff avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample upsample_nearest upsample_bilinear dropout dropout1d dropout2d
    dropout3d alpha_dropout feature_dropout feature_alpha_dropout max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool1d max_unpool2d max_unpool3d
    amax amin aminmax topk sort median nanmedian kthvalue cummax cummin abs leaky_relu prelu rrelu lp_pool1d lp_pool2d
    lp_pool3d norm vector_norm linalg_vector_norm trace""".split()

AFFINE = """add sub rsub cat stack hstack vstack dstack column_stack pad where masked_fill masked_scatter setitem copy fill zero
    index_put index_fill index_add index_copy scatter scatter_add""".split()

WINNERS = "maximum minimum max min fmax fmin clamp_min clamp_max".split()

MATMULS = "matmul mm bmm mv rmatmul dot inner outer einsum tensordot".split()

ACTIVATIONS = """relu6 hardtanh silu gelu mish hardswish tanh elu celu selu softsign tanhshrink softshrink hardshrink sin tan
    asin atan arctan asinh arcsinh sinh expm1 log1p local_response_norm normalize rms_norm""".split()  # f(0) = 0

STATISTICS = """sigmoid hardsigmoid softplus exp exp2 erf rsqrt sqrt reciprocal rdiv std var std_mean var_mean logsigmoid
    cos cosh""".split()

TREATMENTS: dict[str, Treatment] = (
    dict.fromkeys(MOVES_VALUES + PLAIN, plain)
    | dict.fromkeys(AFFINE, affine)
    | dict.fromkeys(WINNERS, winner)
    | dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution)
    | dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], transposed_convolution)
    | dict.fromkeys(MATMULS, bilinear)
    | dict.fromkeys(ACTIVATIONS, identity)
    | dict.fromkeys(STATISTICS, statistic)
    | dict.fromkeys(["softmax", "log_softmax", "softmin", "logsumexp"], own_gradient)
    | {
        "linear": dense,
        "addmm": addmm,
        "batch_norm": batch_norm,
        "relu": rectify,
        "mul": scale,
        "div": quotient,
        "pow": power,
        "square": power,
        "clamp": clamp,
        "layer_norm": layer_norm,
        "group_norm": group_norm,
        "instance_norm": instance_norm,
    }
)

RELEVANCE_FOLLOWS_THE_GRADIENT = {plain, affine, winner, product, scale}
LINEAR = {dense, addmm, convolution, transposed_convolution, bilinear, batch_norm, rectify}
WHOLE_ROWS = {"local_response_norm", "normalize", "rms_norm"}

NONNEGATIVE = set("relu relu6 sigmoid hardsigmoid softmax exp exp2 abs softplus square".split())
KEEPS_SIGN = {*MOVES_VALUES, *PLAIN, "mul", "div", "add", "maximum", "where", "masked_fill", "cat", "stack", "pad"} - {
    "neg", "diff"
}  # fmt: skip


def stays_nonnegative(call: Call, nonnegative: Callable[[Tensor], bool]) -> bool:
    """Whether the result is known not to be negative."""
    if call.name in NONNEGATIVE:
        return True
    if call.name in ("hardtanh", "clamp", "clamp_min"):
        low = _bind(call, "input min_val" if call.name == "hardtanh" else "input min", min_val=-1.0, min=None)[1]
        return isinstance(low, int | float) and low >= 0
    if call.name not in KEEPS_SIGN or call.kwargs.get("mode") == "bicubic":
        return False
    numbers = [n for n in (*call.args, *call.kwargs.values()) if isinstance(n, int | float)]
    if call.name in ("add", "mul", "div", "where", "masked_fill", "pad") and any(n < 0 for n in numbers):
        return False
    return all(nonnegative(t) for t in tensors((call.args, call.kwargs)) if t.is_floating_point())


def companion(call: Call, of: Callable[[Tensor], Companion | None]) -> Companion | None:
    """What goes beside the result, if the result is the input moved about, padded, shifted or scaled value by value."""
    known = {id(t): c for t in call.data if (c := of(t)) is not None}
    if len(known) != len({id(t) for t in call.data}):
        return None
    if call.name in ("add", "sub", "rsub", "mul", "div") and len(call.data) == 1:
        (beside,) = known.values()
        shapes = [t.shape for t in tensors((call.args, call.kwargs))]
        return beside if torch.broadcast_shapes(*shapes) == beside.zeros.shape else None
    pads = call.name in ("cat", "stack", "pad")
    if call.overwrites or not (pads or call.name in MOVES_VALUES):
        return None
    zeros = call.run_with({key: c.zeros for key, c in known.items()})
    if not isinstance(zeros, Tensor):
        return None
    if not pads and all(c.present is None for c in known.values()):
        return Companion(zeros)
    with torch.no_grad():
        ones = {key: torch.ones_like(c.zeros) if c.present is None else c.present for key, c in known.items()}
        values = {id(t): torch.zeros_like(t) for t in tensors((call.args, call.kwargs)) if t.is_floating_point()}
        present = call.run_with(values | ones) - call.run_with(values | {key: torch.zeros_like(c.zeros) for key, c in known.items()})
    return Companion(zeros, None if bool((present == 1).all()) else present)
