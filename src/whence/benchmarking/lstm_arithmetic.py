"""LSTM arithmetic (Arras et al. 2019): a sequence with two marked numbers, of which an LSTM computes the sum or difference.

The right relevance of the marked steps is a and ± b, and that of all others is 0.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whence.benchmarking.ground_truth_metrics import SquaredError
from whence.benchmarking.ground_truth_task import BenchSettings, GroundTruthTask, TaskFactory
from whence.benchmarking.small_networks import train

SUITE = "LSTM arithmetic"
LENGTH, N_TRAIN, HIDDEN = 8, 20_000, 8
SIGNS = {"a + b": 1.0, "a − b": -1.0}


def sequences(sign: float, count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return sequences `[N, T, 2]` of numbers, in the second column where they are marked, results `[N, 1]` and relevance.

    The relevance is `[N, T, 2]`: a and ± b at the marked numbers.
    """
    numbers = 2 * torch.rand(count, LENGTH, generator=random) - 1
    places = torch.rand(count, LENGTH, generator=random).argsort(1)[:, :2].sort(1).values
    marked = torch.zeros(count, LENGTH, dtype=torch.bool).scatter_(1, places, True)
    x = torch.stack([numbers.masked_fill(marked, 0), numbers.masked_fill(~marked, 0)], 2)
    signs = torch.ones(count, LENGTH).scatter_(1, places[:, 1:], sign)
    truth = torch.stack([torch.zeros_like(numbers), x[..., 1] * signs], 2)
    return x, truth.sum((1, 2))[:, None], truth


class LastStep(nn.Module):
    """An LSTM whose last hidden state is read by a linear layer."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, HIDDEN, batch_first=True)
        self.read = nn.Linear(HIDDEN, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.lstm(x)[0][:, -1])


def task(name: str, settings: BenchSettings) -> GroundTruthTask:
    """Generate sequences, and train an LSTM on them; its accuracy is the share of errors below 0.1."""
    random = settings.generator(f"{SUITE} {name}")
    x, y, truth = sequences(SIGNS[name], N_TRAIN + settings.n_test(), random)
    model = train(
        LastStep, x[:N_TRAIN], y[:N_TRAIN], settings.cache_dir, seed=settings.seed, epochs=60, rate=1e-2, weight_decay=0.0,
        loss=F.mse_loss,
    )  # fmt: skip
    with torch.no_grad():
        close = (model(x[N_TRAIN:]) - y[N_TRAIN:]).abs()[:, 0] < 0.1
    rows = N_TRAIN + close.nonzero()[: settings.n_samples, 0]
    return GroundTruthTask(
        SUITE, name, model, x[rows], torch.zeros(len(rows), dtype=torch.long), truth[rows], (SquaredError(),), x[:100],
        float(close.double().mean()), kind="series",
    )  # fmt: skip


TASKS: dict[str, TaskFactory] = {name: partial(task, name) for name in SIGNS}
