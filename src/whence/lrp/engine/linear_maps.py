"""The linear maps that rules act on: z = L_w(a) + b, which can be applied with another weight and transposed."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.lrp.engine.conservation import batch_sum

Modification = Callable[[Tensor], Tensor]  # weight or bias -> the modified one


COLORS = 3


class LinearMap(Protocol):
    """Protocol of maps that are linear in `a` and in `weight`, with a bias along one dimension of the output."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return L_weight(a) + bias."""
        ...

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """Return L_weightᵀ(s), of the input's `shape`."""
        ...

    def bias_share(self, s: Tensor, bias: Tensor) -> Tensor:
        """Return ⟨s, bias⟩ of each sample, `[batch]`: the share of the bias."""
        ...

    def scaled(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "Self | None":
        """Return this map followed by `scale · z + shift` along `dim` of an output of `rank`; None if not possible."""
        ...

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        """The tensors that the folded weight and bias are computed from."""
        ...

    @property
    def layout(self) -> Hashable:
        """The other values that the folded weight and bias depend on."""
        ...

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with the scale multiplied in, which is deferred until the backward pass."""
        ...


class RuleWeights:
    """The folded weight and bias of a map and their modifications by rules, each computed once."""

    def __init__(self, linear: LinearMap, dtype: torch.dtype):
        weight, bias = linear.folded()
        self.weight = weight.to(dtype)  # as autocast computes
        self.bias = None if bias is None else bias.to(dtype)
        self._made: dict[tuple[str, Modification], Tensor] = {}

    def modified(self, make: Modification) -> Tensor:
        """Return the modified weight.

        >>> weights.modified(positive_part)       # w⁺
        """
        return self._once("weight", make, self.weight)

    def modified_bias(self, make: Modification) -> Tensor | None:
        return None if self.bias is None else self._once("bias", make, self.bias)

    def _once(self, which: str, make: Modification, t: Tensor) -> Tensor:
        made = self._made.get((which, make))
        if made is None:
            made = self._made[which, make] = make(t)
        return made


def positive_part(t: Tensor) -> Tensor:
    """Return t⁺."""
    return t.clamp(min=0)


def negative_part(t: Tensor) -> Tensor:
    """Return t⁻."""
    return t.clamp(max=0)


def positive_contributions(linear: LinearMap, weights: RuleWeights, a: Tensor, nonnegative: bool, with_bias: bool) -> Tensor:
    """Return P + b⁺, or P: in one pass where the input is known to be nonnegative, else P = L_w⁺(a⁺) + L_w⁻(a⁻)."""
    rising, bias = weights.modified(positive_part), weights.modified_bias(positive_part) if with_bias else None
    if nonnegative:
        return linear.apply(a, rising, bias)
    return linear.apply(positive_part(a), rising, bias).add_(linear.apply(negative_part(a), weights.modified(negative_part)))


@dataclass(slots=True, eq=False)
class Dense:
    """The map of `F.linear`: weight [out, in], the bias along the last dimension, or [N, out] with one row a sample."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None  # still to be multiplied into weight and bias
    shift: Tensor | None = None  # still to be added to the bias

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None and bias.dim() == 2:
            return F.linear(a, weight) + bias.view(len(bias), *[1] * (a.dim() - 2), -1)
        return F.linear(a, weight, bias)

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return s @ weight

    def bias_share(self, s: Tensor, bias: Tensor) -> Tensor:
        return batch_sum(s @ bias) if bias.dim() == 1 else _channel_share(s.reshape(len(s), -1, s.shape[-1]).sum(1), bias)

    def scaled(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "Dense | None":
        return Dense(self.weight, self.bias, *_compose_affine(self, scale, shift)) if dim == rank - 1 else None

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias, self.scale, self.shift

    @property
    def layout(self) -> Hashable:
        return None

    def folded(self) -> tuple[Tensor, Tensor | None]:
        weight = self.weight if self.scale is None else self.weight * self.scale[:, None]
        return weight, _folded_bias(self.bias, self.scale, self.shift)


class ConvGeometry(NamedTuple):
    """The stride, padding and further options of a convolution."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int
    single_sides: Sequence[int] = ()  # uneven padding applied beforehand, in the order of F.pad


@dataclass(slots=True, eq=False)
class Convolution:
    """The map of `F.conv1d` to `F.conv_transpose3d`: the bias along dimension 1, or [N, channels] with one row a sample."""

    weight: Tensor
    bias: Tensor | None
    geometry: ConvGeometry
    scale: Tensor | None = None  # as in `Dense`
    shift: Tensor | None = None

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        stride, padding, dilation, transposed, output_padding, groups, single_sides = self.geometry
        a = F.pad(a, single_sides) if single_sides else a
        if bias is not None and bias.dim() == 2:
            z = torch.convolution(a, weight, None, stride, padding, dilation, transposed, output_padding, groups)
            return z + _along_channels(bias, z)
        return torch.convolution(a, weight, bias, stride, padding, dilation, transposed, output_padding, groups)

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        stride, padding, dilation, transposed, output_padding, groups, single_sides = self.geometry
        if single_sides:
            within = Convolution(weight, None, self.geometry._replace(single_sides=()))
            padded = torch.Size(F.pad(s.new_empty(1).expand(shape), single_sides).shape)
            return F.pad(within.transpose(s, weight, padded), [-side for side in single_sides])
        # convolution_backward does not read the input if only its gradient is requested: an empty tensor of its shape suffices
        unread = s.new_empty(1).expand(shape)
        input_gradient, _, _ = torch.ops.aten.convolution_backward.default(
            s, unread, weight, None, stride, padding, dilation, transposed, output_padding, groups, [True, False, False]
        )
        return input_gradient

    def bias_share(self, s: Tensor, bias: Tensor) -> Tensor:
        return _channel_share(s.flatten(2).sum(2), bias)

    def scaled(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "Convolution | None":
        return Convolution(self.weight, self.bias, self.geometry, *_compose_affine(self, scale, shift)) if dim == 1 else None

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias, self.scale, self.shift

    @property
    def layout(self) -> Hashable:
        return self.geometry.transposed, self.geometry.groups

    def folded(self) -> tuple[Tensor, Tensor | None]:
        bias = _folded_bias(self.bias, self.scale, self.shift)
        if self.scale is None:
            return self.weight, bias
        ones = [1] * (self.weight.dim() - 2)
        if not self.geometry.transposed:
            return self.weight * self.scale.view(-1, 1, *ones), bias
        # weight [in, out / groups, …], outputs numbered group by group
        groups = self.geometry.groups
        grouped = self.weight.unflatten(0, (groups, -1)) * self.scale.view(groups, 1, -1, *ones)
        return grouped.flatten(0, 1), bias


@dataclass(slots=True, eq=False)
class Diagonal:
    """The map z = w · a + b along dimension 1: batch norm that does not follow a linear map."""

    weight: Tensor
    bias: Tensor | None

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        z = a * _along_channels(weight, a)
        return z if bias is None else z.add_(_along_channels(bias, a))

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return s * _along_channels(weight, s)

    def bias_share(self, s: Tensor, bias: Tensor) -> Tensor:
        return _channel_share(s.reshape(*s.shape[:2], -1).sum(2), bias)

    def scaled(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "Diagonal | None":
        return Diagonal(self.weight * scale, _folded_bias(self.bias, scale, shift)) if dim == 1 else None

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias

    @property
    def layout(self) -> Hashable:
        return None

    def folded(self) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias


@dataclass(slots=True, eq=False)
class Bilinear:
    """Any other torch function with one constant factor (matmul, bmm, einsum, …), without a bias."""

    function: Callable[[Tensor, Tensor], Tensor]
    weight: Tensor
    bias: None = None

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.function(a, weight)

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        with torch.enable_grad():
            a = s.new_zeros(shape, requires_grad=True)
            return torch.autograd.grad(self.function(a, weight), a, s)[0]

    def bias_share(self, s: Tensor, bias: Tensor) -> Tensor:
        raise NotImplementedError("a bilinear map has no bias")

    def scaled(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> None:
        return None

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        return (self.weight,)

    @property
    def layout(self) -> Hashable:
        return None

    def folded(self) -> tuple[Tensor, None]:
        return self.weight, None


def reads_picture(linear: LinearMap) -> bool:
    """Return whether a map is a convolution of three channels, as of a color picture or video, with windows that overlap."""
    if not isinstance(linear, Convolution) or linear.geometry.transposed or linear.geometry.groups > 1:
        return False
    channels, *windows = linear.weight.shape[1:]
    overlap = all(step < size for step, size in zip(linear.geometry.stride, windows, strict=True))
    return channels == COLORS and len(windows) > 1 and overlap


def contributions_by_size(linear: LinearMap, weights: RuleWeights, z: Tensor, a: Tensor) -> Tensor:
    """Return P + b⁺ = (z + L_|w|(|a|) + |b|) / 2: one pass for inputs of any sign; a small P is rounded like a large one."""
    return linear.apply(a.abs(), weights.modified(torch.abs), weights.modified_bias(torch.abs)).add_(z).mul_(0.5)


def _along_channels(vector: Tensor, a: Tensor) -> Tensor:
    """Return a vector [channels], or [N, channels], shaped to broadcast against `a` [N, channels, …]."""
    return vector.view(*vector.shape, *[1] * (a.dim() - 2))


def _channel_share(s: Tensor, bias: Tensor) -> Tensor:
    """Return Σ_k s_k b_k of each sample from `s` [N, channels] and the bias, [channels] or [N, channels]."""
    return s @ bias if bias.dim() == 1 else (s * bias).sum(1)


def _compose_affine(linear: Dense | Convolution, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the map's scale and shift followed by these."""
    if linear.scale is None:
        return scale, shift
    return linear.scale * scale, _folded_bias(linear.shift, scale, shift)


def _folded_bias(bias: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor | None:
    """Return scale · bias + shift."""
    if bias is None or scale is None or shift is None:
        return bias if shift is None else shift
    return torch.addcmul(shift, scale, bias)
