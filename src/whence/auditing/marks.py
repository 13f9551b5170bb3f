"""Marks that can be pasted on samples: at one place, at any place, as a tone, or as tokens."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Mark(Protocol):
    """Content that samples have in common, which can be pasted on others."""

    def pasted(self, x: Tensor, seed: int = 0) -> Tensor:
        """Return copies of samples `[N, …]` with the mark; random places and phases depend on the seed."""
        ...


@dataclass(frozen=True, eq=False)
class AlignedMark:
    """Content at a fixed place: x (1 − w) + w · content, or x + w · content.

    Args:
        weights: Weights w in [0, 1] of the positions, which broadcast against one sample.
        content: Values like one sample.
        adds: Whether the content is added to the sample instead of replacing its values.
    """

    weights: Tensor
    content: Tensor
    adds: bool = False

    def pasted(self, x: Tensor, seed: int = 0) -> Tensor:
        """Return copies of samples `[N, …]` with the content."""
        w, content = self.weights.to(x), self.content.to(x)
        return x + w * content if self.adds else x * (1 - w) + w * content

    def of_content(self, content: Tensor) -> "AlignedMark":
        """Return the mark of other content at the same place."""
        return AlignedMark(self.weights, content, self.adds)

    def cut(self, x: Tensor, median: Tensor) -> Tensor:
        """Return samples without the mark: with the median of other classes at its place, or less what was added."""
        w = self.weights.to(x)
        return x - w * self.content.to(x) if self.adds else x * (1 - w) + w * median.to(x)


@dataclass(frozen=True, eq=False)
class BackgroundMark:
    """A color that replaces the background of pictures.

    Args:
        plain: The color of the background of other classes, `[C]`.
        color: The color that replaces it, `[C]`.
        tolerance: Difference in each channel up to which a pixel has a color.
    """

    plain: Tensor
    color: Tensor
    tolerance: float

    def pasted(self, x: Tensor, seed: int = 0) -> Tensor:
        """Return copies of pictures `[N, C, H, W]` with the background in the color."""
        return _recolored(x, self.plain, self.color, self.tolerance)

    def like(self, others: Tensor, seed: int) -> "BackgroundMark":
        """Return the mark that leaves the background as other classes have it."""
        return BackgroundMark(self.plain, self.plain, self.tolerance)

    def cut(self, x: Tensor) -> Tensor:
        """Return pictures with the background of other classes."""
        return _recolored(x, self.color, self.plain, self.tolerance)


def _recolored(x: Tensor, old: Tensor, new: Tensor, tolerance: float) -> Tensor:
    old, new = (color.to(x)[:, None, None] for color in (old, new))
    return torch.where(((x - old).abs() <= tolerance).all(1, keepdim=True), new, x)


@dataclass(frozen=True, eq=False)
class MovingMark:
    """A crop that is pasted at random places of pictures.

    Args:
        crop: Pixel values `[C, h, w]`.
    """

    crop: Tensor

    def pasted(self, x: Tensor, seed: int = 0) -> Tensor:
        """Return copies of pictures `[N, C, H, W]` with the crop, each at a random place."""
        found, random = x.clone(), torch.Generator().manual_seed(seed)
        h, w = self.crop.shape[1:]
        for picture in found:
            top, left = (
                int(torch.randint(side - n + 1, (), generator=random)) for side, n in zip(x.shape[2:], (h, w), strict=True)
            )
            picture[:, top : top + h, left : left + w] = self.crop.to(x)
        return found

    def like(self, others: Tensor, seed: int) -> "MovingMark":
        """Return a crop of that size of one of other pictures."""
        random = torch.Generator().manual_seed(seed)
        row, top, left = (
            int(torch.randint(count, (), generator=random))
            for count in (len(others), *(side - n + 1 for side, n in zip(others.shape[2:], self.crop.shape[1:], strict=True)))
        )
        h, w = self.crop.shape[1:]
        return MovingMark(others[row, :, top : top + h, left : left + w])


@dataclass(frozen=True, eq=False)
class ToneMark:
    """Frequencies that are added to series with random phases.

    Args:
        amplitude: Amplitude of each frequency of `torch.fft.rfft`, `[C, F]`.
        length: Number of time steps.
    """

    amplitude: Tensor
    length: int

    def pasted(self, x: Tensor, seed: int = 0) -> Tensor:
        """Return copies of series `[N, C, T]` with the tone."""
        random = torch.Generator().manual_seed(seed)
        phases = 2 * math.pi * torch.rand(len(x), 1, self.amplitude.shape[-1], generator=random)
        spectrum = torch.polar(self.amplitude.cpu().float().expand(len(x), -1, -1), phases.expand(-1, len(self.amplitude), -1))
        return x + torch.fft.irfft(spectrum, n=self.length).to(x)

    def like(self, others: Tensor, seed: int) -> "ToneMark":
        """Return the tone at other frequencies, half the band away."""
        return ToneMark(self.amplitude.roll(self.amplitude.shape[-1] // 2, -1), self.length)

    def cut(self, x: Tensor) -> Tensor:
        """Return series without the frequencies of the tone."""
        return x - torch.fft.irfft(torch.fft.rfft(x.float()) * (self.amplitude > 0).to(x.device), n=self.length).to(x)


@dataclass(frozen=True, eq=False)
class TokenMark:
    """Tokens that replace as many tokens at a random place of texts.

    Args:
        ids: Token ids of the phrase.
        protected: Ids that are not replaced, such as padding and the tokens that begin and end texts.
    """

    ids: tuple[int, ...]
    protected: frozenset[int] = frozenset()

    def pasted(self, x: Tensor, seed: int = 0) -> Tensor:
        """Return copies of token ids `[N, T]` with the phrase."""
        found, random = x.clone(), torch.Generator().manual_seed(seed)
        fixed = torch.isin(x, torch.tensor(sorted(self.protected), dtype=x.dtype, device=x.device))
        size = len(self.ids)
        free = ~F.max_pool1d(fixed[:, None].float(), size, 1)[:, 0].bool()  # starts of windows without such tokens
        for row, starts in zip(found, free, strict=True):
            places = starts.nonzero()[:, 0]
            if len(places):
                start = int(places[int(torch.randint(len(places), (), generator=random))])
                row[start : start + size] = torch.tensor(self.ids).to(row)
        return found

    def like(self, others: Tensor, seed: int) -> "TokenMark":
        """Return a phrase of that length from one of other texts."""
        size, random = len(self.ids), torch.Generator().manual_seed(seed)
        windows = others.unfold(1, size, 1).flatten(0, 1).tolist()
        free = [tuple(ids) for ids in windows if not self.protected.intersection(ids)] or [self.ids]
        return TokenMark(free[int(torch.randint(len(free), (), generator=random))], self.protected)


def high_pass(x: Tensor) -> Tensor:
    """Return x − Gaussian(x) of pictures `[N, C, H, W]` or series `[N, C, T]`, with a width of a 16th of the side."""
    blurred, sides = x.float(), x.shape[2:]
    for dim, side in enumerate(sides, start=2):
        width = max(1.5, min(sides) / 16)
        reach = min(math.ceil(3 * width), side - 1)
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / width) ** 2)
        rows = blurred.movedim(dim, -1)
        padded = F.pad(rows.reshape(-1, 1, side), (reach, reach), mode="reflect")
        blurred = F.conv1d(padded, (kernel / kernel.sum())[None, None]).view(rows.shape).movedim(-1, dim)
    return x.float() - blurred
