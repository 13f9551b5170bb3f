"""Published composites of LRP rules, and the building blocks of custom composites."""

from whence.core.public_names import namespace
from whence.lrp.rules.composites import Composite, input_layer, picture_convolution
from whence.lrp.rules.presets import (
    CONVOLUTIONS,
    DENSE,
    DENSE_LAYERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LRP_0,
    attn_lrp,
    cp_lrp,
    deep_taylor,
    epsilon_alpha2_beta1,
    epsilon_gamma,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    falling_gamma,
    vgg16_falling_gamma,
)

__all__ = [
    "CONVOLUTIONS",
    "DENSE",
    "DENSE_LAYERS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "LRP_0",
    "Composite",
    "attn_lrp",
    "cp_lrp",
    "deep_taylor",
    "epsilon_alpha2_beta1",
    "epsilon_gamma",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "falling_gamma",
    "input_layer",
    "picture_convolution",
    "vgg16_falling_gamma",
]
__getattr__ = namespace(__name__, globals())
