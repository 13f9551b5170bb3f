"""`attack`: the success of an adversarial attack on a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.class_indices import check_classes, class_indices
from whence.core.inputs import check_model
from whence.core.pixel_bounds import UNIT_PIXELS, Box, checked_pixels
from whence.core.result import Result
from whence.core.targets import Index
from whence.core.trees import short_repr
from whence.errors import InputError, RuleError, value_repr
from whence.robustness.attack_methods import FGSM, MIFGSM, PGD, Attack, DeepFool
from whence.robustness.attacked_batch import Model, batched_logits, predicted, single_input

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SAMPLES = 8  # in a figure


@dataclass(frozen=True, repr=False, eq=False)
class AttackResult(Result):
    """Samples, their adversarial examples, and the predictions for both.

    >>> found = whence.attack(model, x, y, whence.attacks.PGD(0.1))
    Attacked by PGD(epsilon=0.1): accuracy 99.8%, under attack at most 5.8% (an upper bound: a stronger attack may find more, …)
    >>> found.inputs[found.success]                 # the adversarial examples

    Accuracy under an attack is an upper bound of the robust accuracy: another attack may succeed where this one fails.

    Args:
        attack: The attack.
        originals: The samples, `[N, …]`.
        inputs: The adversarial examples, `[N, …]`.
        labels: The true classes, `[N]`.
        before: The predicted classes of the samples, `[N]`.
        after: The predicted classes of the adversarial examples, `[N]`.
        target_classes: The target classes of the attack, `[N]`; None if it is untargeted.
        box: Bounds and normalisation of the pixels.
    """

    attack: Attack
    originals: Tensor
    inputs: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor
    target_classes: Tensor | None = None
    box: Box = UNIT_PIXELS

    @property
    def success(self) -> Tensor:
        """Whether each attack succeeded, `[N]`: a correct prediction became wrong, or another one the target class."""
        if self.target_classes is not None:
            return (self.before != self.target_classes) & (self.after == self.target_classes)
        return (self.before == self.labels) & (self.after != self.labels)

    @property
    def accuracy(self) -> float:
        """The share of samples that are classified correctly before the attack."""
        return _fraction(self.before == self.labels)

    @property
    def robust_accuracy(self) -> float:
        """The share of samples classified correctly before and after the attack: an upper bound of the robust accuracy."""
        return _fraction((self.before == self.labels) & (self.after == self.labels))

    @property
    def perturbations(self) -> Tensor:
        """The perturbation of the pixels, like the inputs."""
        return self.box.pixels(self.inputs) - self.box.pixels(self.originals)

    def distances(self, order: float = torch.inf) -> Tensor:
        """Return the norm of each perturbation, `[N]`, in units of the pixels."""
        return self.perturbations.flatten(1).norm(order, dim=1)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each sample: its label, the predictions before and after, and the largest change of a pixel."""
        columns = {
            "label": self.labels,
            "before": self.before,
            "after": self.after,
            "success": self.success,
            "distance": self.distances(),
        }
        return [{"sample": i} | {name: column[i].item() for name, column in columns.items()} for i in range(len(self))]

    def figure(self) -> "Figure":
        """Return a figure with each of the first samples, its adversarial example, and the difference of both."""
        from whence.plotting.image_grid import ImageTile, image_rows

        pixels, changed = self.box.pixels(self.originals), self.box.pixels(self.inputs)
        bounds = (self.box.low, self.box.high) if abs(self.box.low) + abs(self.box.high) < float("inf") else None
        return image_rows(
            [
                [
                    ImageTile(pixels[i], f"class {int(self.before[i])}", bounds),
                    ImageTile(changed[i], f"class {int(self.after[i])}", bounds),
                    ImageTile(changed[i] - pixels[i], f"difference, up to {float(self.distances()[i]):.3g}"),
                ]
                for i in range(min(len(self), MAX_SAMPLES))
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        name = getattr(self.attack, "__name__", None) or short_repr(self.attack)
        reached = "" if self.target_classes is None else f", {_fraction(self.success):.1%} classified as their targets"
        return (
            f"Attacked by {name}: accuracy {self.accuracy:.1%}, under attack at most {self.robust_accuracy:.1%}{reached} "
            "(an upper bound: a stronger attack may find more, for example AutoAttack)"
        )


@check_arguments
def attack(
    model: Model, inputs: Tensor, labels: Index, attack: Attack, *, target_classes: Index = None, box: Box | None = None
) -> AttackResult:
    """Attack samples and return the adversarial examples with the predictions for both.

    >>> whence.attack(model, x, y, whence.attacks.PGD(0.2, n_steps=40, restarts=5))
    >>> whence.attack(model, x, y, lambda model, x, y: torchattacks.CW(model)(x, y))      # any callable attack

    Args:
        model: Any callable from inputs to logits `[N, classes]`; an `nn.Module` must be in eval mode. It is left unchanged:
            gradients of its parameters that an attack of another library modifies are restored.
        inputs: Samples `[N, …]`, as the model takes them.
        labels: True classes, one for each sample or one for all; None for the predicted classes.
        attack: An attack of `whence.attacks`, or any callable of model, inputs and labels `[N]` that returns adversarial
            examples like the inputs.
        target_classes: Classes that the samples should be classified as; by default those of the attack, or any other class.
        box: Bounds and normalisation of the pixels; those of the attack by default.

    Returns:
        An `AttackResult`.

    Raises:
        InputError: If `attack` is not callable, the inputs are not one tensor within the bounds, or the attack returns anything
            else than a finite tensor like the inputs within the bounds.
        TargetError: If a label or target class is out of range.
        RuleError: If target classes are given for `DeepFool`, which is untargeted.
        ModelError: If the model does not return finite logits of at least two classes.
    """
    check_model(model)
    if isinstance(attack, type) or not callable(attack):
        raise InputError(
            f"attack must be a callable of model, x and y, such as whence.attacks.PGD(0.2), got {value_repr(attack)}"
        )
    inputs = single_input(inputs)
    if isinstance(attack, FGSM | PGD | MIFGSM | DeepFool):  # these take both as fields
        attack = attack if box is None else replace(attack, box=box)
        if target_classes is not None:
            if isinstance(attack, DeepFool):
                raise RuleError("DeepFool is untargeted; for target_classes use whence.attacks.PGD")
            attack = replace(attack, target_classes=target_classes)
    aim = getattr(attack, "target_classes", None) if target_classes is None else target_classes
    bounds: Box = getattr(attack, "box", UNIT_PIXELS) if box is None else box
    checked_pixels(bounds, inputs)
    before = batched_logits(model, inputs)
    labels = before.argmax(1) if labels is None else class_indices(labels, len(inputs), "label", inputs.device)
    check_classes(labels, before.shape[1], "label")
    goals = None if aim is None else class_indices(aim, len(inputs), "target", inputs.device)
    with _keep_gradients(model):
        twins = attack(model, inputs.clone(), labels.clone())
    if not isinstance(twins, Tensor) or twins.shape != inputs.shape or not torch.isfinite(twins).all():
        given = f"{tuple(twins.shape)}, {twins.dtype}" if isinstance(twins, Tensor) else type(twins).__name__
        wanted = f"finite adversarial examples like the inputs {tuple(inputs.shape)}, {inputs.dtype}"
        raise InputError(f"the attack returned {given}; it must return {wanted}")
    twins = twins.detach().to(inputs)
    checked_pixels(bounds, twins)
    return AttackResult(attack, inputs, twins, labels, before.argmax(1), predicted(model, twins), goals, bounds)


@contextmanager
def _keep_gradients(model: Model) -> Iterator[None]:
    """Restore the gradients of the parameters on exit."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    before = [p.grad if p.grad is None else p.grad.clone() for p in parameters]
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def _fraction(held: Tensor) -> float:
    return held.double().mean().item()
