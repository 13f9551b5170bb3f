"""Videos: frames with their overlays, and the relevance of each frame over time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whence.plotting.bars import colors_by_sign
from whence.plotting.heatmaps import color_limit, color_scale, draw_color_bar, draw_overlay, hide_ticks, to_picture, wrap_title

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

RGB = 3  # channels
MAX_FRAMES = 8


@dataclass(frozen=True)
class VideoFrames:
    """A panel of a video `[T, 3, H, W]`: some frames, their overlays, and the relevance of every frame."""

    x: Tensor
    relevance: Tensor
    title: str
    width: float = 9.6
    height: float = 4.6

    @classmethod
    def time_dimension(cls, x: Tensor) -> int | None:
        """Return the dimension of the time in a sample `[3, T, H, W]` or `[T, 3, H, W]`; None for other samples, volumes."""
        if x.dim() != 4:
            return None
        return 1 if x.shape[0] == RGB else 0 if x.shape[1] == RGB else None

    def draw(self, part: "SubFigure", width: float) -> None:
        video, heat = self.x.detach().float().cpu(), self.relevance.detach().float().cpu().sum(1)
        pictures = to_picture(video.transpose(0, 1).flatten(1, 2)).unflatten(0, (len(video), -1))  # on one scale
        limit, numbers = color_limit(heat), shown_frames(heat)
        axes = part.subplot_mosaic(
            [[f"frame {k}" for k in numbers], [f"overlay {k}" for k in numbers], ["curve"] * len(numbers)],
            gridspec_kw={"height_ratios": [3, 3, 2]},
        )
        part.suptitle(wrap_title(self.title), fontsize=9)
        for k in numbers:
            axes[f"frame {k}"].imshow(pictures[k].numpy())
            draw_overlay(axes[f"overlay {k}"], pictures[k], heat[k], limit)
            hide_ticks(axes[f"frame {k}"], f"frame {k}")
            hide_ticks(axes[f"overlay {k}"], "")
        draw_color_bar(part, color_scale(limit), axes[f"overlay {numbers[-1]}"])
        amounts = heat.flatten(1).sum(1).tolist()
        curve = axes["curve"]
        curve.bar(range(len(amounts)), amounts, color=colors_by_sign(amounts))
        curve.axhline(0, color="black", linewidth=0.6)
        curve.set_xlabel("frame", fontsize=8)
        curve.set_ylabel("relevance", fontsize=8)
        curve.tick_params(labelsize=7)


def shown_frames(heat: Tensor) -> list[int]:
    """Return the numbers of frames to draw: all, or some at equal distances and the one of the largest |relevance|."""
    count = len(heat)
    if count <= MAX_FRAMES:
        return list(range(count))
    spread = torch.linspace(0, count - 1, MAX_FRAMES).round().long()
    strongest = int(heat.abs().flatten(1).sum(1).argmax())
    spread[int((spread - strongest).abs().argmin())] = strongest
    return spread.tolist()
