"""attack(): what an attack achieves against a network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import InputError
from whence.explanation import described
from whence.inputs import Inputs, check_model
from whence.methods.batches import automatic_batch_size
from whence.methods.readings import Reader
from whence.robustness.attacks import PIXELS, Attack, Model, classes_of
from whence.robustness.box import Box
from whence.targets import Index, logits_of


@dataclass(frozen=True, repr=False, eq=False)
class Attacked:
    """Samples, their adversarial twins, and what the network says to both.

    >>> found = whence.attack(model, x, y, whence.PGD(0.1))
    Attacked by PGD(epsilon=0.1): accuracy 99.6%, under attack at most 5.6% (an upper bound: a stronger attack may find more, …)
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
    box: Box = PIXELS

    @property
    def success(self) -> Tensor:
        """Which samples were right before and are no longer, or are taken for their targets, `[N]`."""
        reached = self.after != self.labels if self.targets is None else self.after == self.targets
        return (self.before == self.labels) & reached

    @property
    def accuracy(self) -> float:
        return _share(self.before == self.labels)

    @property
    def robust_accuracy(self) -> float:
        """The share right before and after the attack: an upper bound of the robust accuracy."""
        return _share((self.before == self.labels) & (self.after == self.labels))

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
        return (
            f"Attacked by {described(self.attack)}: accuracy {self.accuracy:.1%}, under attack at most "
            f"{self.robust_accuracy:.1%} (an upper bound: a stronger attack may find more, for example AutoAttack)"
        )


def attack(model: Model, x: Tensor, y: Index, by: Attack) -> Attacked:
    """Attack samples, and see what comes of it.

    >>> whence.attack(model, x, y, whence.PGD(0.2, steps=40, restarts=5))
    >>> whence.attack(model, x, y, lambda model, x, y: torchattacks.CW(model)(x, y))      # any callable attack

    `y` are the true classes of the samples, one each or one for all, None for what the model says; `by` is an attack of whence,
    or any callable of model, `x` and `y` `[N]` that returns twins like `x`.
    """
    check_model(model)
    if not callable(by):
        raise InputError(f"an attack must be callable, as whence.PGD(0.2) is, not {by!r}")
    before = predicted(model, x)
    labels = before if y is None else classes_of("label", y, len(x)).to(x.device)
    twins = by(model, x, labels)
    if not isinstance(twins, Tensor) or twins.shape != x.shape:
        given = tuple(twins.shape) if isinstance(twins, Tensor) else type(twins).__name__
        raise InputError(f"the attack returned {given} for inputs of shape {tuple(x.shape)}; it must return twins like them")
    twins = twins.detach().to(x)
    aim = getattr(by, "targets", None)
    targets = None if aim is None else classes_of("target", aim, len(x)).to(x.device)
    return Attacked(by, x.detach(), twins, labels, before, predicted(model, twins), targets, getattr(by, "box", PIXELS))


@torch.no_grad()
def predicted(model: Model, x: Tensor) -> Tensor:
    """The classes that a model says, `[N]`, in parts that fit into memory."""
    reader, size = Reader(model, (), output=True), automatic_batch_size(Inputs((x,), single=True))
    return torch.cat([logits_of(reader(part).output, len(part)).argmax(1) for part in x.detach().split(size)])


def _share(held: Tensor) -> float:
    return held.double().mean().item()
