"""The boxes in the outputs of detectors: of torchvision, of DETR and its kin, of YOLO."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.core.inputs import Inputs
from whence.errors import TargetError
from whence.lrp.engine.model_outputs import describe_outputs, output_field

FIELDS = ("boxes", "scores", "labels")  # of torchvision's detectors, a dict for each photo
LOGITS, BOXES = ("logits", "pred_logits"), "pred_boxes"  # of DETR and its kin, one for each query
SOFTMAX = ("Detr", "Yolos", "TableTransformer")  # first words of the outputs whose last logit means no object
NOT_IN_PIXELS = (
    "the boxes are not in pixels of the photo, or their corners not in the order left, top, right, bottom; pass a function "
    "that returns [N, 4 + classes, boxes] with centres and sizes, or [N, boxes, 6] with corners, in pixels"
)
ROW_OF_BOX = 6  # values of a box of detectors without suppression: its corners, score and label


@dataclass(frozen=True)
class PhotoDetections:
    """The boxes that a detector found in one photo.

    Args:
        boxes: Their corners `[K, 4]`, left, top, right, bottom, in pixels of the input.
        values: What is explained of each, `[K]`: its class logit, or its score if the detector returns no logits.
        scores: Their scores `[K]`, between 0 and 1.
        labels: Their classes `[K]`.
    """

    boxes: Tensor
    values: Tensor
    scores: Tensor
    labels: Tensor


def read_detections(outputs: Any, inputs: Inputs, no_object: bool | None = None) -> list[PhotoDetections]:
    """Return the boxes of each photo in a detector's outputs; raise `TargetError` if there are none."""
    if isinstance(outputs, list | tuple) and outputs and all(_is_photo(photo) for photo in outputs):
        return [PhotoDetections(p["boxes"], p["scores"], p["scores"].detach(), p["labels"]) for p in outputs]
    if _is_photo(outputs):
        return read_detections([outputs], inputs)
    logits, boxes = next((t for n in LOGITS if (t := output_field(outputs, n)) is not None), None), output_field(outputs, BOXES)
    if isinstance(logits, Tensor) and isinstance(boxes, Tensor):
        logits = logits[..., None] if logits.dim() == 2 else logits  # one class
        return _of_queries(logits, boxes, _last_is_no_object(outputs, no_object), inputs)
    rows, scores = _of_rows(outputs)
    if rows is not None:
        return [_of_yolo(photo, scores) for photo in rows]
    raise TargetError(
        "a Detection needs outputs with boxes: a list of dicts with boxes, scores and labels, an object with logits and "
        f"pred_boxes, or a tensor [N, 4 + classes, boxes]; the output is {describe_outputs(outputs)}"
    )


def _is_photo(photo: Any) -> bool:
    return isinstance(photo, Mapping) and all(isinstance(photo.get(name), Tensor) for name in FIELDS)


def _last_is_no_object(outputs: Any, given: bool | None) -> bool:
    """Return whether the last logit means that there is no object, so that scores are a softmax, not sigmoids."""
    if given is not None:
        return given
    kind = type(outputs)
    if kind.__module__.split(".")[0] != "transformers" and not kind.__name__.endswith(
        ("DetectionOutput", "SegmentationOutput")
    ):
        raise TargetError(
            "the output has pred_logits and pred_boxes, but not whether the last logit means no object: pass "
            "whence.Detection(no_object=True) for DETR, whose scores are a softmax, or no_object=False for Deformable DETR, "
            "DINO and others with sigmoids"
        )
    return kind.__name__.startswith(SOFTMAX)


def _of_queries(logits: Tensor, boxes: Tensor, no_object: bool, inputs: Inputs) -> list[PhotoDetections]:
    """Return the queries of DETR and its kin."""
    if no_object and logits.shape[-1] < 2:
        raise TargetError("no_object=True, but the queries have a single logit; pass no_object=False")
    height, width = inputs.picture_size(2)
    scale = boxes.new_tensor([width, height, width, height])
    likely = logits.detach().softmax(-1)[..., :-1] if no_object else logits.detach().sigmoid()
    scores, labels = likely.max(-1)
    values = logits.gather(2, labels[..., None])[..., 0]
    return [PhotoDetections(*photo) for photo in zip(_corners(boxes) * scale, values, scores, labels, strict=True)]


def _of_rows(outputs: Any) -> tuple[Tensor | None, int | None]:
    """Return YOLO's tensor of boxes and, if its outputs have it, the number of classes; None if there is no such tensor."""
    rows, beside = (outputs[0], outputs[-1]) if isinstance(outputs, list | tuple) and outputs else (outputs, None)
    rows = rows[0] if isinstance(rows, tuple) and rows else rows  # with the prototypes of masks
    if not isinstance(rows, Tensor) or rows.dim() != 3 or min(rows.shape[1:]) < 1 or max(rows.shape[1:]) <= 4:
        return None, None
    final = output_field(beside, "one2one")  # of heads without suppression
    scores = output_field(beside if final is None else final, "scores")
    return rows, scores.shape[1] if isinstance(scores, Tensor) and scores.dim() == 3 else None


def _of_yolo(photo: Tensor, classes: int | None) -> PhotoDetections:
    """Return the boxes of one photo in YOLO's outputs, in pixels.

    `[4 + classes, boxes]` with centres and sizes (YOLOv8, 11), `[boxes, 5 + classes]` with the score of an object fifth
    (YOLOv5, YOLOX), or `[boxes, 6]` with corners, scores and labels (YOLOv10, 26), whose labels are whole numbers. Keypoints,
    masks or angles may follow where the number of classes is known.
    """
    rows, columns = photo.shape
    if columns >= ROW_OF_BOX and (columns == ROW_OF_BOX or classes) and not (photo[:, 5].detach() % 1).any():
        _check_scores(photo[:, 4])
        _check_corners(photo[:, :4].detach())
        return PhotoDetections(photo[:, :4], photo[:, 4], photo[:, 4].detach(), photo[:, 5].detach().long())
    last = None if classes is None else 4 + classes
    if rows > columns >= ROW_OF_BOX and (last is None or rows < last):
        scores, boxes = photo[:, 4:5] * photo[:, 5 : None if last is None else last + 1], photo[:, :4]
    elif rows > 4:
        scores, boxes = photo[4:last].mT, photo[:4].mT
    else:
        raise TargetError(f"a tensor [N, {rows}, {columns}] has no classes behind the four numbers of a box")
    values, labels = scores.max(1)
    _check_scores(scores)
    _check_pixels(boxes.detach())
    return PhotoDetections(_corners(boxes), values, values.detach(), labels)


def _check_scores(scores: Tensor) -> None:
    """Raise `TargetError` if scores are no probabilities."""
    scores = scores.detach()
    if not bool(((scores >= 0) & (scores <= 1)).all()):
        raise TargetError(
            f"the scores of boxes should be between 0 and 1, but are between {float(scores.min()):.3g} and "
            f"{float(scores.max()):.3g}: keypoints, masks or angles may follow the classes, or the scores be logits. Pass a "
            "function that returns [N, 4 + classes, boxes] with probabilities, such as lambda x: model(x)[0][:, : 4 + classes]"
        )


def _check_corners(corners: Tensor) -> None:
    """Raise `TargetError` if corners are not those of boxes in pixels."""
    if bool((corners[:, 2:] < corners[:, :2]).any()):
        raise TargetError(NOT_IN_PIXELS)
    _check_pixels(corners)


def _check_pixels(boxes: Tensor) -> None:
    """Raise `TargetError` if boxes are relative to the size of the photo."""
    if bool((boxes.abs() <= 2).all()):
        raise TargetError(NOT_IN_PIXELS)


def _corners(boxes: Tensor) -> Tensor:
    """Return boxes given by centre and size as corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)
