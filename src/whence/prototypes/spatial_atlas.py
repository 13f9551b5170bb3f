"""What a layer sees at each place of one picture."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from whence.core.argument_checks import check_arguments
from whence.core.inputs import check_model
from whence.errors import InputError, RuleError
from whence.methods.layer_reader import LayerReader
from whence.prototypes.activation_maximization import prototype
from whence.prototypes.objectives import Direction
from whence.prototypes.prototypes import Prototypes


@check_arguments
def spatial_atlas(
    model: Callable[..., Any], layer: str, inputs: Tensor, *, cells: int = 6, size: int = 96, **settings: Any
) -> Prototypes:
    """A prototype of the direction that a layer takes at each place of a photo, as a grid (Olah et al. 2018).

    >>> whence.images.spatial_atlas(model, "features.10", photo, image=whence.images.Fourier(low, high)).save("atlas.png")

    `inputs` is `[1, C, H, W]`; the layer's activations are averaged to `cells` × `cells` directions, whose prototypes are `size`
    pixels wide. `settings` are those of `prototype`.
    """
    check_model(model)
    if inputs.dim() != 4 or len(inputs) != 1:
        raise InputError(f"an atlas is one of a photo [1, C, H, W], not {tuple(inputs.shape)}")
    if not isinstance(cells, int) or cells < 1:
        raise RuleError(f"cells={cells!r}; give at least 1")
    a = LayerReader(model, [layer])(inputs.clone()).layers[layer].detach()
    if a.dim() != 4:
        raise InputError(f"layer '{layer}' gives {tuple(a.shape)}, no picture with places")
    cells = min(cells, *a.shape[2:])
    places = F.adaptive_avg_pool2d(a, cells)[0]
    directions = [Direction(layer, places[:, i, j], name=f"{i}, {j}") for i in range(cells) for j in range(cells)]
    settings = {"shape": (inputs.shape[1], size, size)} | settings
    found = prototype(model, directions, **settings)
    return found.arranged(cells)
