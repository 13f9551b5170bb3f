"""What stands in the place of what is taken away. A copy is drawn once for each input; only inpainting looks at the hole.

>>> whence.evaluate(model, (x, y), ["lrp"], ["srg"], imputer=whence.imputers.Blur(5))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.errors import InputError, RuleError, suggest_or_list

FillFunction = Callable[[Tensor], Tensor]  # hidden [rounds, N, …] -> altered [rounds, N, …]


class Imputer(Protocol):
    """Gives, for inputs `x` `[N, …]`, what fills the holes in them; several fills are averaged over."""

    name: ClassVar[str]

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]: ...


@dataclass(frozen=True)
class ConstantValue:
    """A number, a tensor `[1, …]` like a sample, or an id (`tokenizer.mask_token_id`)."""

    value: float | Tensor = 0.0

    name: ClassVar[str] = "constant"

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        value = torch.as_tensor(self.value, device=x.device)
        if value.is_floating_point() and not x.is_floating_point():
            raise InputError(f"{self.value!r} in place of ids; give an id, such as imputer=tokenizer.mask_token_id")
        try:
            return [_fill_from_copy(x, value.to(x.dtype).expand_as(x))]
        except RuntimeError as error:
            raise InputError(f"a constant of shape {tuple(value.shape)} for inputs of shape {tuple(x.shape)}") from error


@dataclass(frozen=True)
class Mean:
    """The mean of each channel of each input; of plain vectors, which have none, 0, the mean of standardised columns."""

    name: ClassVar[str] = "mean"

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        _check_numbers(self, x)
        return [_fill_from_copy(x, _channel_means(x))]


@dataclass(frozen=True)
class Blur:
    """The picture or series itself under a Gaussian blur of `sigma` entries (RISE begins its insertion with 5 pixels)."""

    sigma: float = 5.0

    name: ClassVar[str] = "blur"

    def __post_init__(self):
        if not self.sigma > 0:
            raise RuleError(f"{self!r}: give a width above 0")

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        _check_pictures(self, x)
        reach = math.ceil(3 * self.sigma)
        weights = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * self.sigma**2))
        blurred = x
        for d in range(2, x.dim()):
            blurred = _convolve(blurred, weights / weights.sum(), d)
        return [_fill_from_copy(x, blurred)]


@dataclass(frozen=True)
class BackgroundSamples:
    """Values of other samples, `background` `[B, …]`, drawn anew for each input, `n_samples` of them averaged over."""

    background: Tensor
    n_samples: int = 1

    name: ClassVar[str] = "samples"

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        if self.background.shape[1:] != x.shape[1:] or not len(self.background):
            raise InputError(f"a background of shape {tuple(self.background.shape)} for inputs of {tuple(x.shape)}")
        drawn = torch.stack([torch.randint(len(self.background), (self.n_samples,), generator=r) for r in random], 1)
        return [_fill_from_copy(x, self.background[numbers].to(x)) for numbers in drawn]


@dataclass(frozen=True)
class Inpainting:
    """What is left of the picture, spread into the holes from coarse to fine (push and pull, Gortler et al. 1996)."""

    name: ClassVar[str] = "inpainting"

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        _check_pictures(self, x)

        def fill(hidden: Tensor) -> Tensor:
            hidden = hidden.expand(len(hidden), *x.shape)
            given, known = x.expand_as(hidden).flatten(0, 1), (~hidden).flatten(0, 1).to(x)
            return torch.where(hidden, _pyramid_fill(given * known, known, _channel_means(given)).view(hidden.shape), x)

        return [fill]


IMPUTERS: dict[str, type] = {kind.name: kind for kind in (ConstantValue, Mean, Blur, Inpainting)}


def make_imputer(given: "Imputer | Tensor | float | str") -> Imputer:
    """The imputer itself, of a name, or the constant."""
    if isinstance(given, str):
        if given not in IMPUTERS:
            raise RuleError(f"no imputer {given!r}{suggest_or_list(given, IMPUTERS)}")
        return IMPUTERS[given]()
    if isinstance(given, Tensor | int | float):
        return ConstantValue(given)
    if not hasattr(given, "fills") or isinstance(given, type):
        raise RuleError(f"{given!r} is no imputer; pass a number, one of {', '.join(IMPUTERS)}, or whence.imputers.Blur(5)")
    return given


def _fill_from_copy(x: Tensor, copy: Tensor) -> FillFunction:
    return lambda hidden: torch.where(hidden, copy, x)


def _channel_means(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True).expand_as(x) if x.dim() > 2 else torch.zeros_like(x)


def _convolve(x: Tensor, weights: Tensor, d: int) -> Tensor:
    """Along one dimension, what lies beyond the edges like the edges."""
    moved = x.movedim(d, -1)
    rows = moved.reshape(-1, 1, moved.shape[-1])
    padded = F.pad(rows, [len(weights) // 2] * 2, mode="replicate")
    return F.conv1d(padded, weights[None, None]).view(moved.shape).movedim(-1, d)


def _pyramid_fill(values: Tensor, weights: Tensor, otherwise: Tensor) -> Tensor:
    """Values (times weights) averaged on coarser and coarser grids; each hole takes the finest that knows anything."""
    known = values / weights.clamp(min=1e-6)
    if max(values.shape[2:]) == 1:
        return torch.where(weights > 0, known, otherwise[(..., *[slice(1)] * (values.dim() - 2))])
    pool = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}[values.dim()]
    halves = [min(2, length) for length in values.shape[2:]]
    coarser, known_there = (pool(t, halves, ceil_mode=True) for t in (values, weights))
    coarse = _pyramid_fill(coarser, known_there, otherwise)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[values.dim()]
    finer = F.interpolate(coarse, values.shape[2:], mode=mode, align_corners=False)
    return known * weights.clamp(max=1) + finer * (1 - weights.clamp(max=1))


def _check_numbers(imputer: Imputer, x: Tensor) -> None:
    if not x.is_floating_point():
        raise InputError(f"ids have no {imputer.name}; say what stands in their place: imputer=tokenizer.mask_token_id")


def _check_pictures(imputer: Imputer, x: Tensor) -> None:
    if not x.is_floating_point() or x.dim() < 3:
        raise InputError(f"the imputer {imputer.name!r} fills pictures and series [N, C, …], not {tuple(x.shape)}")
