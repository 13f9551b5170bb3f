"""From proof to cure: the direction of a mark is projected out of a layer (P-ClArC, Anders et al. 2022). Nothing is trained."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.devices import to_device_of
from whence.core.inputs import check_model
from whence.data.batches import MAX_BATCH_SIZE
from whence.errors import InputError, ModelError, SelectorError, suggest
from whence.methods.layer_reader import LayerReader


class ProjectedModel(nn.Module):
    """A model without one direction of a layer: a ← a − v vᵀ(a − z), z the mean without the mark. The model stays as it is.

    >>> better = whence.cure(model, "features.10", x_with, x_without)
    >>> better(x)
    """

    def __init__(self, model: nn.Module, layer: str, direction: Tensor, mean: Tensor):
        super().__init__()
        self.model, self.layer = model, layer
        self.direction = nn.Buffer(direction)
        self.mean = nn.Buffer(mean)
        self.training = model.training  # without touching the mode of its parts

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        handle = self.model.get_submodule(self.layer).register_forward_hook(self._projected)
        try:
            return self.model(*args, **kwargs)
        finally:
            handle.remove()

    def _projected(self, module: nn.Module, args: Any, out: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise ModelError(f"layer {self.layer!r} gives {type(out).__name__}, not a tensor; choose a layer that gives one")
        direction, mean = (t.to(out) for t in (self.direction, self.mean))
        along = ((out - mean) * direction).flatten(1).sum(1)
        return out - along.view(-1, *[1] * (out.dim() - 1)) * direction


@check_arguments
def cure(model: nn.Module, layer: str, with_mark: Tensor, without: Tensor) -> ProjectedModel:
    """The model blind to what tells `with_mark` `[N, …]` from `without`, in one layer: a wrapper, nothing is trained.

    >>> proof = whence.prove(cluster, model, dataset)
    >>> better = whence.cure(model, "features.10", proof.mark.pasted(x), x)      # pairs show the mark alone

    The direction is the difference of the mean activations (a pattern, Haufe et al. 2014); early layers, which see the mark and
    not yet what it stands for, lose least. Raises `SelectorError` for a layer that is not there.
    """
    check_model(model)
    if not isinstance(model, nn.Module):
        raise ModelError(f"a cure is in a layer of a torch.nn.Module, not of {type(model).__name__}")
    if not layer or layer not in dict(model.named_modules()):
        raise SelectorError(f"no layer {layer!r} in the model{suggest(layer, dict(model.named_modules()))}")
    if with_mark.shape[1:] != without.shape[1:] or not len(with_mark) or not len(without):
        raise InputError(f"samples of {tuple(with_mark.shape)} with the mark and of {tuple(without.shape)} without; give alike")
    marked, plain = (_mean(model, layer, x) for x in (with_mark, without))
    direction = marked - plain
    length = direction.norm()
    if not length > 0:
        raise InputError(f"layer {layer!r} does not tell samples with the mark from those without")
    return ProjectedModel(model, layer, direction / length, plain)


@torch.no_grad()
def _mean(model: Callable[..., Any], layer: str, x: Tensor) -> Tensor:
    reader = LayerReader(model, [layer])
    return torch.stack([reader(to_device_of(part, model)).layers[layer].sum(0) for part in x.split(MAX_BATCH_SIZE)]).sum(
        0
    ) / len(x)
