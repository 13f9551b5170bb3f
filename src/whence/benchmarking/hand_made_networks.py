"""Networks written by hand, whose right attributions are known exactly, in the manner of XAI-Units (Lee et al. 2025).

All map ten features to one output. The truth is the contribution of each feature: its own term where the function is a sum of
terms of one feature, and its Shapley value with baseline 0 for AND and OR. For switches it is the convention that each example
states, which is not the Shapley value. f(0) = 0 except for pertinent negatives.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from whence.benchmarking.ground_truth_metrics import SquaredError
from whence.benchmarking.ground_truth_task import BenchSettings, GroundTruthTask, TaskFactory

SUITE = "hand-made networks"
N_FEATURES = 10
SWITCH = 100.0  # weight by which one feature turns others off; larger than any other term
TEETH = 8  # of the sawtooth

Example = tuple[nn.Module, Tensor, Tensor, Tensor]  # network, samples, right relevance, background


def weighted(count: int, random: torch.Generator) -> Example:
    """f = Σ w_i x_i, as the difference of two ReLUs; R_i = w_i x_i."""
    w, x = torch.randn(N_FEATURES, generator=random), torch.randn(count + 100, N_FEATURES, generator=random)
    net = _two_layers(torch.stack([w, -w]), torch.zeros(2), torch.tensor([1.0, -1]))
    return net, x[:count], w * x[:count], x[count:]


def conflicting(count: int, random: torch.Generator) -> Example:
    """f = Σ w_i c_i (1 − k_i) with switches k: where k_i = 1, R of c_i is w_i c_i and that of k_i cancels it."""
    half = N_FEATURES // 2
    w, c, k = _switched(count + 100, half, random)
    eye = torch.eye(half)
    first = torch.cat([torch.cat([eye * w, -SWITCH * eye], 1), torch.cat([-eye * w, -SWITCH * eye], 1)])
    net = _two_layers(first, torch.zeros(2 * half), torch.cat([torch.ones(half), -torch.ones(half)]))
    x = torch.cat([c, k], 1)
    return net, x[:count], torch.cat([w * c, -w * c * k], 1)[:count], x[count:]


def interacting(count: int, random: torch.Generator) -> Example:
    """f = Σ w_i c_i where k_i = 0 and Σ v_i c_i where k_i = 1; R of c_i is its term, R of k_i is 0."""
    half = N_FEATURES // 2
    w, c, k = _switched(count + 100, half, random)
    v = torch.randn(half, generator=random)
    x = torch.cat([c, k], 1)
    return SwitchedWeights(w, v), x[:count], torch.cat([torch.where(k > 0, v, w) * c, 0 * k], 1)[:count], x[count:]


def shattered(count: int, random: torch.Generator) -> Example:
    """f = Σ h_i(x_i), each h_i a line with a sawtooth of ReLUs on top; R_i = h_i(x_i), whatever the slope at x_i."""
    w, x = torch.randn(N_FEATURES, generator=random), 2 * torch.rand(count + 100, N_FEATURES, generator=random)
    net = Sawtooth(w).requires_grad_(False)
    return net, x[:count], net.terms(x[:count]), x[count:]


def pertinent_negatives(count: int, random: torch.Generator) -> Example:
    """f = Σ w_i x_i + Σ v_i (1 − x_i) of bits: the last features matter where they are 0; R_i = v_i there, 0 where x_i = 1.

    The truth of the other features is w_i x_i.
    """
    half = N_FEATURES // 2
    w, v = torch.randn(half, generator=random), 1 + torch.rand(half, generator=random)
    x = torch.randint(2, (count + 100, N_FEATURES), generator=random).float()
    first = torch.diag(torch.cat([torch.ones(half), -torch.ones(half)]))
    net = _two_layers(first, torch.cat([torch.zeros(half), torch.ones(half)]), torch.cat([w, v]))
    return net, x[:count], torch.cat([w * x[:, :half], v * (1 - x[:, half:])], 1)[:count], x[count:]


def conjunction(count: int, random: torch.Generator) -> Example:
    """AND of three bits, relu(Σ x − 2); each has a third where all are 1, and all have 0 elsewhere."""
    x = torch.zeros(count + 100, N_FEATURES)
    x[:, :3] = (torch.rand(len(x), 3, generator=random) < 0.8).float()
    x[:, 3:] = torch.randint(2, (len(x), N_FEATURES - 3), generator=random).float()
    w = (torch.arange(N_FEATURES) < 3).float()
    net = _two_layers(w[None], torch.tensor([-2.0]), torch.ones(1))
    return net, x[:count], w * (x[:count, :3].sum(1, keepdim=True) == 3) / 3, x[count:]


def disjunction(count: int, random: torch.Generator) -> Example:
    """OR of three bits, 1 − relu(1 − Σ x); the bits that are 1 share the output."""
    x = torch.randint(2, (count + 100, N_FEATURES), generator=random).float()
    w = (torch.arange(N_FEATURES) < 3).float()
    net = _two_layers(-w[None], torch.ones(1), -torch.ones(1), 1.0)
    ones = w * x[:count]
    return net, x[:count], ones / ones.sum(1, keepdim=True).clamp(min=1), x[count:]


class SwitchedWeights(nn.Module):
    """Σ w_i c_i or Σ v_i c_i by the bits k_i: relu(± w c − S k) where k is 1 turns the first off, 1 − k the second."""

    def __init__(self, w: Tensor, v: Tensor):
        super().__init__()
        half = len(w)
        eye, none = torch.eye(half), torch.zeros(half, half)
        # hidden layer: c⁺, c⁻, k, 1 − k
        rows = [[eye, none], [-eye, none], [none, eye], [none, -eye]]
        self.first = _linear(
            torch.cat([torch.cat(row, 1) for row in rows]), torch.cat([torch.zeros(3 * half), torch.ones(half)])
        )
        parts = [
            [sign * torch.diag(u), -sign * torch.diag(u), -SWITCH * eye * (u is w), -SWITCH * eye * (u is v)]
            for u in (w, v)
            for sign in (1, -1)
        ]
        self.second = _linear(torch.cat([torch.cat(row, 1) for row in parts]), torch.zeros(4 * half))
        signs = torch.cat([torch.ones(half), -torch.ones(half)] * 2)
        self.last = _linear(signs[None], torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


class Sawtooth(nn.Module):
    """Σ_i h_i(x_i) for x_i in [0, 2]: w_i x_i plus a sawtooth of ReLUs with slopes ± 4."""

    def __init__(self, w: Tensor):
        super().__init__()
        knots = torch.arange(TEETH) * 2 / TEETH  # ReLUs relu(x − t) of each feature
        turns = torch.tensor([4.0] + [8.0 * (-1) ** t for t in range(1, TEETH)])
        self.first = _linear(torch.eye(N_FEATURES).repeat_interleave(TEETH, 0), -knots.repeat(N_FEATURES))
        slopes = turns.repeat(N_FEATURES, 1)
        slopes[:, 0] += w  # relu(x) = x
        self.last = _linear(slopes.reshape(1, -1), torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())

    def terms(self, x: Tensor) -> Tensor:
        """Return h_i(x_i), `[N, features]`."""
        return (self.first(x).relu() * self.last.weight).unflatten(1, (N_FEATURES, TEETH)).sum(2)


def _switched(count: int, half: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    w = torch.randn(half, generator=random)
    c = torch.randn(count, half, generator=random)
    return w, c, torch.randint(2, (count, half), generator=random).float()


def _two_layers(first: Tensor, bias: Tensor, last: Tensor, shift: float = 0.0) -> nn.Module:
    return nn.Sequential(_linear(first, bias), nn.ReLU(), _linear(last[None], torch.tensor([shift])))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def task(name: str, make: Callable[[int, torch.Generator], Example], settings: BenchSettings) -> GroundTruthTask:
    """Build one network with its samples."""
    model, x, truth, background = make(settings.n_samples, settings.generator(f"{SUITE} {name}"))
    target = torch.zeros(len(x), dtype=torch.long)
    return GroundTruthTask(
        SUITE, name, model.eval().requires_grad_(False), x, target, truth, (SquaredError(),), background, kind="table"
    )


EXAMPLES = {
    "weighted": weighted,
    "conflicting": conflicting,
    "interacting": interacting,
    "shattered gradients": shattered,
    "pertinent negatives": pertinent_negatives,
    "AND": conjunction,
    "OR": disjunction,
}
TASKS: dict[str, TaskFactory] = {name: partial(task, name, make) for name, make in EXAMPLES.items()}
