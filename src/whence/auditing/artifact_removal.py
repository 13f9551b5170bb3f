"""Artifact removal by projecting a direction out of a layer (P-ClArC, Anders et al. 2022), without any training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.devices import to_device_of
from whence.core.inputs import check_model
from whence.data.batches import MAX_BATCH_SIZE
from whence.errors import InputError, ModelError, SelectorError, suggest
from whence.lrp.torch_compat.torch_patches import temporary_hook
from whence.methods.layer_reader import LayerReader


class ProjectedModel(nn.Module):
    """Wrapper of a model that removes one direction v of a layer's activations: a ← a − v vᵀ(a − z).

    >>> better = whence.cure(model, "features.10", x_with, x_without)
    >>> better(x)

    The wrapped model is not modified.

    Args:
        model: The wrapped module.
        layer: Name of the layer whose output is projected.
        direction: Tensor like the layer's output for one sample, of norm 1: the direction v that is removed.
        mean: Tensor like `direction`: the mean activation z of samples without the mark.
    """

    def __init__(self, model: nn.Module, layer: str, direction: Tensor, mean: Tensor):
        super().__init__()
        self.model, self.layer = model, layer
        self.direction = nn.Buffer(direction)
        self.mean = nn.Buffer(mean)
        self.training = model.training  # does not change the mode of the submodules

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the wrapped model, with the direction projected out of the layer's output."""
        layer = self.model.get_submodule(self.layer)
        with temporary_hook(lambda: layer.register_forward_hook(self._projected)):
            return self.model(*args, **kwargs)

    def _projected(self, module: nn.Module, args: Any, out: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise ModelError(
                f"layer {self.layer!r} returns {type(out).__name__}, expected a tensor; choose a layer that returns a tensor"
            )
        direction, mean = (t.to(out) for t in (self.direction, self.mean))
        along = ((out - mean) * direction).flatten(1).sum(1)
        return out - along.view(-1, *[1] * (out.dim() - 1)) * direction


@check_arguments
def cure(model: nn.Module, layer: str, with_mark: Tensor, without: Tensor) -> ProjectedModel:
    """Return a wrapper of the model that ignores, in one layer, the difference between samples with and without a mark.

    >>> proof = whence.prove(cluster, model, dataset)
    >>> better = whence.cure(model, "features.10", proof.mark.pasted(x), x)      # paired samples isolate the mark

    Nothing is trained. The direction that is projected out is the difference of the mean activations (a pattern, Haufe et al.
    2014). Early layers, which represent the mark but not yet the class that it indicates, lose the least accuracy.

    Args:
        model: An `nn.Module` in eval mode. It is not modified.
        layer: Name of the layer to correct.
        with_mark: Tensor `[N, …]`, samples with the mark.
        without: Tensor `[M, …]`, samples without the mark, of the same shape per sample.

    Returns:
        The wrapped model, a `ProjectedModel`.

    Raises:
        ModelError: If the model is not an `nn.Module`, or the layer does not return a tensor.
        SelectorError: If the model has no such layer.
        InputError: If there are no samples, their shapes differ, or the layer's mean activations do not differ.
    """
    check_model(model)
    if not isinstance(model, nn.Module):
        raise ModelError(f"cure() needs a torch.nn.Module with named layers, got {type(model).__name__}")
    if not layer or layer not in dict(model.named_modules()):
        raise SelectorError(f"no layer {layer!r} in the model{suggest(layer, dict(model.named_modules()))}")
    if with_mark.shape[1:] != without.shape[1:] or not len(with_mark) or not len(without):
        raise InputError(
            f"with_mark has shape {tuple(with_mark.shape)} and without has shape {tuple(without.shape)}; "
            "give at least one sample each, of the same shape per sample"
        )
    marked, plain = (_mean(model, layer, x) for x in (with_mark, without))
    direction = marked - plain
    length = direction.norm()
    if not length > 0:
        raise InputError(
            f"the mean activations of layer {layer!r} do not differ between samples with and without the mark; "
            "choose another layer"
        )
    return ProjectedModel(model, layer, direction / length, plain)


@torch.no_grad()
def _mean(model: Callable[..., Any], layer: str, x: Tensor) -> Tensor:
    reader = LayerReader(model, [layer])
    return torch.stack([reader(to_device_of(part, model)).layers[layer].sum(0) for part in x.split(MAX_BATCH_SIZE)]).sum(
        0
    ) / len(x)
