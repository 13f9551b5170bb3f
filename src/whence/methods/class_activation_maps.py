"""Class activation maps: channels of a layer's feature map, weighted by their gradients."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from whence.core.channel_layout import ChannelLayout, input_channel_dim
from whence.core.explanation import Explanation
from whence.errors import InputError, ModelError, SelectorError
from whence.lrp.torch_compat.deferred_checks import check_holds, known_true
from whence.lrp.torch_compat.module_tracker import module_names, named_layers
from whence.methods.feature_maps import FeatureMap
from whence.methods.feature_masks import UPSAMPLING
from whence.methods.forward_backward import Gradients, Task, make_explanation, reject_layers
from whence.methods.gradients import input_gradients
from whence.methods.layer_taps import LayerTaps

LAYERS_IN_MEMORY = 4  # candidates for the default layer; the class token alone reads the last normalisations of a transformer


@dataclass(frozen=True)
class ClassActivationMap:
    """A map that combines the channels of a layer, by their activations and gradients."""

    layer: str | nn.Module | None = None
    relu: bool = True

    def combined(self, a: Tensor, g: Tensor) -> Tensor:
        """Return the map `[N, 1, …]` of activations and their gradients, both `[N, C, …]`."""
        raise NotImplementedError

    def explanations(self, task: Task) -> Iterator[Explanation]:
        return _cam_explanations(self, task)


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
            normalisation. The explanation's note names it.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "grad_cam"

    def combined(self, a: Tensor, g: Tensor) -> Tensor:
        return (_channel_means(g) * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class LayerCAM(ClassActivationMap):
    """LayerCAM, max(0, Σ_c max(0, g_c) · a_c) at a layer (Jiang et al. 2021, eq. 5 and 6).

    >>> whence.explain(model, x, target=3, method=whence.LayerCAM("layer2")).relevance

    Each position is weighted by its own gradient, so that maps at early layers are finer than those of `GradCAM`. The scores do
    not add up to the output.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "layer_cam"

    def combined(self, a: Tensor, g: Tensor) -> Tensor:
        return (g.clamp(min=0) * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class GradCAMPlusPlus(ClassActivationMap):
    """Grad-CAM++, max(0, Σ_c w_c a_c), w_c = Σ α_c max(0, g_c) (Chattopadhay et al. 2018, eq. 9, 10 and 19).

    >>> whence.explain(model, x, target=3, method=whence.GradCAMPlusPlus("layer4")).relevance

    α = g² / (2 g² + g³ Σ a) where g ≠ 0, with sums over positions, for an output that is the exponential of the explained
    score. Objects that occur several times get about equal weight. The scores do not add up to the output.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "grad_cam_plus_plus"

    def combined(self, a: Tensor, g: Tensor) -> Tensor:
        return (_plus_plus_weights(a, g) * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class HiResCAM(ClassActivationMap):
    """HiResCAM, max(0, Σ_c g_c · a_c) at a layer (Draelos et al. 2020, eq. 5).

    >>> whence.explain(model, x, target=3, method=whence.HiResCAM("layer4", relu=False)).layers["layer4"].sum()

    Gradients are not averaged, so that the map shows only positions that the model used: without `relu`, for a linear head on
    the feature map, it adds up to the output without the bias.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "hires_cam"

    def combined(self, a: Tensor, g: Tensor) -> Tensor:
        return (g * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class XGradCAM(ClassActivationMap):
    """XGrad-CAM, max(0, Σ_c w_c a_c), w_c = Σ (a_c / Σ a_c) g_c over positions (Fu et al. 2020, eq. 8).

    >>> whence.explain(model, x, target=3, method=whence.XGradCAM("layer4")).relevance

    Without `relu`, the map adds up to Σ g · a: for a linear head on non-negative activations, to the output without the bias.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "xgrad_cam"

    def combined(self, a: Tensor, g: Tensor) -> Tensor:
        return (_share_weights(a, g) * a).sum(1, keepdim=True)


@dataclass(frozen=True)
class EigenCAM(ClassActivationMap):
    """Eigen-CAM, the projection of activations on their first principal component (Muhammad and Yeasin 2020).

    >>> whence.explain(model, x, method=whence.EigenCAM("layer4")).relevance

    The map does not depend on the target: it shows what the layer responds to most. The sign of the component is that which
    correlates with the sum of the activations.

    Args:
        layer: Path of a module, or the module, whose output is a feature map, as in `GradCAM`.
        relu: Whether to set negative values, which are evidence against the target, to 0.
    """

    name: ClassVar[str] = "eigen_cam"

    def combined(self, a: Tensor, g: Tensor) -> Tensor:
        return _first_component(a)


class LastFeatureMaps(LayerTaps):
    """Taps at the last leaf modules whose outputs are feature maps."""

    def __init__(self, maps: "MapReader", ends: Mapping[str, nn.Module]):
        super().__init__(())
        self._maps, self._ends = maps, ends

    def callbacks(self, pin: Callable[[Tensor], None]) -> dict[str, Callable[[Tensor], None]]:
        return {name: lambda out, name=name: self._later(name, out, pin) for name in self._ends}

    def _later(self, name: str, out: Tensor, pin: Callable[[Tensor], None]) -> None:
        if not out.requires_grad or not self._is_map(name, out):
            return
        self.values.pop(name, None)
        self.gradients.pop(name, None)
        self._tap(name, out, pin)
        for earlier in list(self.values)[:-LAYERS_IN_MEMORY]:
            del self.values[earlier], self.gradients[earlier]
        self.names = tuple(self.values)

    def _is_map(self, name: str, out: Tensor) -> bool:
        try:
            found = self._maps.of_layer(name, out)
        except SelectorError:  # its channel dimension is ambiguous
            return False
        of_tokens = found is not None and found.first_token is not None
        return found is not None and found.covers(self._maps.x) and (not of_tokens or "Norm" in type(self._ends[name]).__name__)


def _cam_explanations(method: ClassActivationMap, task: Task) -> Iterator[Explanation]:
    reject_layers(method, task)
    if not isinstance(task.model, nn.Module):
        raise ModelError(
            f"{type(method).__name__} reads a layer of a torch.nn.Module, but the model is of type {type(task.model).__name__}"
        )
    i, x = _picture_input(task)
    if method.layer is None:
        layers = {name: m for name, m in module_names(task.model).items() if not any(m.children())}
    else:
        layers = named_layers(task.model, [_layer_name(task.model, method.layer)])
    maps = MapReader.of(task, layers, x)
    taps = LastFeatureMaps(maps, layers) if method.layer is None else LayerTaps(tuple(layers))
    for found in input_gradients(task, taps):
        name, feature_map, (a, g) = _last_with_gradient(maps, found)
        cam = method.combined(feature_map.read(a), feature_map.read(g))
        cam = cam.clamp(min=0) if method.relu else cam
        note = f"at layer '{name}'"
        if known_true(feature_map.read(g) == 0):
            note += ", on whose positions the output does not depend"
        made_by = replace(method, layer=name) if isinstance(method.layer, nn.Module) else method
        yield make_explanation(
            made_by, task, found.output, found.target, {i: feature_map.spread(cam, x)}, layers={name: [cam]},
            note=note,
        )  # fmt: skip


def _last_with_gradient(maps: "MapReader", found: Gradients) -> tuple[str, FeatureMap, tuple[Tensor, Tensor]]:
    """Return the last tapped layer at whose positions the gradient is not zero, or else the last."""
    several, x = [], maps.x
    if not found.layers:
        raise SelectorError(f"no layer of the model returns feature maps of {x.dim()} dimensions; choose one with layer=")
    for name, calls in reversed(found.layers.items()):
        a, g = calls[-1]
        feature_map = maps.of_layer(name, a)
        if feature_map is None:
            raise SelectorError(
                f"layer '{name}' returns {tuple(a.shape)}, which is not a feature map of the input {tuple(x.shape)}; choose a "
                "layer that returns [N, channels, …], or tokens [N, T, channels] with one for each patch of the image"
            )
        several.append((name, feature_map, (a, g)))
        if len(found.layers) == 1 or check_holds(feature_map.read(g).any()):
            return several[-1]
    return several[0]


@dataclass(frozen=True)
class MapReader:
    """Reader of the feature maps of some layers, whose channel layouts are known before the forward pass."""

    x: Tensor
    input_channels: int
    layouts: Mapping[str, ChannelLayout]

    @classmethod
    def of(cls, task: Task, layers: Mapping[str, nn.Module], x: Tensor) -> "MapReader":
        layouts = ChannelLayout.of_layers(task.model, layers, task.inputs)
        return cls(x, input_channel_dim(task.model, task.inputs, x), layouts)

    def of_layer(self, name: str, a: Tensor) -> FeatureMap | None:
        """Return the feature map that a layer's activations are, or None."""
        return FeatureMap.of(a, self.layouts[name].dimension(a, self.x), self.x, self.input_channels)


def _picture_input(task: Task) -> tuple[int, Tensor]:
    pictures = [i for i in task.inputs.explained if task.inputs.parts[i].dim() in UPSAMPLING]
    if len(pictures) != 1:
        raise InputError(f"class activation maps need exactly one image input [N, C, …], got {len(pictures)}")
    return pictures[0], task.inputs.parts[pictures[0]]


def _layer_name(model: nn.Module, layer: str | nn.Module) -> str:
    """Return the path of a layer given as a path or as the module itself."""
    if isinstance(layer, nn.Module):
        name = next((name for name, module in module_names(model).items() if module is layer), None)
        if name is None:
            raise SelectorError(
                f"layer={type(layer).__name__}(…) is not a module of the model; pass one of its modules or a path"
            )
        return name
    names = list(named_layers(model, [layer]))
    if len(names) != 1:
        raise SelectorError(f"layer '{layer}' matches {len(names)} layers; name one of them")
    return names[0]


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
