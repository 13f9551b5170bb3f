"""Pictures of relevance: red for relevance, blue for counter-relevance, white for none, on a symmetric scale."""

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from whence.errors import WhenceError
from whence.explanation import Explanation, tensors
from whence.show import tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

COLOURS = "seismic"
MOST_SAMPLES = 16


@dataclass(frozen=True)
class Row:
    """One input of one sample."""

    x: Tensor
    relevance: Tensor
    title: str
    tokens: list[str] | None = None  # of a text

    @property
    def height(self) -> float:
        return 3.35 if self.tokens is None else tokens.height(self.tokens)


def figure(explanation: "Explanation") -> Figure:
    """A row for each sample and input: the input, its heatmap, and one over the other; a text with coloured tokens; bars for
    plain vectors."""
    rows = _rows(explanation)
    if all(row.relevance.dim() == 1 and row.tokens is None for row in rows):
        return _bars(rows)
    heights = [row.height for row in rows]
    columns = max(tokens.width(row.tokens) if row.tokens else tokens.CHARACTERS for row in rows)
    drawn = Figure(figsize=(max(9.6 * columns / tokens.CHARACTERS, 4.0), sum(heights)), dpi=120, layout="constrained")
    parts = drawn.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        if row.tokens is not None:
            tokens.draw(part.subplots(), row.tokens, row.relevance.flatten().float().cpu(), row.title, columns)
        else:
            _maps(part, row)
    return drawn


def _maps(part: "SubFigure", row: Row) -> None:
    heat = as_map(row.relevance)
    limit, picture, axes = scale(heat), as_picture(row.x), part.subplots(1, 3)
    axes[0].imshow(picture.numpy(), cmap="gray")
    shown = axes[1].imshow(heat.numpy(), cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    overlay(axes[2], picture, heat, limit)
    for axis, heading in zip(axes, ("input", row.title, "overlay"), strict=True):
        axis.set_title(heading, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    bar = part.colorbar(shown, ax=axes[2], fraction=0.05, pad=0.02)
    bar.ax.tick_params(labelsize=7)


def png(drawn: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()


def show(thing: object, drawn: Figure) -> None:
    """A thing by its figure: inline in a notebook, else in the system's image viewer."""
    try:
        from IPython import get_ipython
    except ImportError:
        inline = None
    else:
        inline = get_ipython()
    if inline is not None:
        from IPython.display import display

        display(thing)
        return
    from PIL import Image

    Image.open(BytesIO(png(drawn))).show()


def as_map(relevance: Tensor) -> Tensor:
    """Relevance of one sample as a map [H, W], channels summed: relevance adds up over what is not shown."""
    relevance = relevance.detach().float().cpu()
    if relevance.dim() == 3:
        return relevance.sum(0)
    if relevance.dim() <= 2:
        return torch.atleast_2d(relevance)
    raise WhenceError(f"cannot draw relevance of shape {tuple(relevance.shape)} a sample; save it as .npz or .safetensors")


def as_picture(x: Tensor) -> Tensor:
    """One input as a picture in [0, 1]: [H, W], or [H, W, 3] where it has three channels."""
    x = x.detach().float().cpu()
    x = (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)
    if x.dim() == 3 and len(x) == 3:
        return x.permute(1, 2, 0)
    return x.mean(0) if x.dim() == 3 else torch.atleast_2d(x)


def scale(heat: Tensor) -> float:
    """The symmetric limit of the colours. On photos the largest thousandth of pixels may saturate, or the rest pales."""
    magnitude = heat.abs().flatten()
    limit = torch.quantile(magnitude, 0.999) if 4096 <= len(magnitude) <= 2**24 else magnitude.max()
    return float(limit) or float(magnitude.max()) or 1.0


def overlay(axis: "Axes", picture: Tensor, heat: Tensor, limit: float) -> None:
    """The heatmap over a pale grey input, as opaque as it is relevant."""
    grey = picture.mean(2) if picture.dim() == 3 else picture
    axis.imshow((0.55 + 0.45 * grey).numpy(), cmap="gray", vmin=0, vmax=1)
    opacity = (heat.abs() / limit).clamp(max=1).sqrt()
    axis.imshow(heat.numpy(), cmap=COLOURS, vmin=-limit, vmax=limit, alpha=opacity.numpy(), interpolation="nearest")


def _rows(explanation: "Explanation") -> list[Row]:
    inputs, relevance = tensors(explanation.inputs), tensors(explanation.relevance)
    ids = {name: t.reshape(len(t), -1).tolist() for name, t in inputs.items() if not t.is_floating_point()}
    texts = explanation.tokens or {name: [[f" {i}" for i in row] for row in rows] for name, rows in ids.items()}
    names, account = explanation.target_names(), explanation.conservation
    rows = []
    for i in range(min(len(explanation), MOST_SAMPLES)):
        title = f"{names[i]}:  f = {account.output[i]:.4g},  ΣR = {account.relevance[i]:.4g}"
        for name, x in inputs.items():
            if name in texts or name not in ids:  # ids of other kinds, such as segments, are no text
                rows.append(Row(x[i], relevance[name][i], title, texts[name][i] if name in texts else None))
    return rows


def _bars(rows: list[Row]) -> Figure:
    drawn = Figure(figsize=(7, 2.6 * len(rows)), dpi=120, layout="constrained")
    for (axis,), row in zip(drawn.subplots(len(rows), 1, squeeze=False), rows, strict=True):
        values = row.relevance.detach().float().cpu().numpy()
        axis.bar(range(len(values)), values, color=["#c00000" if v > 0 else "#0000c0" for v in values])
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(row.title, fontsize=9)
        axis.set_xlabel("feature", fontsize=8)
        axis.set_ylabel("relevance", fontsize=8)
    return drawn
