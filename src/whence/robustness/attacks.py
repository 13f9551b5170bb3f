"""Adversarial examples: inputs as near as one wishes that a network takes for something else.

An attack is any callable `attack(model, x, y) -> x_adv`. Those here are frozen dataclasses; those of other libraries fit
wherever an attack is asked for.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.errors import InputError, MaskedGradientWarning, ModelError, RuleError, TargetError
from whence.inputs import Inputs, check_model
from whence.methods.batches import automatic_batch_size
from whence.methods.passes import differentiating
from whence.methods.readings import Reader
from whence.progress import progress
from whence.robustness.box import Box
from whence.targets import Index, logits_of

Model = Callable[..., Any]
Attack = Callable[[Model, Tensor, Tensor], Tensor]
Norm = Literal["linf", "l2"]

PIXELS = Box()
TINY = 1e-12
PAST_THE_BOUNDARY = 1e-4  # how far beyond it DeepFool steps, where the overshoot of a small step would round away


def fgsm(model: Model, x: Tensor, y: Index = None, *, epsilon: float, targets: Index = None, box: Box = PIXELS) -> Tensor:
    """Adversarial examples by one step along the sign of the loss's gradient: `FGSM(epsilon)(model, x, y)`.

    >>> x_adv = whence.fgsm(model, x, y, epsilon=0.15)
    """
    return FGSM(epsilon, targets=targets, box=box)(model, x, y)


def pgd(model: Model, x: Tensor, y: Index = None, *, epsilon: float, steps: int = 20, **settings: Any) -> Tensor:
    """Adversarial examples by projected gradient ascent: `PGD(epsilon, steps, **settings)(model, x, y)`.

    >>> x_adv = whence.pgd(model, x, y, epsilon=0.2, steps=40, restarts=5)
    """
    return PGD(epsilon, steps, **settings)(model, x, y)


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent on the cross-entropy: x ← Π(x + α sign ∇L), or α ∇L/‖∇L‖₂ in the ℓ2 ball (Madry et al. 2018).

    >>> x_adv = whence.PGD(epsilon=0.2, steps=40)(model, x, y)          # [N, …] like x, within ε of it and within the box

    `epsilon` is in units of the pixels, before the normalisation that `box` states; `step_size` α is 2.5 ε / steps if not
    given. `y` are the true classes, None for what the model says. With `targets` the loss towards them is minimised instead.
    From the second of the `restarts` on, only those samples are attacked that still withstand. `stop_early` leaves a sample
    where it first is misclassified, which spares passes: for success, not for the largest loss. `momentum` is that of `MIFGSM`.
    """

    epsilon: float
    steps: int = 20
    step_size: float | None = None
    norm: Norm = "linf"
    targets: Index = None
    random_start: bool = True
    restarts: int = 1
    momentum: float = 0.0
    stop_early: bool = False
    box: Box = PIXELS
    seed: int = 0

    def __post_init__(self):
        _require_not_negative(self.epsilon, self.step_size)
        if self.norm not in STEPS:
            raise RuleError(f"norm={self.norm!r}; choose 'linf' or 'l2'")
        if self.steps < 1 or self.restarts < 1:
            raise RuleError(f"steps={self.steps}, restarts={self.restarts}: at least 1 of each is needed")
        if self.restarts > 1 and not self.random_start:
            raise RuleError(f"restarts={self.restarts} without random_start would all be the same")

    @torch.inference_mode(False)
    def __call__(self, model: Model, x: Tensor, y: Index = None) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.cat([self._attacked(case, generator) for case in cases(model, x, y, self.targets, self.box)])

    def _attacked(self, case: "Case", generator: torch.Generator) -> Tensor:
        pixels = self._ascended(case, generator)
        for _ in range(self.restarts - 1):
            (withstanding,) = (~case.fooled(case.logits(pixels))).nonzero(as_tuple=True)
            if len(withstanding):
                pixels[withstanding] = self._ascended(case[withstanding], generator)
        return self.box.inputs(pixels)

    def _ascended(self, case: "Case", generator: torch.Generator) -> Tensor:
        """The pixels that one run ends at, from a start of its own."""
        size = 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size
        pixels, accumulated = case.pixels.clone(), torch.zeros_like(case.pixels)
        if self.random_start:
            pixels = self.box.clipped(pixels + self.epsilon * RANDOM[self.norm](pixels, generator))
        left = torch.arange(len(pixels), device=pixels.device)  # samples still on their way
        for step in range(self.steps):
            here = case[left]
            logits, (gradient,) = here.gradients(pixels[left], here.losses)
            if step == 0:
                _warn_of_masking(gradient)
            if self.stop_early:
                on = ~here.fooled(logits)
                left, here, gradient = left[on], here[on], gradient[on]
                if not len(left):
                    break
            if self.momentum:
                gradient = accumulated[left] * self.momentum + gradient / _norms(gradient, 1)
                accumulated[left] = gradient
            moved = pixels[left] + size * STEPS[self.norm](gradient) - here.pixels
            pixels[left] = self.box.clipped(here.pixels + PROJECTIONS[self.norm](moved, self.epsilon))
        return pixels


@dataclass(frozen=True)
class FGSM:
    """The fast gradient sign method: x + ε sign ∇L (Goodfellow et al. 2015), one step of PGD from x itself.

    >>> x_adv = whence.FGSM(epsilon=0.15)(model, x, y)
    """

    epsilon: float
    norm: Norm = "linf"
    targets: Index = None
    box: Box = PIXELS

    def __post_init__(self):
        self.as_pgd  # noqa: B018 - checks the settings

    @property
    def as_pgd(self) -> PGD:
        return PGD(self.epsilon, 1, self.epsilon, self.norm, self.targets, random_start=False, box=self.box)

    def __call__(self, model: Model, x: Tensor, y: Index = None) -> Tensor:
        return self.as_pgd(model, x, y)


@dataclass(frozen=True)
class MIFGSM:
    """The momentum iterative method: g ← μ g + ∇L/‖∇L‖₁, x ← x + (ε/T) sign g (Dong et al. 2018). Its examples carry over to
    other networks better than those of PGD.

    >>> x_adv = whence.MIFGSM(epsilon=0.1, steps=10)(model, x, y)
    """

    epsilon: float
    steps: int = 10
    momentum: float = 1.0
    targets: Index = None
    box: Box = PIXELS

    def __post_init__(self):
        self.as_pgd  # noqa: B018 - checks the settings

    @property
    def as_pgd(self) -> PGD:
        size = self.epsilon / max(self.steps, 1)
        return PGD(
            self.epsilon, self.steps, size, targets=self.targets, random_start=False, momentum=self.momentum, box=self.box
        )

    def __call__(self, model: Model, x: Tensor, y: Index = None) -> Tensor:
        return self.as_pgd(model, x, y)


@dataclass(frozen=True)
class DeepFool:
    """The smallest perturbation, step by step to the nearest class boundary of the linearised network (Moosavi-Dezfooli et al.
    2016): the class k with least |f_k − f_y| / ‖∇(f_k − f_y)‖, and that far along its gradient.

    >>> x_adv = whence.DeepFool()(model, x, y)
    >>> (x_adv - x).flatten(1).norm(dim=1)                    # how far each sample is from being taken for another class

    `candidates` is how many of the likeliest classes are tried, `overshoot` the share by which the boundary is passed. Where
    `steps` do not suffice, the last point comes back.
    """

    steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02
    norm: Norm = "l2"
    box: Box = PIXELS

    def __post_init__(self):
        if self.norm not in STEPS:
            raise RuleError(f"norm={self.norm!r}; choose 'linf' or 'l2'")
        if self.steps < 1 or self.candidates < 2:
            raise RuleError(f"steps={self.steps}, candidates={self.candidates}: at least 1 step and 2 candidates are needed")

    @torch.inference_mode(False)
    def __call__(self, model: Model, x: Tensor, y: Index = None) -> Tensor:
        return torch.cat([self._attacked(case) for case in cases(model, x, y, None, self.box)])

    def _attacked(self, case: "Case") -> Tensor:
        pixels, moved = case.pixels.clone(), torch.zeros_like(case.pixels)
        left = torch.arange(len(pixels), device=pixels.device)
        for step in range(self.steps):
            here = case[left]
            logits, gradients = here.gradients(pixels[left], partial(self._margins, labels=here.labels))
            slopes = torch.stack(gradients, 1)  # [n, candidates − 1, …]
            if step == 0:
                _warn_of_masking(slopes)
            on = ~here.fooled(logits)
            if not on.any():
                break
            left, here, margins, slopes = left[on], here[on], self._margins(logits[on], here.labels[on]), slopes[on]
            moved[left] += self._to_the_nearest(torch.stack(margins, 1), slopes)
            pixels[left] = self.box.clipped(here.pixels + (1 + self.overshoot) * moved[left])
        return self.box.inputs(pixels)

    def _margins(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """f_k − f_y of the likeliest other classes, each `[n]`."""
        own = logits.gather(1, labels[:, None])
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return (others.topk(min(self.candidates, logits.shape[1]) - 1).values - own).unbind(1)

    def _to_the_nearest(self, margins: Tensor, slopes: Tensor) -> Tensor:
        """The step to the nearest of the boundaries where the margins [n, k] vanish, their slopes being [n, k, …]."""
        dual = slopes.flatten(2).norm(1 if self.norm == "linf" else 2, dim=2) + TINY
        distances = margins.abs() / dual
        nearest = distances.argmin(1)
        rows = torch.arange(len(nearest), device=nearest.device)
        direction = STEPS[self.norm](slopes[rows, nearest])
        return _column(distances[rows, nearest] + PAST_THE_BOUNDARY, direction) * direction


@dataclass(frozen=True)
class Case:
    """Samples under attack: where they start, what they are, and which class they shall be taken for, if it matters which."""

    reader: Reader
    box: Box
    pixels: Tensor
    labels: Tensor  # [N]
    targets: Tensor | None  # [N]

    def __getitem__(self, samples: Tensor) -> "Case":
        targets = None if self.targets is None else self.targets[samples]
        return replace(self, pixels=self.pixels[samples], labels=self.labels[samples], targets=targets)

    def fooled(self, logits: Tensor) -> Tensor:
        """Which samples the attack has succeeded with, `[N]`."""
        predicted = logits.argmax(1)
        return predicted != self.labels if self.targets is None else predicted == self.targets

    def losses(self, logits: Tensor) -> tuple[Tensor]:
        """What the attack makes large: the loss of the label, or less that of the target, `[N]`."""
        if self.targets is None:
            return (F.cross_entropy(logits, self.labels, reduction="none"),)
        return (-F.cross_entropy(logits, self.targets, reduction="none"),)

    def logits(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return self._logits(pixels)

    def gradients(self, pixels: Tensor, objectives: Callable[[Tensor], Sequence[Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """The logits at the pixels, and the gradient of each of the objectives `[N]` of them: one forward pass."""
        with differentiating():
            leaf = pixels.detach().requires_grad_()
            logits = self._logits(leaf)
            if not logits.requires_grad:
                raise ModelError(
                    "the model's output does not depend on the input; a detach, an integer or a no_grad cuts it off"
                )
            values = objectives(logits)
            last = len(values) - 1
            found = [torch.autograd.grad(v.sum(), leaf, retain_graph=k < last)[0] for k, v in enumerate(values)]
        return logits.detach(), found

    def _logits(self, pixels: Tensor) -> Tensor:
        logits = logits_of(self.reader(self.box.inputs(pixels)).output, len(pixels))
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ModelError(f"an attack needs logits [N, classes] of two classes or more, not {tuple(logits.shape)}")
        for kind, classes in (("label", self.labels), ("target", self.targets)):
            if classes is not None and len(classes) and int(classes.max()) >= logits.shape[1]:
                raise TargetError(
                    f"{kind} {int(classes.max())} is out of range: the model has classes 0 to {logits.shape[1] - 1}"
                )
        return logits


def cases(model: Model, x: Tensor, y: Index, targets: Index, box: Box) -> Iterator[Case]:
    """The samples checked, in parts that fit into memory."""
    check_model(model)
    inputs = Inputs.of(x).detached()
    if not inputs.single or not inputs.explained:
        raise InputError("an attack changes one floating-point tensor [N, …]; pass that, and a model that takes it alone")
    pixels = box.pixels(inputs.parts[0])
    box.check(pixels)
    reader, count = Reader(model, (), output=True), len(pixels)
    goals = None if targets is None else classes_of("target", targets, count).to(pixels.device)
    labels = None if y is None else classes_of("label", y, count).to(pixels.device)
    with progress("attack", count, shown=True) as advance:
        for rows in torch.arange(count, device=pixels.device).split(automatic_batch_size(inputs)):
            part, goal = box.clipped(pixels[rows]), None if goals is None else goals[rows]
            case = Case(reader, box, part, rows if labels is None else labels[rows], goal)
            yield _unlike_targets(case if labels is not None else replace(case, labels=case.logits(part).argmax(1)), rows)
            advance(len(rows))


def _unlike_targets(case: Case, rows: Tensor) -> Case:
    """The case, if no sample is to be taken for what it is."""
    if case.targets is not None and (same := case.targets == case.labels).any():
        raise TargetError(f"the target of sample {int(rows[same][0])} is its label; choose another class to be taken for")
    return case


def classes_of(kind: str, given: Index, count: int) -> Tensor:
    """One class a sample, `[N]`."""
    try:
        classes = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(f"{kind}s {given!r} are no class numbers") from error
    if classes.dim() > 1 or (classes.dim() == 1 and len(classes) != count):
        raise TargetError(f"{kind}s of shape {tuple(classes.shape)} for {count} samples; give one class, or one for each")
    if classes.is_floating_point() or classes.dtype == torch.bool or (classes < 0).any():
        raise TargetError(f"{kind}s must be class numbers from 0, not {classes.dtype} {classes.flatten()[:3].tolist()}")
    return classes.long().expand(count)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One number a sample, to be multiplied by something like `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _norms(x: Tensor, order: float) -> Tensor:
    return _column(x.flatten(1).norm(order, dim=1).clamp(min=TINY), x)


def _uniform_in_cube(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator).to(like) * 2 - 1


def _uniform_in_ball(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform directions at radii of u^(1/d)."""
    directions = torch.randn(like.shape, generator=generator).to(like)
    radii = torch.rand(len(like), generator=generator).to(like) ** (1 / like[0].numel())
    return directions / _norms(directions, 2) * _column(radii, like)


STEPS: dict[str, Callable[[Tensor], Tensor]] = {"linf": torch.sign, "l2": lambda g: g / _norms(g, 2)}
PROJECTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linf": lambda moved, epsilon: moved.clamp(-epsilon, epsilon),
    "l2": lambda moved, epsilon: moved * (epsilon / _norms(moved, 2)).clamp(max=1),
}
RANDOM = {"linf": _uniform_in_cube, "l2": _uniform_in_ball}


def _warn_of_masking(gradient: Tensor) -> None:
    blind = int((gradient.flatten(1) == 0).all(1).sum())
    if blind:
        warnings.warn(
            f"the gradient is zero at {blind} of {len(gradient)} samples (masked gradients): the attack sees no direction "
            "there, and that it fails says nothing of robustness; try model.double(), whence.DeepFool, or an attack without "
            "gradients",
            MaskedGradientWarning,
            stacklevel=2,
        )


def _require_not_negative(epsilon: float, step_size: float | None) -> None:
    if not isinstance(epsilon, int | float) or not epsilon >= 0:
        raise RuleError(f"epsilon={epsilon!r}: ε must be a number that is not negative")
    if step_size is not None and not step_size >= 0:
        raise RuleError(f"step_size={step_size!r}: it must not be negative")
