"""Linear layers of every kind, small enough for the oracle: name -> (function, weight shape, input shape)."""

import torch
from torch.nn import functional as F

LAYERS = {
    "linear": (F.linear, (4, 6), (1, 6)),
    "linear_3d": (F.linear, (3, 4), (1, 2, 4)),
    "conv1d": (F.conv1d, (4, 2, 3), (1, 2, 7)),
    "conv1d_stride": (lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=1), (3, 2, 3), (1, 2, 7)),
    "conv1d_same_even": (lambda x, w, b: F.conv1d(x, w, b, padding="same"), (3, 2, 4), (1, 2, 6)),
    "conv2d": (F.conv2d, (3, 2, 2, 3), (1, 2, 4, 5)),
    "conv2d_stride": (lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=(1, 0)), (3, 2, 3, 2), (1, 2, 5, 4)),
    "conv2d_dilated": (lambda x, w, b: F.conv2d(x, w, b, padding=2, dilation=2), (2, 2, 3, 3), (1, 2, 4, 4)),
    "conv2d_groups": (lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=2), (4, 1, 3, 3), (1, 2, 3, 4)),
    "conv2d_same": (lambda x, w, b: F.conv2d(x, w, b, padding="same"), (2, 1, 3, 3), (1, 1, 4, 4)),
    "conv2d_unbatched_input_to_batch": (lambda x, w, b: F.conv2d(x[0], w, b)[None], (2, 2, 2, 2), (1, 2, 3, 3)),
    "conv3d": (lambda x, w, b: F.conv3d(x, w, b, padding=1, stride=2), (2, 2, 2, 2, 2), (1, 2, 3, 2, 3)),
    "conv_transpose1d": (
        lambda x, w, b: F.conv_transpose1d(x, w, b, stride=2, padding=1, output_padding=1),
        (2, 3, 3),
        (1, 2, 4),
    ),
    "conv_transpose2d": (lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2), (2, 3, 2, 2), (1, 2, 3, 2)),
    "conv_transpose2d_groups": (lambda x, w, b: F.conv_transpose2d(x, w, b, groups=2, dilation=2), (4, 1, 2, 2), (1, 4, 2, 3)),
    "conv_transpose3d": (lambda x, w, b: F.conv_transpose3d(x, w, b, padding=1), (2, 2, 2, 2, 2), (1, 2, 2, 3, 2)),
}


def make(name: str, bias: bool, seed: int = 0):
    """(layer of x, layer of x with weights of one and no bias, input)."""
    function, weight_shape, input_shape = LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(weight_shape, generator=generator)
    groups = 2 if "groups" in name else 1
    channels = weight_shape[1] * groups if "transpose" in name else weight_shape[0]
    b = torch.randn(channels, generator=generator) if bias else None
    x = torch.randn(input_shape, generator=generator)
    return (lambda v: function(v, weight, b)), (lambda v: function(v, torch.ones_like(weight), None)), x
