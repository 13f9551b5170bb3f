"""Operators that a CUDA build of torchvision needs declared beside a CPU build of torch, before it can be imported."""

import contextlib

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):  # a torchvision that fits has them
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _nms(boxes, scores, threshold):
    """Non-maximum suppression in plain torch: the indices of the boxes that are kept, by score."""
    order, kept = scores.argsort(descending=True), []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low, high = torch.maximum(boxes[best, :2], boxes[rest, :2]), torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        areas = [(boxes[places, 2:] - boxes[places, :2]).prod(-1) for places in (best, rest)]
        order = rest[shared / (areas[0] + areas[1] - shared) <= threshold]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)


with contextlib.suppress(RuntimeError):
    _LIBRARY.impl("nms", _nms, "CPU")
