"""Outputs of the model for altered inputs, without gradients, for any callable."""

from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from whence.core.targets import select_target_samples
from whence.errors import ModelError
from whence.methods.forward_backward import Task, explaining_rows_together, target_values

# convolutions of images are faster in the channels-last memory format, by 1.3 to 2.4 times on CPUs
CHANNELS_LAST_FORMATS = {(4, torch.float32): torch.channels_last, (5, torch.float32): torch.channels_last_3d}


class ModelQueries:
    """Evaluator of the model's outputs for altered inputs, with the targets of the original inputs.

    Where the targets have a single value for all rows of the inputs (edges, the nodes of a graph), `task` has one sample.
    Altered images are in the channels-last memory format, unless the model fails on it, as `view` may.
    """

    def __init__(self, task: Task):
        self._as_given = False
        answers = target_values(task)
        self.outputs = torch.stack([output for output, _ in answers])  # [targets, N]
        self.task = explaining_rows_together(task, self.outputs)
        self.targets = [target for _, target in answers]

    def of_samples(self, samples: Tensor) -> "ModelQueries":
        """Return the queries for some of the samples."""
        some = copy(self)
        some.task = replace(self.task, inputs=self.task.inputs.of_samples(samples))
        some.outputs = self.outputs[:, samples.to(self.outputs.device)]
        some.targets = [select_target_samples(target, samples) for target in self.targets]
        return some

    def __call__(self, altered: dict[int, Tensor]) -> Tensor:
        """Return the outputs `[targets, rounds, N]` of altered inputs `[rounds · N, …]`."""
        rounds = len(next(iter(altered.values()))) // self.task.inputs.batch_size
        if not self._as_given:
            try:
                return self._answers(rounds, {i: _channels_last(part) for i, part in altered.items()})
            except ModelError:
                self._as_given = True
        return self._answers(rounds, altered)

    def _answers(self, rounds: int, altered: dict[int, Tensor]) -> Tensor:
        answers = target_values(self.task.moved(rounds, altered, self.targets))
        return torch.stack([output.view(rounds, -1) for output, _ in answers])


def _channels_last(part: Tensor) -> Tensor:
    layout = CHANNELS_LAST_FORMATS.get((part.dim(), part.dtype)) if part.device.type == "cpu" else None
    return part if layout is None else part.contiguous(memory_format=layout)
