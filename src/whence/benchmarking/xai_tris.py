"""XAI-TRIS (Clark et al. 2023): 8 × 8 pictures of two tetrominoes, whose pixels are the only evidence.

Four scenarios: patterns in fixed places added to noise ("linear"), patterns that damp the noise ("multiplicative"), patterns
moved and turned at random ("translations"), and two patterns of which equal or unequal signs decide ("XOR").
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whence.benchmarking.ground_truth_metrics import TruthPrecision
from whence.benchmarking.ground_truth_task import BenchSettings, GroundTruthTask, TaskFactory, correct_samples
from whence.benchmarking.small_networks import train

SUITE = "XAI-TRIS"
SIDE, N_TRAIN = 8, 10_000
T_SHAPE = torch.tensor([[1.0, 0], [1, 1], [1, 0]])
L_SHAPE = torch.tensor([[1.0, 0], [1, 0], [1, 1]])
T_PLACE, L_PLACE = (1, 1), (4, 5)
ALPHAS = {"linear": 0.18, "multiplicative": 0.7, "translations": 0.65, "XOR": 0.35}


def pictures(scenario: str, count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures `[N, 1, 8, 8]`, classes `[N]` and masks of the pattern `[N, 8, 8]`."""
    y = torch.randint(2, (count,), generator=random)
    noise = 0.5 * torch.randn(count, SIDE, SIDE, generator=random)
    pattern = _moved_patterns(y, random) if scenario == "translations" else _fixed_patterns(scenario, y, random)
    alpha = ALPHAS[scenario]
    if scenario == "multiplicative":
        x = (1 - alpha * pattern) * noise / noise.std()
    else:
        x = alpha * pattern / pattern.norm() + (1 - alpha) * noise / noise.norm()
        x = x / x.std()
    return x[:, None], y, pattern != 0


def _fixed_patterns(scenario: str, y: Tensor, random: torch.Generator) -> Tensor:
    t_shape, l_shape = _placed(T_SHAPE, *T_PLACE), _placed(L_SHAPE, *L_PLACE)
    if scenario != "XOR":
        return torch.where(y[:, None, None] == 0, t_shape, l_shape)
    first = 1.0 - 2 * torch.randint(2, y.shape, generator=random)
    second = torch.where(y == 0, first, -first)
    return first[:, None, None] * t_shape + second[:, None, None] * l_shape


def _moved_patterns(y: Tensor, random: torch.Generator) -> Tensor:
    turned = [[shape.rot90(k) for k in range(4)] for shape in (T_SHAPE, L_SHAPE)]
    draws = torch.rand(len(y), 3, generator=random)
    patterns = []
    for kind, (k, row, column) in zip(y.tolist(), draws.tolist(), strict=True):
        shape = turned[kind][int(4 * k)]
        height, width = shape.shape
        patterns.append(_placed(shape, int(row * (SIDE - height + 1)), int(column * (SIDE - width + 1))))
    return torch.stack(patterns)


def _placed(shape: Tensor, row: int, column: int) -> Tensor:
    height, width = shape.shape
    return F.pad(shape, (column, SIDE - width - column, row, SIDE - height - row))


def linear_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2))


def dense_network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE**2, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(),
        nn.Linear(16, 2),
    )  # fmt: skip


def convolutional_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 2),
    )  # fmt: skip


NETWORKS = {"linear network": linear_network, "MLP": dense_network, "CNN": convolutional_network}


def task(scenario: str, network: str, settings: BenchSettings) -> GroundTruthTask:
    """Generate one scenario, and train one network on it."""
    random = settings.generator(f"{SUITE} {scenario}")
    x, y, masks = pictures(scenario, N_TRAIN + settings.n_test(), random)
    epochs = 20 if scenario in ("linear", "translations") else 40
    model = train(NETWORKS[network], x[:N_TRAIN], y[:N_TRAIN], settings.cache_dir, seed=settings.seed, epochs=epochs)
    accuracy, right = correct_samples(model, x[N_TRAIN:], y[N_TRAIN:], settings.n_samples)
    rows = N_TRAIN + right
    return GroundTruthTask(
        SUITE, f"{scenario}, {network}", model, x[rows], y[rows], masks[rows], (TruthPrecision(),), x[:100], accuracy
    )


TASKS: dict[str, TaskFactory] = {
    f"{scenario}, {network}": partial(task, scenario, network) for scenario in ALPHAS for network in NETWORKS
}
