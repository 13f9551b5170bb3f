"""Tasks of the benchmark: a network, samples, and the right explanation of its outputs."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BenchSettings:
    """The size of a run, its random seed, and the folder of trained networks (None trains them again)."""

    n_samples: int
    seed: int
    cache_dir: Path | None

    def n_test(self, least: int = 1000) -> int:
        """Return the size of a test set with enough samples that the network predicts right."""
        return max(least, 2 * self.n_samples)

    def generator(self, purpose: str) -> torch.Generator:
        """Return the random generator of a data set, which depends on the seed and on the name of the data set."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + sum(map(ord, purpose)))


@dataclass(frozen=True, eq=False)
class GroundTruthTask:
    """A network whose correct explanations are known.

    Args:
        suite: Name of the suite, such as "XAI-TRIS".
        name: Name of the task within it.
        model: The network, in eval mode.
        x: Samples `[N, …]` to explain, or token ids `[N, T]`.
        target: The explained class of each sample, `[N]`.
        truth: Masks of the relevant entries, or their right relevance, `[N, …]`; passed to the metrics as `masks=`.
        metrics: Metrics that compare relevance with the truth.
        background: Samples of the training data, `[B, …]`.
        accuracy: Share of samples that the network predicts right; None for networks that are not trained.
        required: The accuracy below which explanations are not scored.
        kind: Kind of input: "picture", "tokens", "series", "graph" or "table".
        neutral: Token id that carries no information, for inputs of token ids.
    """

    suite: str
    name: str
    model: nn.Module
    x: Tensor
    target: Tensor
    truth: Tensor
    metrics: Sequence[Any]
    background: Tensor
    accuracy: float | None = None
    required: float = 0.8
    kind: str = "picture"
    neutral: int | None = None

    @property
    def title(self) -> str:
        return f"{self.suite}: {self.name}"

    @property
    def learned(self) -> bool:
        """Whether the network reaches the required accuracy."""
        return self.accuracy is None or self.accuracy >= self.required

    def copy(self) -> "GroundTruthTask":
        """Return a task with copies of the network and of all that methods are given."""
        x, target, background = self.x.clone(), self.target.clone(), self.background.clone()
        return replace(self, model=deepcopy(self.model), x=x, target=target, background=background)


TaskFactory = Callable[[BenchSettings], GroundTruthTask]


def correct_samples(model: nn.Module, x: Tensor, y: Tensor, count: int) -> tuple[float, Tensor]:
    """Return the accuracy on all samples, and the indices of the first `count` that are predicted right."""
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(1000)]) == y
    return float(right.double().mean()), right.nonzero()[:count, 0]
