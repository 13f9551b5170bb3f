"""attack(): what an attack achieves against a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from whence.core.inputs import check_model
from whence.core.pixel_bounds import UNIT_PIXELS, Box, checked_pixels
from whence.core.targets import Index, check_classes, class_indices
from whence.core.trees import short_repr
from whence.errors import InputError, RuleError
from whence.robustness.attack_methods import FGSM, MIFGSM, PGD, Attack, DeepFool
from whence.robustness.attacked_batch import Model, batched_logits, predicted, single_input


@dataclass(frozen=True, repr=False, eq=False)
class AttackResult:
    """Samples, their adversarial twins, and what the network says to both.

    >>> found = whence.attack(model, x, y, whence.PGD(0.1))
    Attacked by PGD(epsilon=0.1): accuracy 99.8%, under attack at most 5.8% (an upper bound: a stronger attack may find more, …)
    >>> found.inputs[found.success]                 # the adversarial examples

    Accuracy under an attack bounds the robust accuracy from above: what this attack did not find, another may.
    """

    attack: Attack
    originals: Tensor  # [N, …]
    inputs: Tensor  # [N, …], the twins
    labels: Tensor  # [N]
    before: Tensor  # [N], predicted classes
    after: Tensor  # [N]
    targets: Tensor | None = None  # [N], the classes to be taken for, if it matters
    box: Box = UNIT_PIXELS

    @property
    def success(self) -> Tensor:
        """Which samples were right before and are no longer, `[N]`; with targets, which were not taken for them and are."""
        if self.targets is not None:
            return (self.before != self.targets) & (self.after == self.targets)
        return (self.before == self.labels) & (self.after != self.labels)

    @property
    def accuracy(self) -> float:
        return _fraction(self.before == self.labels)

    @property
    def robust_accuracy(self) -> float:
        """The share right before and after the attack: an upper bound of the robust accuracy."""
        return _fraction((self.before == self.labels) & (self.after == self.labels))

    @property
    def perturbations(self) -> Tensor:
        """What was added to the pixels, like the inputs."""
        return self.box.pixels(self.inputs) - self.box.pixels(self.originals)

    def distances(self, order: float = torch.inf) -> Tensor:
        """The norm of each perturbation, `[N]`, in units of the pixels."""
        return self.perturbations.flatten(1).norm(order, dim=1)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        name = getattr(self.attack, "__name__", None) or short_repr(self.attack)
        reached = "" if self.targets is None else f", {_fraction(self.success):.1%} taken for their targets"
        return (
            f"Attacked by {name}: accuracy {self.accuracy:.1%}, under attack at most {self.robust_accuracy:.1%}{reached} "
            "(an upper bound: a stronger attack may find more, for example AutoAttack)"
        )


def attack(model: Model, x: Tensor, y: Index, by: Attack, *, targets: Index = None, box: Box | None = None) -> AttackResult:
    """Attack samples, and see what comes of it.

    >>> whence.attack(model, x, y, whence.PGD(0.2, steps=40, restarts=5))
    >>> whence.attack(model, x, y, lambda model, x, y: torchattacks.CW(model)(x, y))      # any callable attack

    `y` are the true classes of the samples, one each or one for all, None for what the model says. `by` is an attack of whence
    or any callable of model, `x` and `y` `[N]` that returns twins like `x`. `targets` and `box` may be the attack's own, or are
    given here. The model is left as it was, also by attacks of other libraries that leave gradients on its weights.
    """
    check_model(model)
    if isinstance(by, type) or not callable(by):
        raise InputError(f"an attack is a callable of model, x and y, such as whence.PGD(0.2), not {by!r}")
    x = single_input(x)
    if isinstance(by, FGSM | PGD | MIFGSM | DeepFool):  # which is to know of both
        by = by if box is None else replace(by, box=box)
        if targets is not None:
            if isinstance(by, DeepFool):
                raise RuleError("DeepFool goes to the nearest class, whichever that is; with targets choose whence.PGD")
            by = replace(by, targets=targets)
    aim = getattr(by, "targets", None) if targets is None else targets
    bounds: Box = getattr(by, "box", UNIT_PIXELS) if box is None else box
    checked_pixels(bounds, x)
    before = batched_logits(model, x)
    labels = before.argmax(1) if y is None else class_indices(y, len(x), "label", x.device)
    check_classes(labels, before.shape[1], "label")
    goals = None if aim is None else class_indices(aim, len(x), "target", x.device)
    with _keep_gradients(model):
        twins = by(model, x.clone(), labels.clone())
    if not isinstance(twins, Tensor) or twins.shape != x.shape or not torch.isfinite(twins).all():
        given = f"{tuple(twins.shape)}, {twins.dtype}" if isinstance(twins, Tensor) else type(twins).__name__
        wanted = f"finite twins like the inputs {tuple(x.shape)}, {x.dtype}"
        raise InputError(f"the attack returned {given}; it must return {wanted}")
    twins = twins.detach().to(x)
    checked_pixels(bounds, twins)
    return AttackResult(by, x, twins, labels, before.argmax(1), predicted(model, twins), goals, bounds)


@contextmanager
def _keep_gradients(model: Model) -> Iterator[None]:
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    before = [p.grad if p.grad is None else p.grad.clone() for p in parameters]
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def _fraction(held: Tensor) -> float:
    return held.double().mean().item()
