"""Parameterizations of an input that is optimised: pixels, Fourier coefficients, phases, codes, or a small network.

Each is a frozen dataclass with `start(shape, randoms)`, which draws the parameters of K inputs from one generator each, and
`render(parameters, shape)`, which returns the inputs `[K, …]`. Bounded parameterizations end in a sigmoid between `low` and
`high`, the values of black and white pixels after normalisation: (0 − mean) / std and (1 − mean) / std by channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.devices import to_device_of
from whence.errors import InputError, RuleError
from whence.prototypes.priors import CodeSpace

Shape = tuple[int, ...]  # of one input
Bound = float | Tensor

# columns: the decorrelated colour axes of ImageNet photos, by decreasing variance (Olah et al. 2017)
COLOR_CORRELATION = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], dtype=torch.float64)
COLOR_CORRELATION = COLOR_CORRELATION / COLOR_CORRELATION.norm(dim=0).max()


class ImageParameterization(Protocol):
    """A parameterization of inputs."""

    lr: ClassVar[float]  # default learning rate of Adam

    def start(self, shape: Shape, randoms: Sequence[torch.Generator]) -> list[Tensor]: ...

    def render(self, parameters: Sequence[Tensor], shape: Shape) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Pixels:
    """The values themselves, without further parameterization; bounded by a sigmoid if `low` and `high` are given.

    >>> whence.prototype(model, 3, image=whence.images.Pixels(0.0, 1.0), shape=(1, 28, 28))

    Args:
        low: Value of a black pixel, a number or a tensor `[C]`; None is unbounded.
        high: Value of a white pixel, a number or a tensor `[C]`; None is unbounded.
        deviation: Standard deviation of the initial noise.

    Raises:
        RuleError: Only one of the bounds is given.
    """

    low: Bound | None = None
    high: Bound | None = None
    deviation: float = 0.01

    lr: ClassVar[float] = 0.05

    def __post_init__(self):
        if (self.low is None) != (self.high is None):
            raise RuleError("pass both low and high, or neither")

    def start(self, shape: Shape, randoms: Sequence[torch.Generator]) -> list[Tensor]:
        return [self.deviation * _normal(shape, randoms)]

    def render(self, parameters: Sequence[Tensor], shape: Shape) -> Tensor:
        (v,) = parameters
        return v if self.low is None or self.high is None else scale_to_bounds(v.sigmoid(), self.low, self.high)

    def written(self, x: Tensor) -> list[Tensor]:
        """Return the parameters that render the given inputs."""
        return [x if self.low is None or self.high is None else _logits(x, self.low, self.high)]


@dataclass(frozen=True, eq=False)
class Fourier:
    """Fourier coefficients, scaled down with frequency as in photos, in decorrelated colours (Olah et al. 2017).

    >>> low, high = (0 - mean) / std, (1 - mean) / std
    >>> whence.prototype(model, "features.10:3", image=whence.images.Fourier(low, high), shape=(3, 224, 224))

    Images may have any size and number of channels; colours are decorrelated if there are three channels.

    Args:
        low: Value of a black pixel, a number or a tensor `[C]`.
        high: Value of a white pixel, a number or a tensor `[C]`.
        decay: Exponent of 1 / frequency, by which coefficients are scaled.
        deviation: Standard deviation of the initial noise.
    """

    low: Bound = -2.0
    high: Bound = 2.0
    decay: float = 1.0
    deviation: float = 0.01

    lr: ClassVar[float] = 0.05

    def start(self, shape: Shape, randoms: Sequence[torch.Generator]) -> list[Tensor]:
        channels, height, width = _picture(shape)
        return [self.deviation * _normal((channels, height, width // 2 + 1, 2), randoms)]

    def render(self, parameters: Sequence[Tensor], shape: Shape) -> Tensor:
        (v,) = parameters
        scale = frequency_scales(shape[-2:], self.decay).to(v)
        # 4 keeps the sigmoid from saturating
        picture = torch.fft.irfft2(torch.view_as_complex(v) * scale, s=shape[-2:], norm="ortho") / 4
        return scale_to_bounds(to_rgb(picture).sigmoid(), self.low, self.high)

    def written(self, x: Tensor) -> list[Tensor]:
        """Return the parameters that render the given inputs."""
        picture = decorrelate(_logits(x, self.low, self.high))
        spectrum = torch.fft.rfft2(4 * picture, norm="ortho") / frequency_scales(x.shape[-2:], self.decay).to(x)
        return [torch.view_as_real(spectrum).contiguous()]


@dataclass(frozen=True, eq=False)
class MACO:
    """Fourier phases, with magnitudes fixed to those of photos, against high-frequency noise (Fel et al. 2023, section 3).

    >>> whence.prototype(model, "features.10:3", image=whence.images.MACO(low, high, spectrum), shape=(3, 224, 224))

    Args:
        low: Value of a black pixel, a number or a tensor `[C]`.
        high: Value of a white pixel, a number or a tensor `[C]`.
        spectrum: Mean magnitudes of data, `[C, H, W // 2 + 1]`, as `MACO.spectrum_of(samples)` returns; None is 1 / frequency.

    Raises:
        InputError: `spectrum` does not fit the shape of the images.
    """

    low: Bound = -2.0
    high: Bound = 2.0
    spectrum: Tensor | None = None

    lr: ClassVar[float] = 0.3

    @staticmethod
    @check_arguments
    def spectrum_of(samples: Tensor) -> Tensor:
        """Return the mean magnitudes `[C, H, W // 2 + 1]` of images `[N, C, H, W]` in decorrelated colours."""
        return torch.fft.rfft2(decorrelate(samples), norm="ortho").abs().mean(0)

    def start(self, shape: Shape, randoms: Sequence[torch.Generator]) -> list[Tensor]:
        channels, height, width = _picture(shape)
        wanted = (channels, height, width // 2 + 1)
        if self.spectrum is not None and self.spectrum.shape != wanted:
            raise InputError(f"spectrum has shape {tuple(self.spectrum.shape)}, expected {wanted} for images of {shape}")
        return [_normal(wanted, randoms)]

    def render(self, parameters: Sequence[Tensor], shape: Shape) -> Tensor:
        picture = self.picture(parameters, shape)
        mean, deviation = picture.mean((1, 2, 3), keepdim=True), picture.std((1, 2, 3), keepdim=True)
        return scale_to_bounds(to_rgb((picture - mean) / deviation).sigmoid(), self.low, self.high)

    def picture(self, parameters: Sequence[Tensor], shape: Shape) -> Tensor:
        """Return the image of fixed magnitudes, before its values are scaled to the bounds."""
        phases = make_odd(parameters[0], shape[-1])
        magnitudes = frequency_scales(shape[-2:], 1.0).expand(phases.shape[1:]) if self.spectrum is None else self.spectrum
        return torch.fft.irfft2(torch.polar(magnitudes.to(phases).expand_as(phases), phases), s=shape[-2:], norm="ortho")


@dataclass(frozen=True, eq=False)
class CPPN:
    """A compositional pattern-producing network from pixel position to colour (Mordvintsev et al. 2018): smooth at any size.

    >>> whence.prototype(model, "features.10:3", image=whence.images.CPPN(low, high), shape=(3, 224, 224))

    Args:
        low: Value of a black pixel, a number or a tensor `[C]`.
        high: Value of a white pixel, a number or a tensor `[C]`.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
    """

    low: Bound = -2.0
    high: Bound = 2.0
    width: int = 24
    depth: int = 8

    lr: ClassVar[float] = 0.005

    def start(self, shape: Shape, randoms: Sequence[torch.Generator]) -> list[Tensor]:
        channels, *_ = _picture(shape)
        inputs = [2] + [2 * self.width] * self.depth
        outputs = [self.width] * self.depth + [channels]
        weights = [_normal((i, o), randoms) / i**0.5 for i, o in zip(inputs, outputs, strict=True)]
        return [*weights[:-1], 0 * weights[-1], *(torch.zeros(len(randoms), 1, o) for o in outputs)]

    def render(self, parameters: Sequence[Tensor], shape: Shape) -> Tensor:
        _, height, width = _picture(shape)
        rows, columns = (torch.linspace(-(3**0.5), 3**0.5, n).to(parameters[0]) for n in (height, width))
        x = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(1, -1, 2)
        weights, biases = parameters[: self.depth + 1], parameters[self.depth + 1 :]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            bent = (x @ weight + bias).atan()
            x = torch.cat([bent / 0.67, bent.square() / 0.6], -1)  # both have a variance of about 1
        x = x @ weights[-1] + biases[-1]
        return scale_to_bounds(x.sigmoid().transpose(1, 2).unflatten(2, (height, width)), self.low, self.high)


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of a decoder, for a `CodeSpace` prior."""

    space: CodeSpace

    lr: ClassVar[float] = 0.05

    def start(self, shape: Shape, randoms: Sequence[torch.Generator]) -> list[Tensor]:
        return [0.1 * _normal((self.space.code_size(),), randoms)]

    def render(self, parameters: Sequence[Tensor], shape: Shape) -> Tensor:
        (codes,) = parameters
        return self.space.decoder(to_device_of(codes, self.space.decoder)).to(codes.device)

    def written(self, x: Tensor) -> list[Tensor]:
        """Return the codes themselves."""
        return [x]


def scale_to_bounds(share: Tensor, low: Bound, high: Bound) -> Tensor:
    """Scale values in [0, 1] to the bounds."""
    low, high = _column(low).to(share), _column(high).to(share)
    return low + (high - low) * share


def frequency_scales(size: tuple[int, ...], decay: float) -> Tensor:
    """Return 1 / frequency^decay for the Fourier coefficients of an image [H, W]; the mean counts as the lowest frequency."""
    height, width = size
    frequencies = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    return 1 / frequencies.clamp(min=1 / max(height, width)) ** decay


def make_odd(phases: Tensor, width: int) -> Tensor:
    """Enforce φ(−k) = −φ(k) in the columns with both k and −k, since a real image would have other magnitudes otherwise."""
    itself = [0] if width % 2 else [0, width // 2]
    columns = phases[..., itself]
    opposite = columns.flip(-2).roll(1, -2)
    odd = (columns - opposite) / 2**0.5
    parts = [odd[..., :1], phases[..., 1 : phases.shape[-1] - (width % 2 == 0)], odd[..., 1:]]
    return torch.cat(parts, -1)


def to_rgb(picture: Tensor) -> Tensor:
    """Convert decorrelated colours to RGB."""
    return torch.einsum("kchw,dc->kdhw", picture, COLOR_CORRELATION.to(picture)) if picture.shape[1] == 3 else picture


def decorrelate(picture: Tensor) -> Tensor:
    """Convert RGB to decorrelated colours, the inverse of `to_rgb`."""
    return (
        torch.einsum("kchw,dc->kdhw", picture, torch.linalg.inv(COLOR_CORRELATION).to(picture))
        if picture.shape[1] == 3
        else picture
    )


def _picture(shape: Shape) -> Shape:
    if len(shape) != 3:
        raise InputError(f"expected an image shape [C, H, W], got {tuple(shape)}; use whence.images.Pixels for other inputs")
    return shape


def _normal(shape: Sequence[int], randoms: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=random) for random in randoms])


def _column(bound: Bound) -> Tensor:
    """Reshape one bound for each channel so that it broadcasts over images."""
    bound = torch.as_tensor(bound)
    return bound.view(-1, 1, 1) if bound.dim() == 1 else bound


def _logits(x: Tensor, low: Bound, high: Bound) -> Tensor:
    low, high = _column(low).to(x), _column(high).to(x)
    beyond = 0.02 * (high - low)
    if (x < low - beyond).any() or (x > high + beyond).any():
        raise InputError(
            f"start has values from {float(x.min()):.3g} to {float(x.max()):.3g}, outside the bounds of the image; pass bounds "
            "that include them: image=whence.images.Fourier(low, high)"
        )
    return ((x - low) / (high - low)).clamp(0.01, 0.99).logit()
