"""FullGrad: the gradient × input of a picture, and the gradient × bias of every position of its feature maps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv

from whence.core.channel_layout import input_channel_dim
from whence.core.explanation import Explanation
from whence.errors import ModelError
from whence.lrp.torch_compat.module_tracker import module_names
from whence.methods.class_activation_maps import picture_input
from whence.methods.feature_maps import FeatureMap, to_unit_range
from whence.methods.forward_backward import Task, make_explanation, reject_layers
from whence.methods.gradients import input_gradients
from whence.methods.layer_taps import LayerTaps

FROZEN = "FrozenBatchNorm2d"  # torchvision's


@dataclass(frozen=True)
class FullGrad:
    """FullGrad, ψ(∇_x f ⊙ x) + Σ over layers and channels of ψ(∂f/∂b ⊙ b) (Srinivas and Fleuret 2019, eq. 4).

    >>> whence.explain(model, x, target=3, method=whence.FullGrad()).relevance

    b are the biases of convolutions, and those that batch normalisations imply, β − γ μ / σ, at each position; ψ takes the
    magnitude, scales it to [0, 1] and resizes it to the input. The scores are divided evenly among the channels of the input;
    they are not negative and do not add up to the output.
    """

    name: ClassVar[str] = "full_grad"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        reject_layers(self, task)
        if not isinstance(task.model, nn.Module):
            raise ModelError(f"FullGrad reads the biases of a torch.nn.Module, not of a {type(task.model).__name__}")
        i, x = picture_input(task, "FullGrad")
        biases = {name: b for name, m in module_names(task.model).items() if (b := _bias(m)) is not None}
        channels = input_channel_dim(task.model, task.inputs, x)
        own = FeatureMap(channels, channels)
        for found in input_gradients(task, CalledLayers(tuple(biases), x)):
            x, g = found.inputs[i]
            total = own.spread(to_unit_range(own.read(x * g).abs()).sum(1, keepdim=True), x)
            for name, calls in found.layers.items():
                b = biases[name]
                for a, g in calls:
                    grid = FeatureMap(1, channels)
                    contributions = (g * b.to(g).view(-1, *[1] * (a.dim() - 2))).abs()
                    total = total + grid.spread(to_unit_range(contributions).sum(1, keepdim=True), x)
            yield make_explanation(self, task, found.output, found.target, {i: total})


class CalledLayers(LayerTaps):
    """Taps at those of some layers whose outputs are feature maps of the input `x`, one for each sample."""

    def __init__(self, names: tuple[str, ...], x: Tensor):
        super().__init__(())
        self._wanted, self._x = names, x

    def callbacks(self, pin: Callable[[Tensor], None]) -> dict[str, Callable[[Tensor], None]]:
        return {name: lambda out, name=name: self._called(name, out, pin) for name in self._wanted}

    def _called(self, name: str, out: Tensor, pin: Callable[[Tensor], None]) -> None:
        if out.requires_grad and out.dim() == self._x.dim() and len(out) == len(self._x):
            self._tap(name, out, pin)
            self.names = tuple(self.values)


def _bias(module: Any) -> Tensor | None:
    """Return the bias `[C]` of a convolution, or that which a batch normalisation implies; None if it has none."""
    if isinstance(module, batchnorm._BatchNorm) or type(module).__name__ == FROZEN:
        if module.running_mean is None or module.running_var is None:
            raise ModelError("FullGrad needs running statistics of batch normalisations, but one has none; use another method")
        scale = (module.running_var + module.eps).rsqrt() * (1.0 if module.weight is None else module.weight.detach())
        return (0.0 if module.bias is None else module.bias.detach()) - scale * module.running_mean
    return module.bias.detach() if isinstance(module, conv._ConvNd) and module.bias is not None else None
