"""Batches under attack: checked samples and labels, and the logits and gradients of a network for them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from whence.core.class_indices import check_classes, class_indices
from whence.core.inputs import Inputs, check_model
from whence.core.pixel_bounds import Box, checked_pixels
from whence.core.progress import progress
from whence.core.targets import Index, extract_logits
from whence.errors import InputError, ModelError, TargetError
from whence.methods.backward_passes import BackwardStart, backward, gradients_enabled
from whence.methods.batching import automatic_batch_size
from whence.methods.layer_reader import LayerReader

Model = Callable[..., Any]


@dataclass(frozen=True)
class AttackBatch:
    """A batch of samples under attack: their pixels, labels, and target classes if the attack is targeted."""

    reader: LayerReader
    box: Box
    pixels: Tensor
    labels: Tensor  # [N]
    target_classes: Tensor | None  # [N]

    def __getitem__(self, samples: Tensor) -> "AttackBatch":
        targets = None if self.target_classes is None else self.target_classes[samples]
        return replace(self, pixels=self.pixels[samples], labels=self.labels[samples], target_classes=targets)

    def fooled(self, logits: Tensor) -> Tensor:
        """Return whether the attack has succeeded for each sample, `[N]`."""
        predicted = logits.argmax(1)
        return predicted != self.labels if self.target_classes is None else predicted == self.target_classes

    def losses(self, logits: Tensor) -> tuple[Tensor]:
        """Return what the attack maximises: the loss of the label, or minus that of the target class, `[N]`."""
        if self.target_classes is None:
            return (F.cross_entropy(logits, self.labels, reduction="none"),)
        return (-F.cross_entropy(logits, self.target_classes, reduction="none"),)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits `[N, classes]` at the pixels."""
        with torch.no_grad():
            return self._logits(pixels)

    def gradients(self, pixels: Tensor, objectives: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """Return the logits at the pixels and the gradient of each objective `[N]` of them, from one forward pass."""
        with gradients_enabled():
            leaf = pixels.detach().requires_grad_()
            logits = self._logits(leaf)
            if not logits.requires_grad:
                raise ModelError(
                    "the model's output does not depend on the input; a detach(), an integer conversion or "
                    "torch.no_grad() blocks the gradient"
                )
            values = objectives(logits)
        last = len(values) - 1
        found = [backward(BackwardStart.at_values(value), [leaf], keep_graph=k < last)[0] for k, value in enumerate(values)]
        if not all(torch.isfinite(gradient).all() for gradient in found):
            raise ModelError("the gradient of the loss is NaN or infinite; try model.double(), or an attack without gradients")
        return logits.detach(), found

    def _logits(self, pixels: Tensor) -> Tensor:
        logits = class_logits(self.reader, self.box.inputs(pixels))
        check_classes(self.labels, logits.shape[1], "label")
        if self.target_classes is not None:
            check_classes(self.target_classes, logits.shape[1])
        return logits


def class_logits(reader: LayerReader, x: Tensor) -> Tensor:
    """Return the logits `[N, classes]` of a model, checked."""
    logits = extract_logits(reader(x).output, len(x).__eq__, len(x), "wrap it, as in lambda x: model(x)[0]")
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ModelError(f"an attack needs logits [N, classes] of at least two classes, got {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ModelError("the model's output is NaN or infinite and cannot be attacked")
    return logits


def predicted(model: Model, x: Tensor) -> Tensor:
    """Return the predicted classes, `[N]`."""
    return batched_logits(model, x).argmax(1)


@torch.no_grad()
def batched_logits(model: Model, x: Tensor) -> Tensor:
    """Return the logits `[N, classes]`, computed in batches that fit into memory."""
    reader = LayerReader(model, (), output=True)
    return torch.cat([class_logits(reader, part) for part in x.detach().split(max_batch_size(x))])


def max_batch_size(x: Tensor) -> int:
    """Return the number of samples like these that fit into memory."""
    return automatic_batch_size(Inputs((x,), single=True))


def attack_batches(model: Model, inputs: Tensor, labels: Index, target_classes: Index, box: Box) -> Iterator[AttackBatch]:
    """Yield the checked samples in batches that fit into memory."""
    check_model(model)
    inputs = single_input(inputs)
    pixels = checked_pixels(box, inputs)
    reader, count, device = LayerReader(model, (), output=True), len(inputs), inputs.device
    goals = None if target_classes is None else class_indices(target_classes, count, "target", device)
    labels = None if labels is None else class_indices(labels, count, "label", device)
    with progress("attack", count, shown=True) as advance:
        for rows in torch.arange(count, device=device).split(max_batch_size(inputs)):
            part, goal = box.clipped(pixels[rows]), None if goals is None else goals[rows]
            own = predicted(model, box.inputs(part)) if labels is None else labels[rows]
            if goal is not None and (same := goal == own).any():
                raise TargetError(f"the target class of sample {int(rows[same][0])} is its label; choose another class")
            yield AttackBatch(reader, box, part, own, goal)
            advance(len(rows))


def single_input(x: Tensor) -> Tensor:
    """Return the one floating-point tensor `[N, …]` to attack, checked and detached."""
    if isinstance(x, np.ndarray):
        raise InputError(f"inputs must be a tensor, got {type(x).__name__}")
    inputs = Inputs.of(x).detached()
    if not inputs.single or not inputs.explained:
        raise InputError(
            "an attack expects one floating-point tensor [N, …]; wrap a model of several inputs as a function of one"
        )
    return inputs.parts[0]
