"""Bounds and normalisation of pixels, shared by all attacks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.errors import InputError, RuleError, value_repr

ROUNDING = 1e-5  # tolerance relative to the box: the rounding error of normalising and back


@dataclass(frozen=True)
class Box:
    """Bounds of the pixels, and the mean and standard deviation that normalise a model's inputs.

    >>> imagenet = whence.attacks.Box(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    >>> whence.attacks.pgd(model, x, y, epsilon=8 / 255, box=imagenet)        # x is normalised, ε is in units of pixels

    `Box.unbounded()` is for real-valued inputs.

    Args:
        low: Lower bound of the values before normalisation.
        high: Upper bound of the values before normalisation.
        mean: Mean per channel (dimension 1 of the input); empty for inputs that are not normalised.
        std: Standard deviation per channel, positive.

    Raises:
        RuleError: `low` is not below `high`, or `mean` and `std` do not match.
    """

    low: float = 0.0
    high: float = 1.0
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    def __post_init__(self):
        for name in ("mean", "std"):
            values = torch.as_tensor(getattr(self, name), dtype=torch.float64).flatten().tolist()
            object.__setattr__(self, name, tuple(values))
        if not self.low < self.high:
            raise RuleError(f"Box({self.low}, {self.high}): low must be below high")
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise RuleError(f"Box(mean={self.mean}, std={self.std}): give both, with one positive std per channel")

    @classmethod
    @check_arguments
    def unbounded(cls) -> "Box":
        """Return a box without bounds."""
        return cls(-inf, inf)

    def pixels(self, x: Tensor) -> Tensor:
        """Return a model's inputs before normalisation."""
        return x * _column(self.std, x) + _column(self.mean, x) if self.mean else x

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return normalised pixels, as the model's inputs."""
        return (pixels - _column(self.mean, pixels)) / _column(self.std, pixels) if self.mean else pixels

    def clipped(self, pixels: Tensor) -> Tensor:
        """Return pixels clamped to the bounds."""
        return pixels.clamp(self.low, self.high)

    def check(self, pixels: Tensor) -> None:
        """Raise `InputError` for pixels outside of the bounds, beyond rounding error."""
        low, high = pixels.min().item(), pixels.max().item()
        slack = ROUNDING * (self.high - self.low) if self.high - self.low < inf else 0.0
        if low < self.low - slack or high > self.high + slack:
            advice = (
                "" if self.mean else "; pass box=whence.attacks.Box(mean=…, std=…) for normalised inputs, else Box(low, high)"
            )
            raise InputError(
                f"the input has values from {low:.4g} to {high:.4g}, outside its bounds {self.low} to {self.high}{advice}"
            )


def checked_pixels(box: Any, x: Tensor) -> Tensor:
    """Return a model's inputs before normalisation; raise `InputError` if they are outside of the bounds."""
    if not isinstance(box, Box):
        raise InputError(
            f"box={value_repr(box)}: expected a Box; pass whence.attacks.Box(low, high), or whence.attacks.Box(mean=…, "
            "std=…) for "
            "normalised inputs"
        )
    pixels = box.pixels(x)
    box.check(pixels)
    return pixels


def _column(values: Sequence[float], x: Tensor) -> Tensor:
    if x.dim() < 2 or x.shape[1] != len(values):
        raise InputError(
            f"the Box has {len(values)} channels, the input has shape {tuple(x.shape)}; channels must be dimension 1"
        )
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.dim() - 2))


UNIT_PIXELS = Box()  # the default of attacks
