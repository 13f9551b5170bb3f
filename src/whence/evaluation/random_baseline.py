"""A baseline for evaluations: random relevance."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whence.core.explanation import Explanation
from whence.core.fingerprints import fingerprint
from whence.methods.forward_backward import Task, make_explanation, target_values


@dataclass(frozen=True)
class Random:
    """Random relevance, which depends only on the input itself and the seed; the baseline for all metrics."""

    seed: int = 0

    name: ClassVar[str] = "random"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        parts = task.inputs.explained or tuple(task.inputs.ids)
        scores = {i: torch.stack([self._like(row) for row in task.inputs.parts[i]]) for i in parts}
        for output, target in target_values(task):
            yield make_explanation(self, task, output, target, scores)

    def _like(self, row: Tensor) -> Tensor:
        own = int(fingerprint(row), 16) % 2**31
        drawn = torch.randn(row.shape, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + own))
        return drawn.to(row) if row.is_floating_point() else drawn.to(row.device)
