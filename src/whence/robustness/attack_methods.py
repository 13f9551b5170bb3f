"""Adversarial attacks: search for inputs within a small distance that a network misclassifies.

An attack is any callable `attack(model, x, y) -> x_adv`. The attacks here are frozen dataclasses; attacks of other libraries
can be used wherever an attack is expected.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.pixel_bounds import UNIT_PIXELS, Box
from whence.core.targets import Index
from whence.errors import MaskedGradientWarning, RuleError, value_repr
from whence.robustness.attacked_batch import AttackBatch, Model, attack_batches

Attack = Callable[[Model, Tensor, Tensor], Tensor]
Norm = Literal["linf", "l2"]

TINY = 1e-12
BOUNDARY_MARGIN = 1e-4  # DeepFool steps this far beyond the boundary; the overshoot of a small step would round to zero


@check_arguments
def fgsm(
    model: Model,
    inputs: Tensor,
    labels: Index = None,
    *,
    epsilon: float,
    norm: Norm = "linf",
    target_classes: Index = None,
    box: Box = UNIT_PIXELS,
) -> Tensor:
    """Return adversarial examples by one step along the sign of the loss's gradient: `FGSM(epsilon)(model, x, y)`.

    >>> x_adv = whence.attacks.fgsm(model, x, y, epsilon=0.15)

    Args:
        model: Any callable from inputs to logits `[N, classes]`.
        inputs: Samples `[N, …]`.
        labels: True classes, one for each sample or one for all; the predicted classes if not given.
        epsilon: Radius of the ball, in units of the pixels.
        norm: "linf" or "l2".
        target_classes: Classes that the samples should be classified as; any other class than `labels` if not given.
        box: Bounds and normalisation of the pixels.

    Returns:
        Tensor like the inputs.
    """
    return FGSM(epsilon, norm, target_classes, box)(model, inputs, labels)


@check_arguments
def pgd(model: Model, inputs: Tensor, labels: Index = None, *, epsilon: float, n_steps: int = 20, **settings: Any) -> Tensor:
    """Return adversarial examples by projected gradient ascent: `PGD(epsilon, n_steps, **settings)(model, x, y)`.

    >>> x_adv = whence.attacks.pgd(model, x, y, epsilon=0.2, n_steps=40, restarts=5)

    Args:
        model: Any callable from inputs to logits `[N, classes]`.
        inputs: Samples `[N, …]`.
        labels: True classes, one for each sample or one for all; the predicted classes if not given.
        epsilon: Radius of the ball, in units of the pixels.
        n_steps: Number of steps.
        settings: Further fields of `PGD`.

    Returns:
        Tensor like the inputs.
    """
    return PGD(epsilon, n_steps, **settings)(model, inputs, labels)


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent on the cross-entropy: x ← Π(x + α sign ∇L), or α ∇L/‖∇L‖₂ in the ℓ2 ball (Madry et al. 2018).

    >>> x_adv = whence.attacks.PGD(epsilon=0.2, n_steps=40)(model, x, y)  # [N, …] like x, within ε of it and within the box

    It is called with a model, inputs `[N, …]` and their true classes; without them, or with None, the predicted classes are
    used.

    Args:
        epsilon: Radius ε of the ball in units of the pixels, before the normalisation that `box` states. It holds up to
            rounding of the dtype.
        n_steps: Number of steps.
        step_size: Step size α; 2.5 ε / `n_steps` if None.
        norm: "linf" or "l2".
        target_classes: Classes whose loss is minimised instead, one for each sample or one for all.
        random_start: Whether to start at a random point of the ball.
        restarts: Number of runs. Later runs attack only the samples that are still classified correctly; the run of largest
            loss is returned. More than one needs `random_start`.
        momentum: Momentum μ of the gradient, as in `MIFGSM`.
        stop_early: Whether to stop at the first misclassification of a sample. It saves passes; the loss is then not maximal.
        box: Bounds and normalisation of the pixels.
        seed: Random seed of the starts.

    Raises:
        RuleError: If an argument is invalid.
    """

    epsilon: float
    n_steps: int = 20
    step_size: float | None = None
    norm: Norm = "linf"
    target_classes: Index = None
    random_start: bool = True
    restarts: int = 1
    momentum: float = 0.0
    stop_early: bool = False
    box: Box = UNIT_PIXELS
    seed: int = 0

    def __post_init__(self):
        require_non_negative("epsilon", self.epsilon)
        require_non_negative("step_size", 0.0 if self.step_size is None else self.step_size)
        _require_norm(self.norm)
        _require_count("n_steps", self.n_steps)
        _require_count("restarts", self.restarts)
        if self.restarts > 1 and not self.random_start:
            raise RuleError(
                f"restarts={self.restarts} without random_start would repeat the same attack; set random_start=True"
            )

    @torch.inference_mode(False)
    def __call__(self, model: Model, inputs: Tensor, labels: Index = None) -> Tensor:
        """Return adversarial examples like the inputs."""
        # one generator per batch, so that restarts of one batch do not change the random numbers of the next
        parts = enumerate(attack_batches(model, inputs, labels, self.target_classes, self.box))
        sources = ((case, torch.Generator().manual_seed(self.seed + 1_000_003 * number)) for number, case in parts)
        return torch.cat([self._attacked(case, generator) for case, generator in sources])

    def _attacked(self, case: AttackBatch, generator: torch.Generator) -> Tensor:
        pixels = self._ascended(case, generator, first=True)
        if self.restarts == 1:
            return self.box.inputs(pixels)
        logits = case.logits(pixels)
        for _ in range(self.restarts - 1):
            (left,) = (~case.fooled(logits)).nonzero(as_tuple=True)
            if not len(left):
                break
            here = case[left]
            again = self._ascended(here, generator, first=False)
            reached = here.logits(again)
            better = here.fooled(reached) | (here.losses(reached)[0] > here.losses(logits[left])[0])
            pixels[left[better]], logits[left[better]] = again[better], reached[better]
        return self.box.inputs(pixels)

    def _ascended(self, case: AttackBatch, generator: torch.Generator, first: bool) -> Tensor:
        """Return the pixels at the end of one run from a new start."""
        size = default_step_size(self.epsilon, self.n_steps) if self.step_size is None else self.step_size
        pixels, accumulated = case.pixels.clone(), torch.zeros_like(case.pixels)
        if self.random_start:
            pixels = self.box.clipped(pixels + self.epsilon * RANDOM_STARTS[self.norm](pixels, generator))
        left = torch.arange(len(pixels), device=pixels.device)  # samples still under attack
        for step in range(self.n_steps):
            here = case[left]
            logits, (gradient,) = here.gradients(pixels[left], here.losses)
            if first and step == 0:
                warn_about_masking(gradient)
            if self.stop_early:
                on = ~here.fooled(logits)
                left, here, gradient = left[on], here[on], gradient[on]
                if not len(left):
                    break
            if self.momentum:
                gradient = accumulated[left] * self.momentum + _unit(gradient, 1)
                accumulated[left] = gradient
            moved = pixels[left] + size * STEP_DIRECTIONS[self.norm](gradient)
            pixels[left] = project(here.pixels, moved, self.epsilon, self.norm, self.box)
        return pixels


@dataclass(frozen=True)
class FGSM:
    """The fast gradient sign method: x + ε sign ∇L (Goodfellow et al. 2015), one step of PGD from x itself.

    >>> x_adv = whence.attacks.FGSM(epsilon=0.15)(model, x, y)

    Args:
        epsilon: Radius ε of the ball in units of the pixels.
        norm: "linf" or "l2".
        target_classes: Classes whose loss is minimised instead, one for each sample or one for all.
        box: Bounds and normalisation of the pixels.

    Raises:
        RuleError: If an argument is invalid.
    """

    epsilon: float
    norm: Norm = "linf"
    target_classes: Index = None
    box: Box = UNIT_PIXELS

    def __post_init__(self):
        self.as_pgd()  # checks the arguments

    def as_pgd(self) -> PGD:
        """Return the same attack as a `PGD`."""
        return PGD(self.epsilon, 1, self.epsilon, self.norm, self.target_classes, random_start=False, box=self.box)

    def __call__(self, model: Model, inputs: Tensor, labels: Index = None) -> Tensor:
        """Return adversarial examples like the inputs."""
        return self.as_pgd()(model, inputs, labels)


@dataclass(frozen=True)
class MIFGSM:
    """The momentum iterative method: g ← μ g + ∇L/‖∇L‖₁, x ← x + (ε/T) sign g (Dong et al. 2018).

    >>> x_adv = whence.attacks.MIFGSM(epsilon=0.1, n_steps=10)(model, x, y)

    Its adversarial examples transfer to other networks better than those of PGD.

    Args:
        epsilon: Radius ε of the ℓ∞ ball in units of the pixels.
        n_steps: Number of steps T.
        momentum: Momentum μ.
        target_classes: Classes whose loss is minimised instead, one for each sample or one for all.
        box: Bounds and normalisation of the pixels.

    Raises:
        RuleError: If an argument is invalid.
    """

    epsilon: float
    n_steps: int = 10
    momentum: float = 1.0
    target_classes: Index = None
    box: Box = UNIT_PIXELS

    def __post_init__(self):
        self.as_pgd()  # checks the arguments

    def as_pgd(self) -> PGD:
        """Return the same attack as a `PGD` with momentum."""
        size = self.epsilon / max(self.n_steps, 1)
        return PGD(
            self.epsilon,
            self.n_steps,
            size,
            target_classes=self.target_classes,
            random_start=False,
            momentum=self.momentum,
            box=self.box,
        )

    def __call__(self, model: Model, inputs: Tensor, labels: Index = None) -> Tensor:
        """Return adversarial examples like the inputs."""
        return self.as_pgd()(model, inputs, labels)


@dataclass(frozen=True)
class DeepFool:
    """DeepFool: a small perturbation to the nearest class boundary of the linearised network (Moosavi-Dezfooli et al. 2016).

    >>> x_adv = whence.attacks.DeepFool()(model, x, y)
    >>> (x_adv - x).flatten(1).norm(dim=1)                    # the distance of each sample to a misclassification

    Each step goes to the class k with the smallest |f_k − f_y| / ‖∇(f_k − f_y)‖, by that distance along its gradient. If
    `n_steps` do not suffice, the last point is returned.

    Args:
        n_steps: Largest number of steps.
        candidates: Number of the most likely classes that are considered, including the true class; at least 2.
        overshoot: Share of the distance by which the boundary is passed.
        norm: "linf" or "l2".
        box: Bounds and normalisation of the pixels.

    Raises:
        RuleError: If an argument is invalid.
    """

    n_steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02
    norm: Norm = "l2"
    box: Box = UNIT_PIXELS

    def __post_init__(self):
        _require_norm(self.norm)
        _require_count("n_steps", self.n_steps)
        _require_count("candidates", self.candidates, least=2)

    @torch.inference_mode(False)
    def __call__(self, model: Model, inputs: Tensor, labels: Index = None) -> Tensor:
        """Return adversarial examples like the inputs."""
        return torch.cat([self._attacked(case) for case in attack_batches(model, inputs, labels, None, self.box)])

    def _attacked(self, case: AttackBatch) -> Tensor:
        pixels, moved = case.pixels.clone(), torch.zeros_like(case.pixels)
        left = torch.arange(len(pixels), device=pixels.device)
        for step in range(self.n_steps):
            here = case[left]
            logits, gradients = here.gradients(pixels[left], partial(self._margins, labels=here.labels))
            slopes = torch.stack(gradients, 1)  # [n, candidates − 1, …]
            if step == 0:
                warn_about_masking(slopes)
            on = ~here.fooled(logits)
            if not on.any():
                break
            left, here, margins, slopes = left[on], here[on], self._margins(logits[on], here.labels[on]), slopes[on]
            moved[left] += self._to_the_nearest(torch.stack(margins, 1), slopes)
            pixels[left] = self.box.clipped(here.pixels + (1 + self.overshoot) * moved[left])
        return self.box.inputs(pixels)

    def _margins(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Return f_k − f_y of the most likely other classes, each `[n]`."""
        own = logits.gather(1, labels[:, None])
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return (others.topk(min(self.candidates, logits.shape[1]) - 1).values - own).unbind(1)

    def _to_the_nearest(self, margins: Tensor, slopes: Tensor) -> Tensor:
        """Return the step to the nearest boundary, given the margins `[n, k]` and their gradients `[n, k, …]`."""
        dual = slopes.flatten(2).norm(1 if self.norm == "linf" else 2, dim=2) + TINY
        distances = margins.abs() / dual
        nearest = distances.argmin(1)
        rows = torch.arange(len(nearest), device=nearest.device)
        direction = STEP_DIRECTIONS[self.norm](slopes[rows, nearest])
        return _column(distances[rows, nearest] + BOUNDARY_MARGIN, direction) * direction


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per sample so that it broadcasts with `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _norms(x: Tensor, order: float) -> Tensor:
    return _column(x.flatten(1).norm(order, dim=1).clamp(min=TINY), x)


def _unit(gradient: Tensor, order: float) -> Tensor:
    """Scale the gradient of each sample to norm 1, however small: a confident network's loss can have a gradient of 1e-30."""
    largest = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    scaled = gradient / _column(largest, gradient)
    return scaled / _norms(scaled, order)


def _uniform_in_cube(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator).to(like) * 2 - 1


def _uniform_in_ball(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw points uniformly in the unit ball: uniform directions with radii u^(1/d)."""
    directions = torch.randn(like.shape, generator=generator).to(like)
    radii = torch.rand(len(like), generator=generator).to(like) ** (1 / like[0].numel())
    return directions / _norms(directions, 2) * _column(radii, like)


STEP_DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {"linf": torch.sign, "l2": lambda g: _unit(g, 2)}
PROJECTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linf": lambda moved, epsilon: moved.clamp(-epsilon, epsilon),
    "l2": lambda moved, epsilon: moved * (epsilon / _norms(moved, 2)).clamp(max=1),
}
RANDOM_STARTS = {"linf": _uniform_in_cube, "l2": _uniform_in_ball}


def default_step_size(epsilon: float, n_steps: int) -> float:
    """Return α = 2.5 ε / steps, enough to cross the ball and return (Madry et al. 2018)."""
    return 2.5 * epsilon / n_steps


def project(start: Tensor, moved: Tensor, epsilon: float, norm: Norm, box: Box) -> Tensor:
    """Project the moved pixels onto the ε-ball around the start, and clip them to the box."""
    return box.clipped(start + PROJECTIONS[norm](moved - start, epsilon))


def warn_about_masking(gradient: Tensor) -> None:
    """Warn if the gradients `[n, …]` of some samples are zero everywhere."""
    blind = int((gradient.flatten(1) == 0).all(1).sum())
    if blind:
        warnings.warn(
            f"the gradient is zero at {blind} of {len(gradient)} samples (masked gradients): a failed "
            "attack there is no evidence of robustness; try DeepFool, model.double(), or an attack without gradients",
            MaskedGradientWarning,
            stacklevel=2,
        )


def require_non_negative(name: str, value: float) -> None:
    """Raise a `RuleError` unless the value is a finite number of at least 0."""
    if not isinstance(value, Real) or not 0 <= value < inf:
        raise RuleError(f"{name}={value_repr(value)}: expected a finite number of at least 0")


def _require_count(name: str, value: int, least: int = 1) -> None:
    if not isinstance(value, int) or value < least:
        raise RuleError(f"{name}={value_repr(value)}: expected an int of at least {least}")


def _require_norm(norm: str) -> None:
    if norm not in STEP_DIRECTIONS:
        raise RuleError(f"norm={value_repr(norm)}; choose 'linf' or 'l2'")
