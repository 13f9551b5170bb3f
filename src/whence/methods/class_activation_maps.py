"""Class activation maps: channels of a spatial layer, weighted by their gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from whence.core.explanation import Explanation
from whence.errors import InputError, ModelError, SelectorError
from whence.lrp.torch_compat.module_tracker import module_names, named_layers
from whence.methods.feature_masks import UPSAMPLING
from whence.methods.forward_backward import LayerTaps, Task, make_explanation, reject_layers
from whence.methods.gradients import input_gradients


@dataclass(frozen=True)
class GradCAM:
    """Grad-CAM, max(0, Σ_c w_c a_c) at a layer, w_c the mean gradient of channel c (Selvaraju et al. 2017, eq. 1 and 2).

    >>> e = whence.explain(model, x, target=3, method=whence.GradCAM("layer4"))
    >>> e.layers["layer4"]          # the map itself, [N, 1, h, w]
    >>> e.relevance                 # the map resized to x and divided evenly among its channels

    The scores do not add up to the output.

    Args:
        layer: Path of a module whose output is `[N, channels, …]`; by default the last layer whose output has as many
            dimensions as the input.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    layer: str | None = None
    relu: bool = True

    name: ClassVar[str] = "grad_cam"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        return _cam_explanations(self, task, lambda a, g: (_channel_means(g) * a).sum(1, keepdim=True))


@dataclass(frozen=True)
class LayerCAM:
    """LayerCAM, max(0, Σ_c max(0, g_c) · a_c) at a layer (Jiang et al. 2021, eq. 5 and 6).

    >>> whence.explain(model, x, target=3, method=whence.LayerCAM("layer2")).relevance

    Each position is weighted by its own gradient, so that maps at early layers are finer than those of `GradCAM`. The scores do
    not add up to the output.

    Args:
        layer: Path of a module whose output is `[N, channels, …]`; by default the last layer whose output has as many
            dimensions as the input.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    layer: str | None = None
    relu: bool = True

    name: ClassVar[str] = "layer_cam"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        return _cam_explanations(self, task, lambda a, g: (g.clamp(min=0) * a).sum(1, keepdim=True))


class LastSpatialLayer(LayerTaps):
    """Tap at the last leaf module whose output is a feature map with more than one position."""

    def __init__(self, model: object, dims: int):
        super().__init__(())
        self._dims = dims
        self._ends = [name for name, module in module_names(model).items() if not any(module.children())]

    def callbacks(self, pin: Callable[[Tensor], None]) -> dict[str, Callable[[Tensor], None]]:
        return {name: lambda out, name=name: self._later(name, out, pin) for name in self._ends}

    def _later(self, name: str, out: Tensor, pin: Callable[[Tensor], None]) -> None:
        if out.requires_grad and out.dim() == self._dims and out[0, 0].numel() > 1:
            self.values.clear()
            self.gradients.clear()
            self.names = (name,)
            self._tap(name, out, pin)


def _cam_explanations(
    method: GradCAM | LayerCAM, task: Task, combined: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Explanation]:
    reject_layers(method, task)
    if not isinstance(task.model, nn.Module):
        raise ModelError(
            f"{type(method).__name__} reads a layer of a torch.nn.Module, but the model is of type {type(task.model).__name__}"
        )
    i, picture = _picture_input(task)
    for found in input_gradients(task, _taps(method.layer, task.model, picture.dim())):
        if not found.layers:
            raise SelectorError(
                f"no layer of the model returns feature maps of {picture.dim()} dimensions; choose one with layer="
            )
        ((name, calls),) = found.layers.items()
        a, g = calls[-1]
        if a.dim() != picture.dim() or a.shape[0] != picture.shape[0]:
            raise SelectorError(
                f"layer '{name}' returns {tuple(a.shape)}, which is not a feature map of the input {tuple(picture.shape)}"
            )
        cam = combined(a, g)
        cam = cam.clamp(min=0) if method.relu else cam
        sized = F.interpolate(cam, picture.shape[2:], mode=UPSAMPLING[picture.dim()], align_corners=False)
        scores = {i: (sized / picture.shape[1]).expand_as(picture).to(picture).contiguous()}
        yield make_explanation(method, task, found.output, found.target, scores, layers={name: [cam]})


def _picture_input(task: Task) -> tuple[int, Tensor]:
    pictures = [i for i in task.inputs.explained if task.inputs.parts[i].dim() in UPSAMPLING]
    if len(pictures) != 1:
        raise InputError(f"class activation maps need exactly one image input [N, C, …], got {len(pictures)}")
    return pictures[0], task.inputs.parts[pictures[0]]


def _taps(layer: str | None, model: nn.Module, dims: int) -> LayerTaps:
    if layer is None:
        return LastSpatialLayer(model, dims)
    names = tuple(named_layers(model, [layer]))
    if len(names) != 1:
        raise SelectorError(f"layer '{layer}' matches {len(names)} layers; name one of them")
    return LayerTaps(names)


def _channel_means(g: Tensor) -> Tensor:
    return g.mean(tuple(range(2, g.dim())), keepdim=True)
