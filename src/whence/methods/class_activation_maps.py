"""Class activation maps: what they share, the layers that they read and the maps that they resize to the input."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.channel_layout import ChannelLayout, input_channel_dim
from whence.core.explanation import Explanation
from whence.errors import InputError, ModelError, SelectorError, value_repr
from whence.lrp.torch_compat.deferred_checks import check_holds, known_true
from whence.lrp.torch_compat.module_tracker import module_names, named_layers
from whence.methods.feature_maps import FeatureMap, to_unit_range
from whence.methods.feature_masks import UPSAMPLING
from whence.methods.forward_backward import Gradients, Task, make_explanation, reject_layers
from whence.methods.gradients import input_gradients
from whence.methods.layer_taps import LayerTaps

LAYERS_IN_MEMORY = 4  # candidates for the default layer; the class token alone reads the last normalisations of a transformer
Layer = str | nn.Module


@dataclass(frozen=True)
class TappedMap:
    """A layer's feature map in one forward and backward pass.

    Args:
        layer: The path of the layer.
        calls: How often the layer was called; the map is that of the last call.
        feature_map: Where its activations lie on the input.
        activations: `[N, C, …]`.
        gradients: Those of the explained output, `[N, C, …]`.
        output: The explained output, `[N]`.
        target: The target, with its indices resolved.
    """

    layer: str
    calls: int
    feature_map: FeatureMap
    activations: Tensor
    gradients: Tensor
    output: Tensor
    target: Any


@dataclass(frozen=True)
class ClassActivationMap:
    """A map that combines the channels of one layer, or the mean of the maps of several."""

    layer: Layer | Sequence[Layer] | None = None
    relu: bool = True

    def combined(self, task: Task, tapped: TappedMap) -> Tensor:
        """Return the map `[N, 1, …]` of a layer."""
        raise NotImplementedError

    def explanations(self, task: Task) -> Iterator[Explanation]:
        reject_layers(self, task)
        if not isinstance(task.model, nn.Module):
            kind = type(task.model).__name__
            raise ModelError(f"{type(self).__name__} reads a layer of a torch.nn.Module, but the model is of type {kind}")
        i, x = picture_input(task, "class activation maps")
        names = _layer_names(task.model, self.layer)
        if names is None:
            layers = {name: m for name, m in module_names(task.model).items() if not any(m.children())}
        else:
            layers = named_layers(task.model, names)
        maps = MapReader.of(task, layers, x)
        taps = LastFeatureMaps(maps, layers) if names is None else LayerTaps(names)
        for found in input_gradients(task, taps):
            tapped = [_last_with_gradient(maps, found)] if names is None else [maps.tapped(name, found) for name in names]
            cams = [self._map(task, one) for one in tapped]
            scaled = cams if len(cams) == 1 else [self._scaled(cam) / len(cams) for cam in cams]
            spread = [one.feature_map.spread(cam, x) for one, cam in zip(tapped, scaled, strict=True)]
            made_by = self if names is None else replace(self, layer=names[0] if len(names) == 1 else names)
            yield make_explanation(
                made_by, task, found.output, found.target, {i: reduce(torch.add, spread)},
                layers={one.layer: [cam] for one, cam in zip(tapped, cams, strict=True)}, note=_note(tapped),
            )  # fmt: skip

    def _map(self, task: Task, tapped: TappedMap) -> Tensor:
        cam = self.combined(task, tapped)
        return cam.clamp(min=0) if self.relu else cam

    def _scaled(self, cam: Tensor) -> Tensor:
        """Return a map scaled to [0, 1], or to [-1, 1] where it keeps its sign, so that maps of several layers count alike."""
        if self.relu:
            return to_unit_range(cam)
        largest = cam.abs().amax(tuple(range(1, cam.dim())), keepdim=True)
        return cam / largest.where(largest != 0, 1.0)


class LastFeatureMaps(LayerTaps):
    """Taps at the last leaf modules whose outputs are feature maps."""

    def __init__(self, maps: "MapReader", ends: Mapping[str, nn.Module]):
        super().__init__(())
        self._maps, self._ends = maps, ends

    def callbacks(self, pin: Callable[[Tensor], None]) -> dict[str, Callable[[Tensor], None]]:
        taps: dict[str, Any] = {name: partial(self._later, name, pin) for name in self._ends}
        for tap in taps.values():
            tap.optional = True  # a detector's modules return lists and dicts as well
        return taps

    def _later(self, name: str, pin: Callable[[Tensor], None], out: Tensor) -> None:
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


def picture_input(task: Task, what: str) -> tuple[int, Tensor]:
    """Return the number of the only picture, series or volume among the inputs, and that input."""
    pictures = [i for i in task.inputs.explained if task.inputs.parts[i].dim() in UPSAMPLING]
    if len(pictures) != 1:
        raise InputError(f"{what} need exactly one image input [N, C, …], got {len(pictures)}")
    return pictures[0], task.inputs.parts[pictures[0]]


def _last_with_gradient(maps: "MapReader", found: Gradients) -> TappedMap:
    """Return the last tapped layer whose gradient is not zero in several channels, or else in one, or else the last.

    In one channel alone it is at a map of classes itself, the output of a segmenter.
    """
    if not found.layers:
        raise SelectorError(f"no layer of the model returns feature maps of {maps.x.dim()} dimensions; choose one with layer=")
    several = []
    for name in reversed(found.layers):
        several.append(maps.tapped(name, found))
        if len(found.layers) == 1 or check_holds(_channels_in_use(several[-1]) > 1):
            return several[-1]
    return next((one for one in several if check_holds(_channels_in_use(one) > 0)), several[0])


def _channels_in_use(tapped: TappedMap) -> Tensor:
    """Return in how many channels the gradient of a sample is not zero, at most."""
    return (tapped.gradients.flatten(2) != 0).any(2).sum(1).amax()


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

    def tapped(self, name: str, found: Gradients) -> TappedMap:
        """Return the feature map of a layer with its gradients; raise `SelectorError` if its output is none."""
        calls = found.layers[name]
        a, g = calls[-1]
        feature_map = self.of_layer(name, a)
        if feature_map is None:
            raise SelectorError(
                f"layer '{name}' returns {tuple(a.shape)}, which is not a feature map of the input {tuple(self.x.shape)}; "
                "choose a layer that returns [N, channels, …], or tokens [N, T, channels] with one for each patch of the image"
            )
        return TappedMap(
            name, len(calls), feature_map, feature_map.read(a), feature_map.read(g), found.output, found.target
        )  # fmt: skip


def _layer_names(model: nn.Module, layer: Layer | Sequence[Layer] | None) -> tuple[str, ...] | None:
    """Return the paths of layers given as paths or modules, or None for the default."""
    if layer is None:
        return None
    if not isinstance(layer, str | nn.Module | Sequence):
        raise SelectorError(f"layer={value_repr(layer)}; expected the path of a module, a module, or several")
    given = [layer] if isinstance(layer, str | nn.Module) and not isinstance(layer, nn.ModuleList) else list(layer)
    if not given:
        raise SelectorError("layer=() names no layer; pass a path, a module or several, or None for the default")
    return tuple(dict.fromkeys(_layer_name(model, one) for one in given))


def _layer_name(model: nn.Module, layer: Layer) -> str:
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


def _note(tapped: Sequence[TappedMap]) -> str:
    if len(tapped) > 1:
        names = ", ".join(f"'{one.layer}'" for one in tapped)
        return f"at layers {names}: the mean of their maps, each scaled to [0, 1]"
    if tapped[0].gradients[0, 0].numel() == 1:
        return f"at layer '{tapped[0].layer}', whose map has a single position and shows no place; choose a lower layer="
    unused = ", on whose positions the output does not depend" if known_true(tapped[0].gradients == 0) else ""
    return f"at layer '{tapped[0].layer}'{unused}"
