"""The linear maps that rules act on: z = L_w(a) + b, with L replaceable in its weight and transposable."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F


class LinearMap(Protocol):
    """A map linear in `a` and in `weight`; the bias runs along one dimension of the output."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor | None: ...
    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """L_weight(a) + bias."""
        ...

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """L_weightᵀ(s), of the input's `shape`."""
        ...

    def bias_share(self, s: Tensor, bias: Tensor) -> Tensor:
        """⟨s, bias⟩ of each sample: what the bias takes, `[batch]`."""
        ...

    def scaled(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "Self | None":
        """This map followed by `scale · z + shift` along dimension `dim` of an output of `rank`; None if not of this form."""
        ...

    def unfolded(self) -> "Self":
        """With the scale multiplied into the weight; put off until the way back, and let go after it."""
        ...

    def of_dtype(self, dtype: torch.dtype) -> "Self":
        """With weight and bias in this type, as autocast computes."""
        ...


class Typed:
    """Maps whose weight and bias can be had in another type."""

    weight: Tensor
    bias: Tensor | None

    def of_dtype(self, dtype: torch.dtype) -> "Self":
        if self.weight.dtype == dtype:
            return self
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))  # type: ignore


def positive_contributions(linear: LinearMap, a: Tensor, nonnegative: bool) -> Tensor:
    """P + b⁺: one pass where the input is known not to be negative, else P = L_w⁺(a⁺) + L_w⁻(a⁻)."""
    bias = None if linear.bias is None else linear.bias.clamp(min=0)
    up = linear.weight.clamp(min=0)
    if nonnegative:
        return linear.apply(a, up, bias)
    rising = linear.apply(a.clamp(min=0), up, bias)
    return rising.add_(linear.apply(a.clamp(max=0), linear.weight.clamp(max=0)))


@dataclass(frozen=True)
class Dense(Typed):
    """`F.linear`: weight [out, in], the bias along the last dimension."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None  # still to be multiplied into the weight

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(a, weight, bias)

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return s @ weight

    def bias_share(self, s: Tensor, bias: Tensor) -> Tensor:
        return (s @ bias).reshape(len(s), -1).sum(1)

    def scaled(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "Dense | None":
        if dim != rank - 1:
            return None
        return replace(self, scale=_product(self.scale, scale), bias=_folded_bias(self.bias, scale, shift))

    def unfolded(self) -> "Dense":
        return self if self.scale is None else replace(self, weight=self.weight * self.scale[:, None], scale=None)


@dataclass(frozen=True)
class Convolution(Typed):
    """`F.conv1d` to `F.conv_transpose3d`: the bias along dimension 1, or 0 of an unbatched output."""

    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int
    single_sides: list[int] = field(default_factory=list)  # padded beforehand, as F.pad has it
    scale: Tensor | None = None  # still to be multiplied into the weight

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        a = F.pad(a, self.single_sides) if self.single_sides else a
        return torch.convolution(
            a, weight, bias, self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        )

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        if self.single_sides:
            within = replace(self, single_sides=[])
            padded = torch.Size(F.pad(s.new_empty(1).expand(shape), self.single_sides).shape)
            return F.pad(within.transpose(s, weight, padded), [-side for side in self.single_sides])
        # the input itself is not read where only its gradient is asked for: an empty tensor of its shape will do
        input_gradient, _, _ = torch.ops.aten.convolution_backward(
            s, s.new_empty(1).expand(shape), weight, None, self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups, [True, False, False],
        )  # fmt: skip
        return input_gradient

    def bias_share(self, s: Tensor, bias: Tensor) -> Tensor:
        return s.flatten(2).sum(2) @ bias

    def scaled(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "Convolution | None":
        if dim != 1:
            return None
        return replace(self, scale=_product(self.scale, scale), bias=_folded_bias(self.bias, scale, shift))

    def unfolded(self) -> "Convolution":
        if self.scale is None:
            return self
        ones = [1] * (self.weight.dim() - 2)
        if not self.transposed:
            return replace(self, weight=self.weight * self.scale.view(-1, 1, *ones), scale=None)
        # weight [in, out / groups, …], outputs numbered group by group
        grouped = self.weight.unflatten(0, (self.groups, -1)) * self.scale.view(self.groups, 1, -1, *ones)
        return replace(self, weight=grouped.flatten(0, 1), scale=None)


@dataclass(frozen=True)
class Diagonal(Typed):
    """z = w · a + b along dimension 1: batch norm that follows no linear map."""

    weight: Tensor
    bias: Tensor | None

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        z = a * self._along(weight, a)
        return z if bias is None else z.add_(self._along(bias, a))

    def transpose(self, s: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        return s * self._along(weight, s)

    def bias_share(self, s: Tensor, bias: Tensor) -> Tensor:
        return s.reshape(*s.shape[:2], -1).sum(2) @ bias

    def scaled(self, scale: Tensor, shift: Tensor, dim: int, rank: int) -> "Diagonal | None":
        return Diagonal(self.weight * scale, _folded_bias(self.bias, scale, shift)) if dim == 1 else None

    def unfolded(self) -> "Diagonal":
        return self

    @staticmethod
    def _along(vector: Tensor, a: Tensor) -> Tensor:
        return vector.view(-1, *[1] * (a.dim() - 2))


@dataclass(frozen=True)
class Bilinear(Typed):
    """Any other torch function with one constant factor (matmul, bmm, einsum, …); it has no bias of its own."""

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

    def unfolded(self) -> "Bilinear":
        return self


def _product(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first * second


def _folded_bias(bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    return shift if bias is None else torch.addcmul(shift, scale, bias)
