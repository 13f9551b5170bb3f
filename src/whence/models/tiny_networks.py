"""Networks of two inputs that can be worked out by hand: the maximum and the minimum, each constructed in several ways."""

from collections.abc import Sequence

import torch
from torch import nn

INPUT_NAMES = ("a1", "a2")

# h = relu(W a), y = V h: the same function, and other explanations
CONSTRUCTIONS: dict[str, tuple[Sequence[Sequence[float]], Sequence[float]]] = {
    "max, by the first": ([[1, -1], [0, 1]], [1, 1]),
    "max, by the second": ([[-1, 1], [1, 0]], [1, 1]),
    "max, symmetric": ([[0.5, 0.5], [0.5, -0.5], [-0.5, 0.5]], [1, 1, 1]),
    "min, by the first": ([[1, 0], [1, -1]], [1, -1]),
    "min, by the second": ([[-1, 1], [0, 1]], [-1, 1]),
}


def tiny_network(way: str) -> nn.Sequential:
    """Return the network with a name in `CONSTRUCTIONS`, for non-negative inputs `[N, 2]`.

    >>> tiny_network("max, symmetric")(torch.tensor([[3.0, 1.0]]))
    tensor([[3.]])
    """
    first, second = CONSTRUCTIONS[way]
    layers = [nn.Linear(2, len(first), bias=False), nn.ReLU(), nn.Linear(len(first), 1, bias=False)]
    net = nn.Sequential(*layers).eval().requires_grad_(False)
    for layer, weight in ((layers[0], first), (layers[2], [second])):
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float))  # type: ignore[operator]
    return net
