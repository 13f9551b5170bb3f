"""Published rule sets. Each is a `Composite` that user-defined rules can be prepended to:

>>> whence.LRP({"features.0": whence.Flat()} | whence.presets.epsilon_plus())
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.core.argument_checks import check_arguments
from whence.core.method_aliases import plain_name
from whence.core.public_names import equivalent
from whence.errors import RuleError, suggest_or_list, value_repr
from whence.lrp.ops.state_spaces import state_space_parts
from whence.lrp.rules.composites import Composite, Selector, input_layer, picture_convolution
from whence.lrp.rules.rules import (
    LRP_0,
    AlphaBeta,
    Constant,
    Epsilon,
    Flat,
    Gamma,
    Identity,
    RisingGamma,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)

P = ParamSpec("P")
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
DENSE = (F.linear, torch.matmul, torch.addmm)
DENSE_LAYERS = (F.linear, torch.addmm)
STATE_SPACE_GATES = (
    *(f"{outer}{block}.{layer}" for outer in ("", "*.") for block in ("mixer", "mamba") for layer in ("x_proj", "dt_proj")),
    state_space_parts,
)
OPAQUE_ACTIVATIONS = ("gelu_impl", "*.gelu_impl")  # BLOOM writes GELU as an autograd.Function
OTHERWISE = ("*", LRP_0)  # all other linear maps
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _named_preset(preset: Callable[P, Composite]) -> Callable[P, Composite]:
    """Label the composites that a preset returns with its name and arguments."""

    @wraps(preset)
    def made(*args: P.args, **kwargs: P.kwargs) -> Composite:
        given = ", ".join([*map(repr, args), *(f"{name}={value_repr(value)}" for name, value in kwargs.items())])
        return replace(preset(*args, **kwargs), label=f"presets.{preset.__name__}({given})")

    return made


@_named_preset
@check_arguments
def epsilon_gamma(epsilon: float = 1e-6, gamma: float = 0.25) -> Composite:
    """Return a composite of γ on convolutions and ε on dense layers, valid for inputs of any range.

    >>> whence.explain(model, x, method=whence.LRP(whence.presets.epsilon_gamma()))

    Args:
        epsilon: ε of dense layers.
        gamma: γ of convolutions.

    Returns:
        A `Composite`.
    """
    return _composite((CONVOLUTIONS, Gamma(gamma)), (DENSE, Epsilon(epsilon)))


@_named_preset
@check_arguments
def epsilon_plus(epsilon: float = 1e-6) -> Composite:
    """Return a composite of z⁺ on convolutions and ε on dense layers (Kohlbrenner et al. 2020).

    >>> whence.explain(model, x, method=whence.LRP(whence.presets.epsilon_plus()))

    Args:
        epsilon: ε of dense layers.

    Returns:
        A `Composite`.
    """
    return _composite((CONVOLUTIONS, ZPlus()), (DENSE, Epsilon(epsilon)))


@_named_preset
@check_arguments
def epsilon_plus_flat(epsilon: float = 1e-6) -> Composite:
    """Return `epsilon_plus` with the flat rule at the layer that touches the input.

    >>> whence.explain(model, x, method=whence.LRP(whence.presets.epsilon_plus_flat()))

    Args:
        epsilon: ε of dense layers.

    Returns:
        A `Composite`.
    """
    return _composite((input_layer, Flat()), (CONVOLUTIONS, ZPlus()), (DENSE, Epsilon(epsilon)))


@_named_preset
@check_arguments
def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Composite:
    """Return a composite of αβ with (2, 1) on convolutions and ε on dense layers (Lapuschkin et al. 2017).

    >>> whence.explain(model, x, method=whence.LRP(whence.presets.epsilon_alpha2_beta1()))

    Args:
        epsilon: ε of dense layers.

    Returns:
        A `Composite`.
    """
    return _composite((CONVOLUTIONS, AlphaBeta(2, 1)), (DENSE, Epsilon(epsilon)))


@_named_preset
@check_arguments
def epsilon_gamma_box(low: float | Tensor, high: float | Tensor, epsilon: float = 1e-6, gamma: float = 0.25) -> Composite:
    """Return a composite of z^B at the input, γ on convolutions and ε on dense layers (Montavon et al. 2019).

    >>> whence.explain(model, x, method=whence.LRP(whence.presets.epsilon_gamma_box(low, high)))

    Args:
        low: Lowest value of the inputs (the pixel bound of z^B), a number or a tensor that broadcasts against them.
        high: Highest value of the inputs, likewise.
        epsilon: ε of dense layers.
        gamma: γ of convolutions.

    Returns:
        A `Composite`.
    """
    return _composite((input_layer, ZBox(low, high)), (CONVOLUTIONS, Gamma(gamma)), (DENSE, Epsilon(epsilon)))


@_named_preset
@check_arguments
def deep_taylor(low: float | Tensor | None = None, high: float | Tensor | None = None) -> Composite:
    """Return the composite of deep Taylor decomposition (Montavon et al. 2017).

    z⁺ applies in every linear layer, at the input z^B between the bounds if they are given, else w² for unbounded real input.

    >>> whence.explain(model, x, method=whence.LRP(whence.presets.deep_taylor()))

    Args:
        low: Lowest value of the inputs, a number or a tensor that broadcasts against them; None for the w² rule at the
            input.
        high: Highest value of the inputs, likewise.

    Returns:
        A `Composite`.

    Raises:
        RuleError: If only one of the bounds is given.
    """
    if (low is None) != (high is None):
        raise RuleError("deep_taylor(low, high) needs both bounds or neither")
    first = WSquare() if low is None or high is None else ZBox(low, high)
    return _composite((input_layer, first), (CONVOLUTIONS + DENSE, ZPlus()))


@_named_preset
@check_arguments
def vgg16_falling_gamma(mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Composite:
    """Return a composite for torchvision's VGG-16: z^B at the pixels, γ from 1 at the input to 0.01, LRP-0 in the classifier.

    These are the rules of the course sheet.

    >>> whence.explain(model, x, method=whence.LRP(whence.presets.vgg16_falling_gamma()))

    Args:
        mean: Mean of each channel, `[3]`, that images were normalised by.
        std: Standard deviation of each channel, `[3]`.

    Returns:
        A `Composite`.
    """
    centre, spread = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    falling = {(2,): 1.0, (5, 7): 10**-0.5, (10, 12, 14): 0.1, (17, 19, 21): 10**-1.5, (24, 26, 28): 0.01}
    middle = [(tuple(f"features.{i}" for i in layers), Gamma(gamma)) for layers, gamma in falling.items()]
    return _composite(("features.0", ZBox((0 - centre) / spread, (1 - centre) / spread)), *middle, ("classifier.*", LRP_0))


@_named_preset
@check_arguments
def falling_gamma(
    layers: Sequence[str],
    first: float = 1.0,
    last: float = 0.01,
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
) -> Composite:
    """Return a composite of γ from `first` down to `last` over the given layers, and LRP-0 elsewhere.

    γ changes by equal ratios from layer to layer. With bounds, z^B applies at the input: the course sheet's rules for VGG-16,
    for any network.

    >>> layers = [name for name in whence.layers.layer_shapes(model, x) if isinstance(modules[name], (nn.Conv2d, nn.Linear))]
    >>> whence.LRP(whence.presets.falling_gamma(layers, 1.0, 0.01))

    Args:
        layers: Module paths of the linear layers, in order from input to output.
        first: γ of the first layer, > 0.
        last: γ of the last layer, > 0.
        low: Lowest value of the inputs, for z^B at the layer that touches the input; None for no z^B.
        high: Highest value of the inputs, likewise.

    Returns:
        A `Composite`.

    Raises:
        RuleError: If `layers` is empty or a γ is not positive.
    """
    if not layers or not (first > 0 and last > 0):
        raise RuleError(f"falling_gamma needs at least one layer and positive γ, got first={first} and last={last}")
    steps = max(len(layers) - 1, 1)
    gammas = [(name, Gamma(first * (last / first) ** (i / steps))) for i, name in enumerate(layers)]
    box = [(input_layer, ZBox(low, high))] if low is not None and high is not None else []
    return _composite(*box, *gammas, OTHERWISE)  # fmt: skip


@_named_preset
@check_arguments
def attn_lrp(gamma: float = 0.0, conv_gamma: float | None = None) -> Composite:
    """Return the composite of AttnLRP (Achtibat et al. 2024), the default rules of `LRP`, for networks of any kind.

    >>> whence.explain(model, x, method=whence.LRP(whence.presets.attn_lrp()))

    The softmax keeps its own gradient, and products are halved. In state-space models step sizes, B and C are constant
    (MambaLRP, Rezaei Jafari et al. 2024). The convolution that reads a color picture in windows that overlap has the flat rule
    (`picture_convolution`).

    Args:
        gamma: γ of dense layers. 0 is LRP-0, the gradient, at no extra cost: keep it for language models. On vision
            transformers values of 0.01 to 1 make heatmaps less noisy.
        conv_gamma: γ of convolutions; if None, it grows from output to input (`RisingGamma`).

    Returns:
        A `Composite`.
    """
    return _composite(
        (STATE_SPACE_GATES, Constant()),
        (picture_convolution, Flat()),
        (OPAQUE_ACTIVATIONS, Identity()),
        (CONVOLUTIONS, _gamma_rule(conv_gamma)),
        (DENSE_LAYERS, _gamma_rule(gamma)),
        OTHERWISE,
    )


@_named_preset
@check_arguments
def cp_lrp(gamma: float = 0.0, conv_gamma: float | None = None) -> Composite:
    """Return the composite of CP-LRP (Ali et al. 2022): `attn_lrp` with constant attention weights.

    All relevance is propagated to the values and none is lost in a softmax: without biases, ΣR is the output.

    >>> whence.explain(model, x, method=whence.LRP(whence.presets.cp_lrp()))

    Args:
        gamma: γ of dense layers; 0 is LRP-0.
        conv_gamma: γ of convolutions; if None, it grows from output to input (`RisingGamma`).

    Returns:
        A `Composite`.
    """
    return _composite((F.softmax, Constant()), *attn_lrp(gamma, conv_gamma).entries)


PRESETS: dict[str, Callable[..., Composite]] = {
    preset.__name__: preset
    for preset in (attn_lrp, cp_lrp, epsilon_gamma, epsilon_gamma_box, epsilon_plus, epsilon_plus_flat, epsilon_alpha2_beta1,
                   deep_taylor, vgg16_falling_gamma)
}  # fmt: skip
BOX_PRESETS = ("epsilon_gamma_box", "deep_taylor")  # for which bounds of the pixels are given where they are known


def preset_name(name: str) -> str | None:
    """Return the name of a preset in any spelling ("epsilon-plus"), or None."""
    return next((known for known in PRESETS if plain_name(known) == plain_name(name)), None)


def preset(name: str, bounds: tuple[Any, Any] | None = None) -> Composite:
    """Return the preset of a name, such as "epsilon_plus", where bounds are known with these; raise `RuleError` for others."""
    name = preset_name(name) or name
    if name not in PRESETS:
        here = equivalent(name)
        raise RuleError(f"no preset of rules {name!r}" + (f"; pass {here}()" if here else suggest_or_list(name, PRESETS)))
    if name == "vgg16_falling_gamma":  # by the paths of one network: of any other, the default rules would be used instead
        composite = vgg16_falling_gamma()
        return replace(composite, required=len(composite.entries))
    if name == "epsilon_gamma_box" and bounds is None:
        raise RuleError(f"{name} needs the bounds of the pixels; pass whence.LRP(whence.presets.{name}(low, high))")
    return PRESETS[name](*bounds) if name in BOX_PRESETS and bounds is not None else PRESETS[name]()


def _gamma_rule(gamma: float | None) -> Gamma | RisingGamma | Epsilon:
    return RisingGamma() if gamma is None else Gamma(gamma) if gamma else LRP_0


def _composite(*entries: tuple[Selector, Rule]) -> Composite:
    return Composite(entries)
