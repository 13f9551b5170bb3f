"""Feature maps of pictures and series: activations of layers as `[N, C, …]`, on a grid that covers the input."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.core.output_maps import in_proportion
from whence.methods.feature_masks import UPSAMPLING

MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens before those of the patches
MAX_STRIDE_RATIO = {True: 2.0, False: 1.2}  # between dimensions, of maps with their channels first, and last (or heads)


@dataclass(frozen=True)
class FeatureMap:
    """A layer's activations on a grid over the input."""

    channels: int  # dimension of the activations' channels
    input_channels: int  # dimension of the channels of the input
    first_token: int | None = None  # the number of tokens before those of the patches, if the activations are tokens
    sides: tuple[int, ...] = ()  # of the grid

    @classmethod
    def of(cls, a: Tensor, channels: int, x: Tensor, input_channels: int) -> "FeatureMap | None":
        """Return the map that activations are, given the channel dimensions of both; None if they are none."""
        if a.shape[0] != x.shape[0]:
            return None
        if a.dim() == x.dim():
            sides = tuple(size for i, size in enumerate(a.shape) if i not in (0, channels))
            return cls(channels, input_channels, None, sides)
        if a.dim() != 3 or x.dim() != 4 or channels != 2:
            return None
        height, width = (size for i, size in enumerate(x.shape) if i not in (0, input_channels))
        for prefix in range(MAX_PREFIX_TOKENS + 1):
            count = a.shape[1] - prefix
            rows = round((max(count, 0) * height / width) ** 0.5)
            if rows and count % rows == 0 and abs(rows * width / (count // rows * height) - 1) < 0.05:
                return cls(channels, input_channels, prefix, (rows, count // rows))
        return None

    def covers(self, x: Tensor) -> bool:
        """Return whether the grid has more than one position and about the same stride in all dimensions of the input."""
        lengths = [size for i, size in enumerate(x.shape) if i not in (0, self.input_channels)]
        return max(self.sides) > 1 and in_proportion(self.sides, lengths, MAX_STRIDE_RATIO[self.channels == 1])

    def read(self, a: Tensor) -> Tensor:
        """Return activations, or their gradient, as `[N, C, …]`."""
        a = a if self.first_token is None else a[:, self.first_token :].unflatten(1, self.sides)
        return a.movedim(-1 if self.first_token is not None else self.channels, 1)

    def spread(self, cam: Tensor, x: Tensor) -> Tensor:
        """Return a map `[N, 1, …]` resized to the input `x` and divided evenly among its channels."""
        return (self.resized(cam, x) / x.shape[self.input_channels]).contiguous()

    def resized(self, cam: Tensor, x: Tensor) -> Tensor:
        """Return a map `[N, 1, …]` resized to the input `x`, the same in all its channels."""
        picture = x.movedim(self.input_channels, 1)
        sized = F.interpolate(cam, picture.shape[2:], mode=UPSAMPLING[x.dim()], align_corners=False)
        return sized.expand_as(picture).movedim(1, self.input_channels).to(x)


def to_unit_range(values: Tensor) -> Tensor:
    """Return values `[N, …]` scaled to [0, 1] for each sample; 0 for one that is constant."""
    positions = tuple(range(1, values.dim()))
    low, high = values.amin(positions, keepdim=True), values.amax(positions, keepdim=True)
    return torch.where(high > low, (values - low) / (high - low).where(high > low, 1.0), 0.0)
