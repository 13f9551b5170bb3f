"""The maps in the outputs of models: scores of classes, masks or values at each place of a picture, series or volume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.core.inputs import Inputs
from whence.errors import TargetError, value_repr
from whence.lrp.engine.model_outputs import describe_outputs, output_field

CLASS_MAPS = ("out", "logits", "semantic_seg", "segmentation_logits")  # fields of scores of classes, the first that is there
MASK_MAPS = ("pred_masks", "masks")
VALUE_MAPS = ("predicted_depth", "reconstruction")
QUERY_MAPS = ("class_queries_logits", "masks_queries_logits")  # of Mask2Former and its kin

MAX_STRIDE_RATIO = 1.2  # between the dimensions of a map, which an odd size makes unequal


@dataclass(frozen=True)
class OutputMap:
    """A map in a model's outputs.

    Args:
        scores: `[N, C, …]`.
        kind: "classes", of which one is predicted at each place; "masks", each predicted where it is positive; or "values".
        quality: Of each mask, `[N, C]`, as the model estimates it.
    """

    scores: Tensor
    kind: Literal["classes", "masks", "values"] = "classes"
    quality: Tensor | None = None

    def predicted(self, index: Tensor) -> Tensor:
        """Return the places `[N, …]` where the classes `[N]` are predicted; of values, all."""
        scores = self.scores.detach()
        if self.kind == "classes":
            return scores.argmax(1) == index.view(-1, *[1] * (scores.dim() - 2))
        chosen = scores[torch.arange(len(scores), device=scores.device), index]
        return torch.ones_like(chosen, dtype=torch.bool) if self.kind == "values" else chosen > self._threshold[:, 0]

    def default_index(self, places: Tensor | None) -> Tensor:
        """Return the class `[N]` that is predicted most often among some places, or the best mask; None for all places."""
        scores = self.scores.detach()
        if self.kind == "classes":
            votes = F.one_hot(scores.argmax(1), scores.shape[1]) * (1 if places is None else places[..., None])
            return votes.flatten(1, -2).sum(1).argmax(1)
        if self.quality is not None and places is None:
            return self.quality.argmax(1)
        here = (scores > self._threshold) if places is None else (scores > self._threshold) & places[:, None]
        return here.flatten(2).sum(2).argmax(1)

    @property
    def _threshold(self) -> Tensor:
        """The least score of a mask of each sample, `[N, 1, …]`: 0 of logits, 0.5 of probabilities."""
        scores = self.scores.detach()
        probable = ((scores >= 0) & (scores <= 1)).flatten(1).all(1)
        return (0.5 * probable).view(-1, *[1] * (scores.dim() - 1))


def read_map(outputs: Any, inputs: Inputs, which: str | int | None = None) -> OutputMap:
    """Return the map of a model's outputs; raise `TargetError` if there is none, or several and none is named."""
    if which is not None:
        chosen = _field(outputs, which)
        if not isinstance(chosen, Tensor) or not _is_map(chosen, inputs):
            raise TargetError(f"output={value_repr(which)} is no map [N, C, H, W]; the output is {describe_outputs(outputs)}")
        return _map_of(chosen, str(which), outputs, inputs)
    classes, masks = (output_field(outputs, name) for name in QUERY_MAPS)
    if isinstance(classes, Tensor) and isinstance(masks, Tensor):
        return OutputMap(_map_of_queries(classes, masks))
    if isinstance(outputs, Tensor):
        named = {"": outputs}
    elif isinstance(outputs, Mapping):
        named = dict(outputs)
    elif isinstance(outputs, list | tuple):
        named = dict(enumerate(outputs))
    else:
        named = dict(getattr(outputs, "__dict__", {}))
    maps = {name: t for name, t in named.items() if isinstance(t, Tensor) and (_is_map(t, inputs) or name in VALUE_MAPS)}
    known = [name for name in (*CLASS_MAPS, *MASK_MAPS, *VALUE_MAPS) if name in maps]
    if known or len(maps) == 1:
        name = known[0] if known else next(iter(maps))
        return _map_of(maps[name], str(name), outputs, inputs)
    about = f"the output is {describe_outputs(outputs)}"
    if maps:
        choices = ", ".join(f"output={name!r}" for name in list(maps)[:4])
        raise TargetError(f"the output has several maps for a Region; choose one by {choices}; {about}")
    raise TargetError(f"the output has no map [N, C, H, W] for a Region; {about}; for boxes pass whence.Detection()")


def _field(outputs: Any, which: str | int) -> Any:
    if isinstance(which, str):
        return output_field(outputs, which)
    values = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
    several = isinstance(values, list | tuple)
    return values[which] if several and -len(values) <= which < len(values) else None


def _is_map(t: Tensor, inputs: Inputs) -> bool:
    """Return whether a tensor may be a map: of pictures `[N, C, H, W]`, or `[N, H, W]` of their size, or masks of prompts."""
    if t.dim() < 3 or not inputs.admits(t.shape[0]):
        return False
    dims = {inputs.parts[i].dim() for i in inputs.explained} & {4, 5}
    if not dims:  # series, token ids
        return True
    return t.dim() in dims or (4 in dims and t.dim() == 5) or _is_one_channel(t, inputs)


def _is_one_channel(t: Tensor, inputs: Inputs) -> bool:
    return inputs.picture_size(t.dim() - 1) == tuple(t.shape[1:])


def _has_channels_last(t: Tensor, inputs: Inputs) -> bool:
    """Return whether a map is `[N, …, C]`: its first dimensions, and not its last ones, are in proportion to the input.

    Of series, and token ids `[N, T]`, the time is the dimension that is as long as in the input.
    """
    if t.dim() == 3:
        lengths = [
            (part.shape[1], part.shape[2] if part.dim() == 3 else None)
            for part in (inputs.parts[i] for i in (*inputs.explained, *inputs.ids))
            if part.dim() in (2, 3) and len(part) == len(t)
        ]
        return any(t.shape[1] == first and t.shape[2] != last for first, last in lengths)
    size = inputs.picture_size(t.dim() - 2)
    return bool(size) and in_proportion(t.shape[1:-1], size) and not in_proportion(t.shape[2:], size)


def in_proportion(sides: Sequence[int], size: Sequence[int], most: float = MAX_STRIDE_RATIO) -> bool:
    """Return whether a grid has about the same stride in all dimensions of an input, up to a ratio of `most`."""
    strides = [length / side for side, length in zip(sides, size, strict=True)]
    return max(strides) <= most * min(strides)


def _map_of(t: Tensor, name: str, outputs: Any, inputs: Inputs) -> OutputMap:
    if name in VALUE_MAPS:
        return OutputMap(t[:, None] if t.dim() == 3 else t, "values")
    if _is_one_channel(t, inputs):
        t = t[:, None]
    if _has_channels_last(t, inputs):
        t = t.movedim(-1, 1)
    if t.dim() == 5 and inputs.picture_size(2):  # masks of prompts, [N, prompts, masks, H, W]
        quality = output_field(outputs, "iou_scores")
        known = isinstance(quality, Tensor) and quality.numel() == t[:, :, :, 0, 0].numel()
        return OutputMap(t.flatten(1, 2), "masks", quality.detach().flatten(1) if known else None)
    return OutputMap(t, "masks" if name in MASK_MAPS or t.shape[1] == 1 else "classes")


def _map_of_queries(classes: Tensor, masks: Tensor) -> Tensor:
    """Return the scores of classes at places, Σ_q p(class | query) · σ(mask of the query), without the class of no object."""
    return torch.einsum("nqc,nqhw->nchw", classes.softmax(-1)[..., :-1], masks.sigmoid())
