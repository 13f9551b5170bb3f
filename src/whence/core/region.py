"""Targets that are regions of an output map: segmentations, keypoints, depth, images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whence.core.class_indices import check_classes, class_indices
from whence.core.inputs import Inputs
from whence.core.output_maps import OutputMap, read_map
from whence.errors import TargetError, value_repr


@dataclass(frozen=True, eq=False)
class Region:
    """Target of one class (or channel) in a region of an output map `[N, C, H, W]`: the mean or sum of its logit there.

    >>> whence.explain(model, photo, whence.Region(8))                                  # where class 8 is predicted
    >>> whence.explain(model, photo, whence.Region("cat", box=(40, 60, 200, 180)), class_names=names)
    >>> whence.explain(model, photo, whence.Region(point=(120, 64)))                    # the class predicted there

    The map is the output itself, or its field of a map: `out` (torchvision), `logits` at any resolution (transformers), masks
    of Segment Anything, whose channels are the masks; of Mask2Former and its kin, classes and masks of the queries are combined
    as for semantic segmentation. It may have any number of dimensions behind the classes: `[N, C, T]`, `[N, C, D, H, W]`.

    Args:
        index: Class index or name, or one per sample; None for the class that is predicted most often in the region.
        mask: Bool tensor `[H, W]` or `[N, H, W]`, of the size of the input or of the map; "predicted" for the places where the
            class is predicted, the default if there is neither a point nor a box. That is where its score is the largest; of a
            single channel or of masks where it is positive, or at least 0.5 if all scores are probabilities.
        point: A place (x, y) in pixels of the input, or (x, y, z) in a volume, x along the last dimension.
        box: A box (x0, y0, x1, y1) in pixels of the input, or (x0, y0, z0, x1, y1, z1) in a volume.
        reduce: "mean" or "sum" over the region.
        output: Name or position of the map among the outputs, where they have several.

    Raises:
        TargetError: When the model is explained, if the output has no map, or the region is empty or of another size.
    """

    index: Any = None
    mask: Any = None
    point: Sequence[float] | None = None
    box: Sequence[float] | None = None
    reduce: Literal["mean", "sum"] = "mean"
    output: str | int | None = None
    places: Tensor | None = field(default=None, repr=False)  # [N, …], filled in: those of a perturbed input differ
    kind: str | None = field(default=None, repr=False)  # of the map, filled in

    def __post_init__(self):
        if self.reduce not in ("mean", "sum"):
            raise TargetError(f"reduce={value_repr(self.reduce)}; choose 'mean' or 'sum'")
        if isinstance(self.mask, str) and self.mask != "predicted":
            raise TargetError(f"mask={value_repr(self.mask)}; expected a bool tensor, or 'predicted'")
        if sum(part is not None for part in (self.mask, self.point, self.box)) > 1:
            raise TargetError("a Region is one of mask=, point= and box=; pass one")
        for name, given in (("point", self.point), ("box", self.box)):
            if given is not None:
                object.__setattr__(self, name, _numbers(given, name))
        if self.mask is not None and not isinstance(self.mask, str):
            object.__setattr__(self, "mask", _bool_mask(self.mask))

    def select(self, outputs: Any, inputs: Inputs) -> "tuple[Tensor, Region]":
        """Return the values `[N]`, and this target with its classes and places filled in."""
        found = read_map(outputs, inputs, self.output)
        scores = found.scores
        count, classes = scores.shape[:2]
        places = self._places(scores, inputs) if self.places is None else self.places.to(scores.device)
        index = self._index(found, places)
        check_classes(index, classes)
        if places is None:
            places = found.predicted(index)
        sizes = places.flatten(1).sum(1)
        if not bool(sizes.all()):
            sample = int((sizes == 0).nonzero()[0])
            where = "is predicted nowhere" if self._predicted else "has an empty region"
            raise TargetError(
                f"class {int(index[sample])} {where} in sample {sample}; pass another class, mask=, point= or box="
            )
        chosen = scores[torch.arange(count, device=scores.device), index]
        summed = (chosen * places).flatten(1).sum(1)
        values = summed / sizes if self.reduce == "mean" else summed
        return values, replace(self, index=index, places=places, kind=found.kind)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Region":
        """Return the target with `change` applied to its classes and places."""
        index, places = (change(t) if isinstance(t, Tensor) else t for t in (self.index, self.places))
        return replace(self, index=index, places=places)

    def words(self, name: Callable[[int], str], sample: int) -> str:
        """Return the description of a sample's target."""
        shown = self.caption(name, sample)
        if self._predicted:
            return f"{shown} {'everywhere' if self.kind == 'values' else 'where it is predicted'}"
        part = "mask" if self.mask is not None else "point" if self.point is not None else "box"
        place = {"mask": "", "point": self.point, "box": self.box}[part]
        return f"{shown} {'at' if part == 'point' else 'in'} the {part} {place or ''}".rstrip()

    def caption(self, name: Callable[[int], str], sample: int) -> str:
        """Return the name of a sample's class, mask or value."""
        shown = name(int(self.index[sample]))
        if not shown.isdecimal():
            return shown
        return "output" if self.kind == "values" else f"{'mask' if self.kind == 'masks' else 'class'} {shown}"

    def outline(self, sample: int, height: int, width: int) -> Tensor | None:
        """Return the places of a sample, `[h, w]` or `[d, h, w]`, at the resolution of the map; None for other maps."""
        return self.places[sample] if self.places is not None and self.places.dim() in (3, 4) else None

    @property
    def _predicted(self) -> bool:
        return self.point is None and self.box is None and (self.mask is None or isinstance(self.mask, str))

    def _index(self, found: OutputMap, places: Tensor | None) -> Tensor:
        if self.index is not None:
            return class_indices(self.index, len(found.scores), device=found.scores.device)
        return found.default_index(places)

    def _places(self, scores: Tensor, inputs: Inputs) -> Tensor | None:
        """Return the places of the map in the region, `[N, …]`; None for those where the class is predicted."""
        if self._predicted:
            return None
        size = tuple(scores.shape[2:])
        of_input = inputs.picture_size(len(size))
        if self.mask is not None:
            mask = self._given_mask(size, of_input, len(scores))
        else:
            mask = torch.zeros(1, *of_input, dtype=torch.bool)
            mask[(0, *self._slices(of_input))] = True
        return _resized(mask.to(scores.device), size).expand(len(scores), *size)

    def _given_mask(self, size: tuple[int, ...], of_input: tuple[int, ...], count: int) -> Tensor:
        mask = self.mask[None] if self.mask.dim() == len(size) else self.mask
        mask = mask[:, 0] if mask.dim() == len(size) + 2 and mask.shape[1] == 1 else mask  # with a channel
        if mask.dim() != len(size) + 1 or tuple(mask.shape[1:]) not in (size, of_input) or len(mask) not in (1, count):
            raise TargetError(
                f"mask has shape {tuple(mask.shape)}; expected {list(of_input)}, the size of the input, or {list(size)}, that "
                f"of the output, for all or each of {count} samples"
            )
        if not mask.any():
            raise TargetError("the mask is empty; pass one that is True somewhere")
        return mask

    def _slices(self, size: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the part of the input in the box, or at the point, by dimension."""
        given = self.point if self.box is None else self.box
        values = list(given or ())
        if not size:
            raise TargetError("a point or box needs an input [N, C, …] of as many dimensions as the map; pass mask=")
        axes = ("x", "y", "z")[: len(size)]
        expected = f"point=({', '.join(axes)}) or box=({', '.join(f'{a}{i}' for i in (0, 1) for a in axes)})"
        if len(values) != len(size) * (1 if self.box is None else 2):
            raise TargetError(
                f"got {value_repr(given)} for an input of size {list(size)}; expected {expected}, x along the last"
            )
        if self.box is not None and max(values) <= 1 and any(value % 1 for value in values):
            raise TargetError(f"box={value_repr(given)} seems to be relative; expected pixels, from 0 to {list(size[::-1])}")
        low, high = values[: len(size)][::-1], values[-len(size) :][::-1]  # x is the last dimension
        inside = [0 <= a <= b <= n and (self.box is None) * a < n for a, b, n in zip(low, high, size, strict=True)]
        if not all(inside):
            raise TargetError(
                f"{value_repr(given)} is empty or outside of an input of {' × '.join(map(str, size[::-1]))} in "
                f"{', '.join(axes)}; expected {expected}"
            )
        if self.box is None:
            return tuple(slice(int(a), int(a) + 1) for a in low)
        return tuple(slice(int(a), max(int(a) + 1, round(b))) for a, b in zip(low, high, strict=True))


def _resized(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return a mask `[N, …]` in another resolution: places of which half is in it, or any part if that is none."""
    if tuple(mask.shape[1:]) == size:
        return mask
    pooled = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)](
        mask[:, None].float(), size
    )
    half = pooled[:, 0] >= 0.5
    some = half.flatten(1).any(1).view(-1, *[1] * len(size))
    return torch.where(some, half, pooled[:, 0] > 0)


def _numbers(given: Any, name: str) -> tuple[float, ...]:
    """Return a point or box as numbers, whole ones as int, as they are shown in titles."""
    try:
        values = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise TargetError(f"a {name} must be numbers, got {value_repr(given)}") from error
    return tuple(int(value) if value.is_integer() else value for value in values)


def _bool_mask(given: Any) -> Tensor:
    """Return a mask of a tensor, array or picture as a bool tensor."""
    try:
        mask = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(f"mask={value_repr(given)}; expected a bool tensor [H, W] or [N, H, W], or 'predicted'") from error
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise TargetError(
            f"the mask has values other than 0 and 1, such as {mask[(mask != 0) & (mask != 1)][0].item():g}; expected "
            "a bool tensor: of a map of labels pass labels == 3, of a grey picture pass picture > 127"
        )
    return mask.bool()
