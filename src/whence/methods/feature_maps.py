"""Feature maps of pictures and series: activations of layers as `[N, C, …]`, on a grid that covers the input."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from whence.methods.feature_masks import UPSAMPLING

COLOURS = (1, 3, 4)  # channels of a picture
MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens before those of the patches
MAX_STRIDE_RATIO = {True: 2.0, False: 1.2}  # between dimensions, of maps with their channels first, and last (or heads)


@dataclass(frozen=True)
class FeatureMap:
    """A layer's activations on a grid over the input."""

    dims: int  # of the input
    channels: int  # dimension of the activations' channels
    first_token: int | None = None  # the number of tokens before those of the patches, if the activations are tokens
    sides: tuple[int, ...] = ()  # of the grid

    @classmethod
    def of(cls, a: Tensor, channels: int, x: Tensor) -> "FeatureMap | None":
        """Return the map that activations with this channel dimension are, for an input `x`; None if they are none."""
        if a.shape[0] != x.shape[0]:
            return None
        if a.dim() == x.dim():
            sides = tuple(size for i, size in enumerate(a.shape) if i not in (0, channels))
            return cls(x.dim(), channels, None, sides)
        if a.dim() != 3 or x.dim() != 4 or channels != 2:
            return None
        height, width = (size for i, size in enumerate(x.shape) if i not in (0, input_channels(x)))
        for prefix in range(MAX_PREFIX_TOKENS + 1):
            count = a.shape[1] - prefix
            rows = round((max(count, 0) * height / width) ** 0.5)
            if rows and count % rows == 0 and abs(rows * width / (count // rows * height) - 1) < 0.05:
                return cls(x.dim(), channels, prefix, (rows, count // rows))
        return None

    def covers(self, x: Tensor) -> bool:
        """Return whether the grid has more than one position and about the same stride in all dimensions of the input."""
        lengths = [size for i, size in enumerate(x.shape) if i not in (0, self.input_channels(x))]
        strides = [length / side for length, side in zip(lengths, self.sides, strict=True)]
        return max(self.sides) > 1 and max(strides) <= MAX_STRIDE_RATIO[self.channels == 1] * min(strides)

    def read(self, a: Tensor) -> Tensor:
        """Return activations, or their gradient, as `[N, C, …]`."""
        a = a if self.first_token is None else a[:, self.first_token :].unflatten(1, self.sides)
        return a.movedim(-1 if self.first_token is not None else self.channels, 1)

    def input_channels(self, x: Tensor) -> int:
        """Return the channel dimension of the input; of a series it is chosen by the length and the layout of the map."""
        if x.dim() != 3:
            return input_channels(x)
        first = self.sides[0] <= 1.5 * x.shape[2] if self.channels == 1 else self.sides[0] > 1.5 * x.shape[1]
        return 1 if first else 2

    def spread(self, cam: Tensor, x: Tensor) -> Tensor:
        """Return a map `[N, 1, …]` resized to the input `x` and divided evenly among its channels."""
        channels = self.input_channels(x)
        picture = x.movedim(channels, 1)
        sized = F.interpolate(cam, picture.shape[2:], mode=UPSAMPLING[x.dim()], align_corners=False)
        return (sized / picture.shape[1]).expand_as(picture).movedim(1, channels).to(x).contiguous()


def input_channels(x: Tensor) -> int:
    """Return the channel dimension of pictures: last only if the last dimension alone has the size of one."""
    return x.dim() - 1 if x.shape[-1] in COLOURS and x.shape[1] not in COLOURS else 1
