"""Layer-wise relevance propagation message by message: slow, literal, and sharing no algebra with the engine."""

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def dense_form(layer, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Weight [outputs, inputs] and bias [outputs] of an affine layer, read off by probing every input by itself."""
    zero = torch.zeros_like(x)
    bias = layer(zero).flatten()
    columns = []
    for i in range(x.numel()):
        probe = zero.clone()
        probe.view(-1)[i] = 1
        columns.append(layer(probe).flatten() - bias)
    return torch.stack(columns, 1).numpy(), bias.numpy()


def sign(z: float) -> float:
    return 1.0 if z >= 0 else -1.0


def epsilon(a, w, b, r, eps):
    back = np.zeros_like(a)
    for k in range(len(r)):
        z = sum(a[j] * w[k, j] for j in range(len(a))) + b[k]
        for j in range(len(a)):
            back[j] += a[j] * w[k, j] / (z + eps * sign(z)) * r[k]
    return back


def gamma(a, w, b, r, g):
    back = np.zeros_like(a)
    for k in range(len(r)):
        messages = [a[j] * w[k, j] for j in range(len(a))]
        z = sum(messages) + b[k]
        own = (lambda m: max(m, 0.0)) if z >= 0 else (lambda m: min(m, 0.0))
        weighted = [m + g * own(m) for m in messages]
        total = sum(weighted) + b[k] + g * own(b[k])
        if total != 0:
            back += np.array(weighted) / total * r[k]
    return back


def alpha_beta(a, w, b, r, alpha, beta):
    back = np.zeros_like(a)
    for k in range(len(r)):
        messages = [a[j] * w[k, j] for j in range(len(a))]
        up = sum(max(m, 0.0) for m in messages) + max(b[k], 0.0)
        down = sum(min(m, 0.0) for m in messages) + min(b[k], 0.0)
        for j, m in enumerate(messages):
            if up != 0:
                back[j] += alpha * max(m, 0.0) / up * r[k]
            if down != 0:
                back[j] -= beta * min(m, 0.0) / down * r[k]
    return back


def z_box(a, w, b, r, low, high):
    back = np.zeros_like(a)
    for k in range(len(r)):
        q = [a[j] * w[k, j] - low[j] * max(w[k, j], 0) - high[j] * min(w[k, j], 0) for j in range(len(a))]
        if sum(q) != 0:
            back += np.array(q) / sum(q) * r[k]
    return back


def w_square(a, w, b, r):
    back = np.zeros_like(a)
    for k in range(len(r)):
        back += w[k] ** 2 / sum(w[k] ** 2) * r[k]
    return back


def flat(a, w, b, r):
    """`w` must be the dense form of the layer with all weights 1: which inputs are connected at all."""
    back = np.zeros_like(a)
    for k in range(len(r)):
        back += w[k] / sum(w[k]) * r[k]
    return back
