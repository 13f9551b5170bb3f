"""Time series with a moving box (Ismail et al. 2020): noise, and a box of some steps and features that is shifted up or down.

The sign of the shift is the class, and the box the only evidence.
"""

from functools import partial

import torch
from torch import Tensor, nn

from whence.benchmarking.ground_truth_metrics import AveragePrecision
from whence.benchmarking.ground_truth_task import BenchSettings, GroundTruthTask, TaskFactory, correct_samples
from whence.benchmarking.small_networks import train

SUITE = "time series"
STEPS, N_FEATURES, N_TRAIN = 30, 10, 4000
BOX = (8, 4)  # steps, features
SHIFT = 1.0


def noise(kind: str, count: int, random: torch.Generator) -> Tensor:
    """Return noise `[N, T, F]` of standard deviation 1: Gaussian, autoregressive, or sines of random phase with noise."""
    white = torch.randn(count, STEPS, N_FEATURES, generator=random)
    if kind == "Gaussian":
        return white
    if kind == "autoregressive":
        found = [white[:, 0]]
        for t in range(1, STEPS):
            found.append(0.5 * found[-1] + 0.75**0.5 * white[:, t])
        return torch.stack(found, 1)
    phase = 2 * torch.pi * torch.rand(count, 1, N_FEATURES, generator=random)
    frequency = 0.3 + 0.7 * torch.rand(count, 1, N_FEATURES, generator=random)
    return torch.sin(frequency * torch.arange(STEPS)[:, None] + phase) + 0.7 * white


def series(kind: str, count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return series `[N, T, F]`, classes `[N]` and the masks of the box `[N, T, F]`."""
    x, y = noise(kind, count, random), torch.randint(2, (count,), generator=random)
    start = torch.randint(STEPS - BOX[0] + 1, (count, 1, 1), generator=random)
    first = torch.randint(N_FEATURES - BOX[1] + 1, (count, 1, 1), generator=random)
    steps, features = torch.arange(STEPS)[:, None], torch.arange(N_FEATURES)
    box = (steps >= start) & (steps < start + BOX[0]) & (features >= first) & (features < first + BOX[1])
    return x + SHIFT * box * (2.0 * y[:, None, None] - 1), y, box


class RecurrentClassifier(nn.Module):
    """The mean of an LSTM's hidden states, read by a linear layer."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(N_FEATURES, 32, batch_first=True)
        self.read = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.lstm(x)[0].mean(1))


class ConvolutionalClassifier(nn.Module):
    """Convolutions over time, and the mean over all steps."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(N_FEATURES, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 32, 5, padding=2), nn.ReLU()
        )
        self.read = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.layers(x.transpose(1, 2)).mean(2))


NETWORKS = {"LSTM": RecurrentClassifier, "CNN": ConvolutionalClassifier}


def task(kind: str, network: str, settings: BenchSettings) -> GroundTruthTask:
    """Generate series with one kind of noise, and train one network on them."""
    x, y, box = series(kind, N_TRAIN + settings.n_test(), settings.generator(f"{SUITE} {kind}"))
    model = train(NETWORKS[network], x[:N_TRAIN], y[:N_TRAIN], settings.cache_dir, seed=settings.seed, epochs=15)
    accuracy, right = correct_samples(model, x[N_TRAIN:], y[N_TRAIN:], settings.n_samples)
    rows = N_TRAIN + right
    metrics = (AveragePrecision("time"), AveragePrecision("features"))
    return GroundTruthTask(
        SUITE, f"{kind}, {network}", model, x[rows], y[rows], box[rows], metrics, x[:100], accuracy, kind="series"
    )


TASKS: dict[str, TaskFactory] = {
    f"{kind}, {network}": partial(task, kind, network)
    for kind in ("Gaussian", "autoregressive", "sines")
    for network in NETWORKS
}
