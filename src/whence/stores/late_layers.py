"""Choice of the late layers of a convolutional network whose channels are stored."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from whence.core.inputs import Inputs
from whence.methods.layer_reader import layer_shapes


def late_layers(model: Callable[..., Any], inputs: Inputs) -> tuple[str, ...]:
    """Return up to two layers: the last with several positions, and the last before it with another number of channels.

    They are behind the first third of the network, and have as many dimensions as its input. Only convolutional networks have
    such layers.
    """
    if not isinstance(model, nn.Module) or not any(isinstance(module, _ConvNd) for module in model.modules()):
        return ()
    if len(inputs.explained) != 1 or (dims := inputs.parts[inputs.explained[0]].dim()) < 3:
        return ()
    shapes = layer_shapes(model, inputs.nest)
    later = list(shapes.items())[len(shapes) // 3 :]
    spatial = [(name, shape) for name, shape in later if len(shape) == dims and max(shape[2:]) > 1]
    if not spatial:
        return ()
    last, shape = spatial[-1]
    before = [name for name, other in spatial if other[1] != shape[1]]
    return (*before[-1:], last)
