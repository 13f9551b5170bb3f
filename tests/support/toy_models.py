"""The toy models of captum's own tests, written anew from their arithmetic (shared/notes/peers-and-shapley.md, section 5)."""

import torch
from torch import Tensor, nn


def filled(layer: nn.Module, weight: object, bias: object = None) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight, dtype=layer.weight.dtype).expand_as(layer.weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias, dtype=layer.bias.dtype))
    return layer


class M(nn.Module):
    """f₀ = relu(S − 10) + 3 relu(S + 1) − 1 and f₁ = f₀ + 2 of S = Σ x, as identity, linear, ReLU, linear."""

    def __init__(self):
        super().__init__()
        self.linear0 = filled(nn.Linear(3, 3, bias=False), torch.eye(3))
        self.linear1 = filled(nn.Linear(3, 4), 1.0, [-10.0, 1, 1, 1])
        self.relu = nn.ReLU()
        self.linear2 = filled(nn.Linear(4, 2), 1.0, [-1.0, 1])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.relu(self.linear1(self.linear0(x))))


class C(nn.Module):
    """A convolution of ones, ReLU, and a linear layer of five +1 and three −1 a row."""

    def __init__(self):
        super().__init__()
        self.conv1 = filled(nn.Conv2d(1, 2, 3), 1.0, [-50.0, -75])
        self.relu1 = nn.ReLU()
        self.fc1 = filled(nn.Linear(8, 4, bias=False), [1.0] * 5 + [-1] * 3)
        self.relu2 = nn.ReLU()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.fc1(self.relu1(self.conv1(x)).flatten(1)))


def picture() -> Tensor:
    return torch.arange(16.0).view(1, 1, 4, 4)


def b2(x: Tensor) -> Tensor:
    a, b = x.unbind(1)
    return torch.relu(torch.relu(a) - 1 - torch.relu(b))[:, None]


def b3(x: Tensor) -> Tensor:
    a, b = x.unbind(1)
    return torch.relu(torch.relu(a - 1) - torch.relu(b))[:, None]


class L(nn.Module):
    """Linear 3→3 all 2, ReLU, linear 3→1 all 3."""

    def __init__(self, first: float = 2.0):
        super().__init__()
        self.linear = filled(nn.Linear(3, 3, bias=False), 2.0)
        with torch.no_grad():
            self.linear.weight[0, 0] = first
        self.linear2 = filled(nn.Linear(3, 1, bias=False), 3.0)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(torch.relu(self.linear(x)))
