"""Targets that are detected boxes: the class logit behind a box that a detector returns."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import index as to_index
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from whence.core.class_indices import class_indices
from whence.core.detector_outputs import PhotoDetections, read_detections
from whence.core.inputs import Inputs
from whence.errors import TargetError, value_repr

SIDES = ("left", "top", "right", "bottom")
SAME_OBJECT = 0.5  # IoU from which a box of a changed photo is that of the explained object


@dataclass(frozen=True, eq=False)
class Detection:
    """Target of one detected box: its class logit, before sigmoid, softmax, product with objectness and suppression.

    >>> whence.explain(detector, photo, whence.Detection())                              # the best box
    >>> whence.explain(detector, photo, whence.Detection(2, label="cat"), class_names=names)   # the third best cat
    >>> whence.explain(detector, photo, whence.Detection(part="left"))                   # the place of its left side

    The outputs are those of torchvision's detectors (a list of dicts), of DETR and its kin (`logits` or `pred_logits`, and
    `pred_boxes`), or a tensor of YOLO: `[N, 4 + classes, boxes]`, `[N, boxes, 5 + classes]` or `[N, boxes, 6]`. A detector of
    torchvision takes a batch `[N, 3, H, W]` of photos of one size. LRP explains the logit, or the score with a note where no
    logit can be found; methods that compute with the outputs themselves explain the score. For methods that change the photo,
    the box is that of the same class with an IoU of at least 0.5, and the value 0 if there is none.

    Args:
        index: The number of the box by score, 0 for the best, among those of the label.
        label: Index or name of a class, or one per sample; None for all.
        score: The least score of a box.
        part: "class" for the class logit; "left", "top", "right" or "bottom" for the place of a side, in pixels; or "iou" for
            the overlap with the box that is found in the changed photo, for methods without gradients.
        no_object: Whether the last logit of a query means that there is no object, as of DETR, so that scores are a softmax;
            known for models of transformers.

    Raises:
        TargetError: When the model is explained, if its outputs are no detections, or there is no such box.
    """

    index: int = 0
    label: Any = None
    score: float = 0.0
    part: Literal["class", "left", "top", "right", "bottom", "iou"] = "class"
    no_object: bool | None = None
    box: Tensor | None = field(default=None, repr=False)  # [N, 4], filled in
    labels: Tensor | None = field(default=None, repr=False)  # [N], filled in
    scores: Tensor | None = field(default=None, repr=False)  # [N], filled in

    def __post_init__(self):
        if not isinstance(self.index, bool):
            with suppress(TypeError):
                object.__setattr__(self, "index", to_index(self.index))
        if not isinstance(self.index, int) or isinstance(self.index, bool) or self.index < 0:
            raise TargetError(f"index={value_repr(self.index)}; expected the number of a box by score, 0 for the best")
        if not isinstance(self.label, Tensor | str | int | None):  # arrays and numbers of NumPy become those of Python
            with suppress(TypeError, ValueError):
                object.__setattr__(self, "label", np.array(self.label).tolist())
        with suppress(TypeError, ValueError):
            object.__setattr__(self, "score", self.score if isinstance(self.score, str) else float(self.score))
        if not isinstance(self.score, float):
            raise TargetError(f"score={value_repr(self.score)}; expected a number, the least score of a box")
        if self.part not in ("class", "iou", *SIDES):
            raise TargetError(f"part={value_repr(self.part)}; choose 'class', {', '.join(map(repr, SIDES))} or 'iou'")

    def select(self, outputs: Any, inputs: Inputs) -> "tuple[Tensor, Detection]":
        """Return the values `[N]`, and this target with its boxes filled in."""
        photos = read_detections(outputs, inputs, self.no_object)
        if self.box is not None and len(self.box) != len(photos):
            raise TargetError(f"the target is of the boxes of {len(self.box)} photos, but the model detects in {len(photos)}")
        if self.box is not None:
            return torch.stack([self._same_object(photo, i) for i, photo in enumerate(photos)]), self
        wanted = [None] * len(photos) if self.label is None else class_indices(self.label, len(photos), "label").tolist()
        chosen = [self._chosen(photo, i, label) for i, (photo, label) in enumerate(zip(photos, wanted, strict=True))]
        values = [self._value(photo, k) for photo, k in zip(photos, chosen, strict=True)]
        box, labels, scores = (
            torch.stack([getattr(photo, name)[k].detach() for photo, k in zip(photos, chosen, strict=True)])
            for name in ("boxes", "labels", "scores")
        )
        return torch.stack(values), replace(self, box=box, labels=labels, scores=scores)

    def ranked(self, photo: PhotoDetections, label: int | None) -> list[int]:
        """Return the numbers of the boxes of a label, or of all for None, that have the least score, the best first."""
        scores = photo.scores.detach()
        among = scores >= self.score
        among &= (photo.labels == label) if label is not None else True
        return [int(k) for k in scores.argsort(descending=True, stable=True) if among[k]]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Detection":
        """Return the target with `change` applied to its boxes."""
        names = ("box", "labels", "scores", "label")
        return replace(self, **{n: change(t) for n in names if isinstance(t := getattr(self, n), Tensor)})

    def words(self, name: Callable[[int], str], sample: int) -> str:
        """Return the description of a sample's target."""
        assert self.box is not None
        corners = ", ".join(f"{value:.0f}" for value in self.box[sample].tolist())
        part = {"class": "", "iou": "overlap with the box of "}.get(self.part, f"{self.part} side of the box of ")
        return f"{part}{self.caption(name, sample)} {'in the box ' if self.part == 'class' else ''}({corners})"

    def caption(self, name: Callable[[int], str], sample: int) -> str:
        """Return the class and score of a sample's box."""
        assert self.labels is not None
        assert self.scores is not None
        shown = name(int(self.labels[sample]))
        return f"{f'class {shown}' if shown.isdecimal() else shown} {float(self.scores[sample]):.2f}"

    def explains_score(self, output: Tensor) -> bool:
        """Return whether the explained outputs are the scores of the boxes, not logits behind them."""
        return self.part == "class" and self.scores is not None and torch.equal(output, self.scores)

    def outline(self, sample: int, height: int, width: int) -> Tensor:
        """Return the pixels `[H, W]` in the box of a sample."""
        assert self.box is not None
        x0, y0, x1, y1 = (round(value) for value in self.box[sample].tolist())
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[max(y0, 0) : max(y1, y0 + 1), max(x0, 0) : max(x1, x0 + 1)] = True
        return inside

    def _chosen(self, photo: PhotoDetections, sample: int, wanted: int | None) -> int:
        order = self.ranked(photo, wanted)
        if self.index >= len(order):
            of_label = "" if wanted is None else f" of class {wanted}"
            raise TargetError(
                f"photo {sample} has {len(order)} boxes{of_label} with a score of at least {self.score:g}, and no box "
                f"{self.index}; lower score=, or the detector's own threshold"
            )
        return order[self.index]

    def _value(self, photo: PhotoDetections, k: int) -> Tensor:
        """Return what is explained of a box, in the photo itself."""
        if self.part == "class":
            return photo.values[k]
        if self.part in SIDES:
            return photo.boxes[k, SIDES.index(self.part)]
        if photo.boxes.requires_grad:
            raise TargetError(
                "the overlap of a box with itself is the largest there is, and has no gradient; pass a method without "
                "gradients, such as whence.RISE() or whence.Occlusion(), or a side, as in part='left'"
            )
        return photo.boxes.new_ones(())

    def _same_object(self, photo: PhotoDetections, sample: int) -> Tensor:
        """Return the value of the box of a changed photo that overlaps most with the explained one.

        Without such a box it is 0, or for a side the middle of the explained box.
        """
        assert self.box is not None
        assert self.labels is not None
        box = self.box[sample].to(photo.boxes)
        overlap = _iou(photo.boxes.detach(), box)
        overlap = torch.where(photo.labels == self.labels[sample], overlap, -1.0)
        if len(overlap) and overlap.max() >= SAME_OBJECT:
            return overlap.max() if self.part == "iou" else self._value(photo, int(overlap.argmax()))
        missing = photo.values.sum() * 0
        return missing + (box[SIDES.index(self.part) % 2 :: 2].mean() if self.part in SIDES else 0)


def _iou(boxes: Tensor, box: Tensor) -> Tensor:
    """Return the intersection over union of boxes `[K, 4]` with a box."""
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared).clamp(min=1e-12)
