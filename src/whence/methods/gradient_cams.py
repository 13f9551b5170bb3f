"""Class activation maps of one backward pass: channels of a layer weighted by their gradients or by each other."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whence.methods.class_activation_maps import ClassActivationMap, TappedMap
from whence.methods.forward_backward import Task


@dataclass(frozen=True)
class GradCAM(ClassActivationMap):
    """Grad-CAM, max(0, Σ_c w_c a_c) at a layer, w_c the mean gradient of channel c (Selvaraju et al. 2017, eq. 1 and 2).

    >>> e = whence.explain(model, x, target=3, method=whence.GradCAM("layer4"))
    >>> e.layers["layer4"]          # the map itself, [N, 1, h, w]
    >>> e.relevance                 # the map resized to x and divided evenly among its channels

    The scores do not add up to the output.

    Args:
        layer: Path of a module, or the module, whose output is a feature map: `[N, channels, …]`, `[N, …, channels]`, or tokens
            `[N, T, channels]` of an image's patches in rows, behind class, distillation and register tokens, which are
            left out. By default the last layer with such an output whose gradient is not zero; of tokens, the last
            normalisation. The explanation's note names it. Of several layers, the relevance is the mean of their maps, each
            scaled to [0, 1], or without `relu` divided by its largest magnitude.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "grad_cam"

    def combined(self, task: Task, tapped: TappedMap) -> Tensor:
        a, g = tapped.activations, tapped.gradients
        return (_channel_means(g) * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class LayerCAM(ClassActivationMap):
    """LayerCAM, max(0, Σ_c max(0, g_c) · a_c) at a layer (Jiang et al. 2021, eq. 5 and 6).

    >>> whence.explain(model, x, target=3, method=whence.LayerCAM("layer2")).relevance

    Each position is weighted by its own gradient, so that maps at early layers are finer than those of `GradCAM`. The scores do
    not add up to the output.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, or several, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "layer_cam"

    def combined(self, task: Task, tapped: TappedMap) -> Tensor:
        a, g = tapped.activations, tapped.gradients
        return (g.clamp(min=0) * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class GradCAMPlusPlus(ClassActivationMap):
    """Grad-CAM++, max(0, Σ_c w_c a_c), w_c = Σ α_c max(0, g_c) (Chattopadhay et al. 2018, eq. 9, 10 and 19).

    >>> whence.explain(model, x, target=3, method=whence.GradCAMPlusPlus("layer4")).relevance

    α = g² / (2 g² + g³ Σ a) where g ≠ 0, with sums over positions, for an output that is the exponential of the explained
    score. Objects that occur several times get about equal weight. The scores do not add up to the output.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, or several, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "grad_cam_plus_plus"

    def combined(self, task: Task, tapped: TappedMap) -> Tensor:
        a, g = tapped.activations, tapped.gradients
        return (_plus_plus_weights(a, g) * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class HiResCAM(ClassActivationMap):
    """HiResCAM, max(0, Σ_c g_c · a_c) at a layer (Draelos et al. 2020, eq. 5).

    >>> whence.explain(model, x, target=3, method=whence.HiResCAM("layer4", relu=False)).layers["layer4"].sum()

    Gradients are not averaged, so that the map shows only positions that the model used: without `relu`, for a linear head on
    the feature map, it adds up to the output without the bias.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, or several, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "hires_cam"

    def combined(self, task: Task, tapped: TappedMap) -> Tensor:
        a, g = tapped.activations, tapped.gradients
        return (g * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class XGradCAM(ClassActivationMap):
    """XGrad-CAM, max(0, Σ_c w_c a_c), w_c = Σ (a_c / Σ a_c) g_c over positions (Fu et al. 2020, eq. 8).

    >>> whence.explain(model, x, target=3, method=whence.XGradCAM("layer4")).relevance

    Without `relu`, the map adds up to Σ g · a: for a linear head on non-negative activations, to the output without the bias.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, or several, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "xgrad_cam"

    def combined(self, task: Task, tapped: TappedMap) -> Tensor:
        a, g = tapped.activations, tapped.gradients
        return (_share_weights(a, g) * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class EigenCAM(ClassActivationMap):
    """Eigen-CAM, the projection of activations on their first principal component (Muhammad and Yeasin 2020).

    >>> whence.explain(model, x, method=whence.EigenCAM("layer4")).relevance

    The map does not depend on the target: it shows what the layer responds to most. The sign of the component is that which
    correlates with the sum of the activations.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, or several, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "eigen_cam"

    def combined(self, task: Task, tapped: TappedMap) -> Tensor:
        return _first_component(tapped.activations)


def _channel_means(g: Tensor) -> Tensor:
    return g.mean(_positions(g), keepdim=True)


def _plus_plus_weights(a: Tensor, g: Tensor) -> Tensor:
    """Return w_c = Σ α_c max(0, g_c), `[N, C, 1, …]`."""
    denominator = 2 * g**2 + g**3 * a.sum(_positions(a), keepdim=True)
    alpha = torch.where((g != 0) & (denominator != 0), g**2 / torch.where(denominator == 0, 1.0, denominator), 0.0)
    return (alpha * g.clamp(min=0)).sum(_positions(g), keepdim=True)


def _share_weights(a: Tensor, g: Tensor) -> Tensor:
    """Return w_c = Σ g_c a_c / Σ a_c, `[N, C, 1, …]`; 0 for channels whose activations sum to 0."""
    total = a.sum(_positions(a), keepdim=True)
    weighted = (a * g).sum(_positions(a), keepdim=True)
    return torch.where(total == 0, 0.0, weighted / torch.where(total == 0, 1.0, total))


def _first_component(a: Tensor) -> Tensor:
    """Return the projection of the centred activations of each position on their first principal component, `[N, 1, …]`."""
    rows = a.flatten(2).mT  # [N, positions, C]
    rows = rows - rows.mean(1, keepdim=True)
    _, _, components = torch.linalg.svd(rows, full_matrices=False)
    projected = (rows @ components[:, :1].mT).mT.unflatten(2, a.shape[2:])
    along = (projected * (a - _channel_means(a)).sum(1, keepdim=True)).flatten(1).sum(1)
    return projected * torch.where(along < 0, -1.0, 1.0).view(-1, *[1] * (a.dim() - 1))


def _positions(t: Tensor) -> tuple[int, ...]:
    return tuple(range(2, t.dim()))
