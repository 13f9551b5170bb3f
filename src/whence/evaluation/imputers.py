"""Imputers: the values that replace removed parts of an input.

Fill values are drawn once per input; only those of `Inpainting` depend on which parts are removed.

>>> whence.evaluate(model, (x, y), ["lrp"], ["srg"], imputer=whence.imputers.Blur(5))
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.errors import InputError, RuleError, suggest_or_list, value_repr

FillFunction = Callable[[Tensor], Tensor]  # mask of removed entries [rounds, N, …] -> modified inputs [rounds, N, …]


class Imputer(Protocol):
    """Interface of imputers.

    `fills` returns, for inputs `x` `[N, …]` and one random generator per sample, functions that replace the removed entries of
    `x`; scores are averaged over these functions.
    """

    name: ClassVar[str]

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]: ...


@dataclass(frozen=True)
class ConstantValue:
    """Imputer that replaces removed entries by a constant.

    >>> whence.evaluate(model, ids, ["lrp"], ["srg"], imputer=whence.imputers.ConstantValue(tokenizer.mask_token_id))

    Args:
        value: A number, a tensor `[1, …]` shaped like a sample, or a token id (`tokenizer.mask_token_id`).
    """

    value: float | Tensor = 0.0

    name: ClassVar[str] = "constant"

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        value = torch.as_tensor(self.value, device=x.device)
        if value.is_floating_point() and not x.is_floating_point():
            raise InputError(
                f"the imputer of token ids must be a token id, such as tokenizer.mask_token_id; got {value_repr(self.value)}"
            )
        try:
            return [_fill_from_copy(x, value.to(x.dtype).expand_as(x))]
        except RuntimeError as error:
            raise InputError(
                f"a constant of shape {tuple(value.shape)} does not fit inputs of shape {tuple(x.shape)}"
            ) from error


@dataclass(frozen=True)
class Mean:
    """Imputer that replaces removed entries by the mean of their channel in the same sample.

    Vectors have no channels; their entries are replaced by 0, the mean of standardized columns.

    >>> whence.evaluate(model, x, ["lrp"], ["srg"], imputer=whence.imputers.Mean())
    """

    name: ClassVar[str] = "mean"

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        _check_numbers(self, x)
        return [_fill_from_copy(x, _channel_means(x))]


@dataclass(frozen=True)
class Blur:
    """Imputer that replaces removed entries by those of a Gaussian blur of the image or series itself.

    >>> whence.evaluate(model, x, ["lrp"], ["srg"], imputer=whence.imputers.Blur(5))

    Args:
        sigma: The standard deviation of the blur in entries (the insertion metric of RISE starts from 5 pixels).
    """

    sigma: float = 5.0

    name: ClassVar[str] = "blur"

    def __post_init__(self):
        if not self.sigma > 0:
            raise RuleError(f"sigma must be positive, got {self!r}")

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
    """Imputer that replaces removed entries by those of random background samples.

    >>> whence.evaluate(model, x, ["lrp"], ["srg"], imputer=whence.imputers.BackgroundSamples(x_train, n_samples=4))

    Args:
        background: Other samples, `[B, …]`.
        n_samples: The number of background samples drawn for each input; scores are averaged over them.
    """

    background: Tensor
    n_samples: int = 1

    name: ClassVar[str] = "samples"

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        if self.background.shape[1:] != x.shape[1:] or not len(self.background):
            raise InputError(
                f"a background of shape {tuple(self.background.shape)} does not fit inputs of shape {tuple(x.shape)}"
            )
        drawn = torch.stack([torch.randint(len(self.background), (self.n_samples,), generator=r) for r in random], 1)
        return [_fill_from_copy(x, self.background[numbers].to(x)) for numbers in drawn]


@dataclass(frozen=True)
class OtherPlaces:
    """Imputer that replaces removed entries by those of other places of the same sample: it is shifted at random, circularly.

    For pictures, series, volumes and token ids; it keeps the texture of a picture, and the words of a text.

    >>> whence.evaluate(model, x, ["lrp"], ["srg"], imputer=whence.imputers.OtherPlaces(4))

    Args:
        n_samples: The number of shifts drawn for each input; scores are averaged over them.
    """

    n_samples: int = 1

    name: ClassVar[str] = "other_places"

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        first = 2 if x.is_floating_point() else 1  # behind the channels
        if x.dim() <= first:
            raise InputError(
                f"imputer '{self.name}' expects images or series [N, C, …] or token ids [N, T], got {tuple(x.shape)}"
            )
        dims = tuple(range(first, x.dim()))
        along = [d - 1 for d in dims]  # of a sample
        copies = (
            torch.stack([one.roll(self._shifts(one, along, r), along) for one, r in zip(x, random, strict=True)])
            for _ in range(self.n_samples)
        )
        return [_fill_from_copy(x, copy) for copy in copies]

    def _shifts(self, one: Tensor, along: list[int], random: torch.Generator) -> list[int]:
        """Return a shift along each dimension, of at least an eighth of its length."""
        found = []
        for size in (one.shape[d] for d in along):
            least = min(size - 1, -(-size // 8))
            found.append(int(torch.randint(least, max(size - least, least) + 1, (), generator=random)) if size > 1 else 0)
        return found


@dataclass(frozen=True)
class Inpainting:
    """Imputer that fills removed regions from the rest of the image or series.

    The remaining entries are interpolated from coarse to fine grids (push-pull algorithm, Gortler et al. 1996).

    >>> whence.evaluate(model, x, ["lrp"], ["srg"], imputer=whence.imputers.Inpainting())
    """

    name: ClassVar[str] = "inpainting"

    def fills(self, x: Tensor, random: list[torch.Generator]) -> list[FillFunction]:
        _check_pictures(self, x)

        def fill(hidden: Tensor) -> Tensor:
            hidden = hidden.expand(len(hidden), *x.shape)
            given, known = x.expand_as(hidden).flatten(0, 1), (~hidden).flatten(0, 1).to(x)
            return torch.where(hidden, _pyramid_fill(given * known, known, _channel_means(given)).view(hidden.shape), x)

        return [fill]


IMPUTERS: dict[str, type] = {kind.name: kind for kind in (ConstantValue, Mean, Blur, OtherPlaces, Inpainting)}


def make_imputer(given: "Imputer | Tensor | float | str") -> Imputer:
    """Return the imputer of a name, a `ConstantValue` for a number or tensor, or the imputer itself."""
    if isinstance(given, str):
        if given not in IMPUTERS:
            raise RuleError(f"unknown imputer {value_repr(given)}{suggest_or_list(given, IMPUTERS)}")
        return IMPUTERS[given]()
    if isinstance(given, Tensor | int | float):
        return ConstantValue(given)
    if not hasattr(given, "fills") or isinstance(given, type):
        raise RuleError(
            f"{value_repr(given)} is not an imputer; pass a number, one of {', '.join(IMPUTERS)}, or e.g. "
            "whence.imputers.Blur(5)"
        )
    return given


def _fill_from_copy(x: Tensor, copy: Tensor) -> FillFunction:
    return lambda hidden: torch.where(hidden, copy, x)


def _channel_means(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True).expand_as(x) if x.dim() > 2 else torch.zeros_like(x)


def _convolve(x: Tensor, weights: Tensor, d: int) -> Tensor:
    """Convolve along one dimension, with replicate padding."""
    moved = x.movedim(d, -1)
    rows = moved.reshape(-1, 1, moved.shape[-1])
    padded = F.pad(rows, [len(weights) // 2] * 2, mode="replicate")
    return F.conv1d(padded, weights[None, None]).view(moved.shape).movedim(-1, d)


def _pyramid_fill(values: Tensor, weights: Tensor, otherwise: Tensor) -> Tensor:
    """Average known values (given times their weights) on coarser and coarser grids, and fill each hole from the finest."""
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
        raise InputError(
            f"imputer '{imputer.name}' does not apply to token ids; give an id, such as imputer=tokenizer.mask_token_id"
        )


def _check_pictures(imputer: Imputer, x: Tensor) -> None:
    if not x.is_floating_point() or x.dim() < 3:
        raise InputError(f"imputer {imputer.name!r} expects floating-point images or series [N, C, …], got {tuple(x.shape)}")
