"""Prototypes side by side."""

import math
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from torch import Tensor

from whence.errors import InputError

if TYPE_CHECKING:
    from whence.prototypes.prototypes import Prototypes

WIDEST = 8  # prototypes in a row


def figure(prototypes: "Prototypes") -> Figure:
    """A picture of each prototype, named; with samples of the data, a row for each prototype and them."""
    if prototypes.samples is not None:
        return _with_samples(prototypes)
    if prototypes.columns is not None:
        return _mosaic(prototypes, prototypes.columns)
    count = len(prototypes)
    if not count:
        raise InputError("there is no prototype to draw")
    columns = min(count, WIDEST if count % 5 or count > 10 else 5)
    rows = math.ceil(count / columns)
    drawn = Figure(figsize=(1.75 * columns, 2.05 * rows), dpi=120, layout="constrained")
    for k, axis in enumerate(_filled(drawn, prototypes, rows, columns)):
        axis.set_title(_title(prototypes, k), fontsize=8)
    return drawn


def side_by_side(rows: "dict[str, Prototypes]") -> Figure:
    """A row of prototypes for each name: the same concepts under several priors."""
    count = max(map(len, rows.values()))
    drawn = Figure(figsize=(0.95 * count + 1.2, 1.05 * len(rows) + 0.3), dpi=120, layout="constrained")
    axes = drawn.subplots(len(rows), count, squeeze=False)
    for row, (line, (name, prototypes)) in enumerate(zip(axes, rows.items(), strict=True)):
        for k, axis in enumerate(line):
            _draw(axis, prototypes.images[k], prototypes.bounds)
            if row == 0:
                axis.set_title(prototypes.names[k], fontsize=9)
        line[0].set_ylabel(name, fontsize=9)
    return drawn


def _mosaic(prototypes: "Prototypes", columns: int) -> Figure:
    rows = math.ceil(len(prototypes) / columns)
    drawn = Figure(figsize=(1.1 * columns, 1.1 * rows), dpi=120)
    drawn.subplots_adjust(0, 0, 1, 1, wspace=0, hspace=0)
    _filled(drawn, prototypes, rows, columns)
    return drawn


def _filled(drawn: Figure, prototypes: "Prototypes", rows: int, columns: int) -> list:
    """A grid with a prototype in each place, and the axes of the places that are taken."""
    axes = list(drawn.subplots(rows, columns, squeeze=False).flat)
    count = len(prototypes)
    for axis, x in zip(axes[:count], prototypes.images, strict=True):
        _draw(axis, x, prototypes.bounds)
    for axis in axes[count:]:
        axis.set_axis_off()
    return axes[:count]


def _with_samples(prototypes: "Prototypes") -> Figure:
    assert prototypes.samples is not None
    count, columns = len(prototypes), 1 + prototypes.samples.shape[1]
    drawn = Figure(figsize=(1.5 * columns, 1.7 * count), dpi=120, layout="constrained")
    for k, line in enumerate(drawn.subplots(count, columns, squeeze=False)):
        _draw(line[0], prototypes.images[k], prototypes.bounds)
        line[0].set_title(_title(prototypes, k), fontsize=8)
        for axis, sample in zip(line[1:], prototypes.samples[k], strict=True):
            _draw(axis, sample, prototypes.bounds)
    return drawn


def _title(prototypes: "Prototypes", k: int) -> str:
    return f"{prototypes.names[k]}  ({prototypes.activation[k]:.3g})"


def _draw(axis, x: Tensor, bounds: tuple | None) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    x = x.detach().float().cpu()
    if x.dim() == 1:
        axis.bar(range(len(x)), x.numpy(), color=["#c00000" if v > 0 else "#0000c0" for v in x])
        return
    picture = x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])
    if bounds is None and len(picture) != 3 and bool((picture.min() < 0) & (picture.max() > 0)):  # 0 in the middle
        limit = float(picture.abs().max())
        axis.imshow(picture.mean(0).numpy(), cmap="gray", vmin=-limit, vmax=limit, interpolation="nearest")
        return
    low, high = (picture.min(), picture.max()) if bounds is None else (torch.as_tensor(b).float().cpu() for b in bounds)
    picture = ((picture - low) / (high - low + 1e-12)).clamp(0, 1)
    shown = picture.permute(1, 2, 0) if len(picture) == 3 else picture.mean(0)
    axis.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
