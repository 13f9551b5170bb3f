"""Spatial activation atlas: what a layer detects at each position of one image."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from whence.core.argument_checks import check_arguments
from whence.core.inputs import check_model
from whence.errors import InputError, RuleError, value_repr
from whence.methods.layer_reader import LayerReader
from whence.prototypes.activation_maximization import prototype
from whence.prototypes.objectives import Direction
from whence.prototypes.prototypes import Prototypes


@check_arguments
@check_arguments
def spatial_atlas(
    model: Callable[..., Any], layer: str, inputs: Tensor, *, cells: int = 6, size: int = 96, **settings: Any
) -> Prototypes:
    """Find a prototype of the activation vector at each position of a layer, for one photo, as a grid (Olah et al. 2018).

    >>> whence.images.spatial_atlas(model, "features.10", photo, image=whence.images.Fourier(low, high)).save("atlas.png")

    The layer's activations are averaged to `cells` × `cells` vectors, whose `Direction` objectives are maximised.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        layer: Name of a layer that returns `[1, C, H, W]`.
        inputs: One photo `[1, C, H, W]`.
        cells: Rows and columns of the grid.
        size: Side of each prototype, in pixels.
        settings: Keyword arguments of `prototype`.

    Returns:
        `Prototypes` of all cells, which are drawn as a grid.

    Raises:
        InputError: `inputs` is not one photo, or the layer does not return `[1, C, H, W]`.
        RuleError: `cells` is not positive.
    """
    check_model(model)
    if inputs.dim() != 4 or len(inputs) != 1:
        raise InputError(f"expected one photo [1, C, H, W], got shape {tuple(inputs.shape)}")
    if not isinstance(cells, int) or cells < 1:
        raise RuleError(f"cells must be an int of at least 1, got {value_repr(cells)}")
    a = LayerReader(model, [layer])(inputs.clone()).layers[layer].detach()
    if a.dim() != 4:
        raise InputError(f"layer '{layer}' returns shape {tuple(a.shape)}, expected [1, C, H, W]")
    cells = min(cells, *a.shape[2:])
    places = F.adaptive_avg_pool2d(a, cells)[0]
    directions = [Direction(layer, places[:, i, j], name=f"{i}, {j}") for i in range(cells) for j in range(cells)]
    settings = {"shape": (inputs.shape[1], size, size)} | settings
    found = prototype(model, directions, **settings)
    return found.arranged(cells)
