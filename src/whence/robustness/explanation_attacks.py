"""Explanations under attack: the change of relevance if the prediction changes, and if only the explanation is attacked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.explain import explain, explain_targets
from whence.core.explanation import Explanation
from whence.core.pixel_bounds import UNIT_PIXELS, Box, checked_pixels
from whence.core.progress import Progress, progress as progressing
from whence.core.result import Result
from whence.core.targets import Index, Logit
from whence.core.trees import short_repr
from whence.methods.integrated_gradients import IntegratedGradients
from whence.methods.registry import Method, resolve_method
from whence.robustness.attack import AttackResult, attack as run_attack
from whence.robustness.attack_methods import Attack, require_non_negative
from whence.robustness.attacked_batch import Model, predicted, single_input

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_HALVINGS = 6  # halvings of the noise that the search starts from
MAX_SAMPLES = 16  # in a figure
MAX_PATCH_SHARE = 0.3  # of an image; the patch size decreases to 1/64 of that


@dataclass(frozen=True, repr=False, eq=False)
class AttackExplanation(Result):
    """Samples and their adversarial examples, with explanations of the predictions for both.

    >>> pair = whence.explain_attack(model, x, y, whence.attacks.PGD(0.15))
    >>> pair.save("attack.png")                     # the four images of each sample
    >>> pair.moved                                  # [N], the share of relevance that moved
    >>> pair.flip.relevance                         # the contribution of each feature's change; adds up to the margin's change

    Args:
        result: The result of the attack.
        before: Explanation of the sample for its predicted class.
        after: Explanation of the adversarial example for its predicted class.
        same: Explanation of the adversarial example for the predicted class of the sample.
        flip: Integrated gradients of f_after − f_before from the sample to the adversarial example.
    """

    result: AttackResult
    before: Explanation
    after: Explanation
    same: Explanation
    flip: Explanation

    @property
    def moved(self) -> Tensor:
        """The share of relevance for the same class that moved, `[N]`, from 0 to 1 (total variation, Σ|R| scaled to 1)."""
        return relevance_shift(self.before.relevance, self.same.relevance)

    def __len__(self) -> int:
        return len(self.result)

    def __repr__(self) -> str:
        words = zip(self.before.target_names(), self.after.target_names(), self.moved.tolist(), strict=True)
        lines = [f"  {before} → {after}: {share:.0%} of the relevance moved" for before, after, share in words]
        return "\n".join([repr(self.result), *lines])

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each sample: its row of the attack, and the share of relevance that moved."""
        return [row | {"relevance_moved": share} for row, share in zip(self.result.table, self.moved.tolist(), strict=True)]

    def with_class_names(self, class_names: Sequence[str]) -> "AttackExplanation":
        """Return the result with names of the classes, for figures."""
        explained = (self.before, self.after, self.same, self.flip)
        before, after, same, flip = (replace(e, class_names=tuple(class_names)) for e in explained)
        return replace(self, before=before, after=after, same=same, flip=flip)

    def figure(self) -> "Figure":
        """Return a figure with each sample and its adversarial example, both with their heatmaps."""
        names = {True: "adversarial example", False: "attack without success"}
        order = 2 if getattr(self.result.attack, "norm", "linf") == "l2" else torch.inf
        norm = "ℓ2" if order == 2 else "ℓ∞"
        found = zip(self.result.success.tolist(), self.result.distances(order).tolist(), strict=True)
        titles = [f"{names[success]}, {norm} {far:.3g} away" for success, far in found]
        return _pairs_figure(self.before, self.after, titles, self.moved)


@check_arguments
def explain_attack(
    model: Model,
    inputs: Tensor,
    labels: Index,
    attack: Attack,
    *,
    method: Method | str | None = None,
    target_classes: Index = None,
    box: Box | None = None,
) -> AttackExplanation:
    """Attack samples, and explain the predictions for the samples and for their adversarial examples.

    >>> whence.explain_attack(model, x, y, whence.attacks.PGD(0.15), method="lrp")

    The features that caused the change of the prediction are explained by integrated gradients from the sample to its
    adversarial example, of the logit of the new class minus that of the old one: they sum to the change of this margin.

    Args:
        model: Any callable from inputs to logits `[N, classes]`.
        inputs: Samples `[N, …]`.
        labels: True classes, one for each sample or one for all; None for the predicted classes.
        attack: An attack, as for `whence.attack`.
        method: A method or its short name; LRP with its default rules if not given.
        target_classes: Classes that the samples should be classified as; by default those of the attack, or any other class.
        box: Bounds and normalisation of the pixels; those of the attack by default.

    Returns:
        An `AttackExplanation`.

    Raises:
        WhenceError: As `whence.attack` and `whence.explain` do.
    """
    found = run_attack(model, inputs, labels, attack, target_classes=target_classes, box=box)
    before = explain(model, found.originals, found.before, method=method)
    after, same = explain_targets(model, found.inputs, [found.after, found.before], method=method)
    path = IntegratedGradients(baselines=found.originals, n_steps=100)
    flip = explain(model, found.inputs, Logit(found.after, rather_than=found.before), method=path)
    return AttackExplanation(found, before, after, same, flip)


@dataclass(frozen=True, repr=False, eq=False)
class ExplanationAttackResult(Result):
    """Samples and modified samples with the same prediction but different explanations.

    >>> found = whence.attack_explanation(model, x, epsilon=0.05, method="gradient_times_input")
    >>> found.moved, found.moved_by_noise           # [N] each

    Args:
        before: Explanation of the samples.
        after: Explanation of the modified samples, for the same target.
        moved_by_noise: The share of relevance that moved by random signs as large as the tolerance of the output allows, `[N]`.
    """

    before: Explanation
    after: Explanation
    moved_by_noise: Tensor

    @property
    def moved(self) -> Tensor:
        """The share of relevance that moved, `[N]`, from 0 to 1."""
        return relevance_shift(self.before.relevance, self.after.relevance)

    def __repr__(self) -> str:
        tiny = torch.finfo(self.before.output.dtype).tiny
        change = (self.after.output - self.before.output).abs() / self.before.output.abs().clamp(min=tiny)
        return (
            f"{short_repr(self.before.method)}: {self.moved.mean():.0%} of the relevance moved, by noise alone "
            f"{self.moved_by_noise.mean():.0%}; the output by {change.mean():.1%}"
        )

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each sample: the output before and after, and the share of relevance that moved."""
        columns = zip(
            self.before.output.tolist(),
            self.after.output.tolist(),
            self.moved.tolist(),
            self.moved_by_noise.tolist(),
            strict=True,
        )
        names = ("output_before", "output_after", "relevance_moved", "relevance_moved_by_noise")
        return [{"sample": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(columns)]

    def figure(self) -> "Figure":
        """Return a figure with each sample and its modified copy, both with their heatmaps."""
        return _pairs_figure(self.before, self.after, ["modified, same output"] * len(self.after), self.moved)


@check_arguments
def attack_explanation(
    model: Model,
    inputs: Tensor,
    target: Index = None,
    *,
    epsilon: float,
    method: Method | str | None = None,
    n_queries: int = 300,
    tolerance: float = 0.05,
    box: Box = UNIT_PIXELS,
    seed: int = 0,
    progress: Progress = True,
) -> ExplanationAttackResult:
    """Search for inputs with the same output but a different heatmap, as a check of a method (Ghorbani et al. 2019).

    >>> whence.attack_explanation(model, x, epsilon=0.05, method="lrp")
    LRP(rules=presets.attn_lrp()): 21% of the relevance moved, by noise alone 11%; the output by 4.5%

    The search maximises the share of relevance that moves, over inputs within ε that have the same predicted class and an
    output that differs by at most the `tolerance`. It needs no gradients of the method, so that any method can be attacked:
    starting from random signs, it accepts patches of ±ε that increase the share, as the Square attack does (Andriushchenko et
    al. 2020), with one explanation of all samples per query. The result is a lower bound of how far relevance can be moved.

    Args:
        model: Any callable from inputs to logits `[N, classes]`.
        inputs: Samples `[N, …]`.
        target: Classes that are explained, one for each sample or one for all; the predicted classes by default.
        epsilon: Largest change of each pixel (ℓ∞), in units of the pixels.
        method: A method or its short name; LRP with its default rules if not given.
        n_queries: Number of queries, each one explanation of all samples.
        tolerance: Largest relative change of the explained output.
        box: Bounds and normalisation of the pixels.
        seed: Random seed.
        progress: False for no progress bar, or a function that is called with (done, total).

    Returns:
        An `ExplanationAttackResult`.

    Raises:
        RuleError: If `epsilon`, `n_queries` or `tolerance` is negative or not finite.
        InputError: If the inputs are not one tensor within the bounds.
    """
    for name, value in (("epsilon", epsilon), ("n_queries", n_queries), ("tolerance", tolerance)):
        require_non_negative(name, value)
    inputs = single_input(inputs)
    method, generator = resolve_method(method), torch.Generator().manual_seed(seed)
    pixels = checked_pixels(box, inputs)
    search = _ExplanationAttack(
        model, explain(model, inputs, target, method=method, progress=False), predicted(model, inputs), tolerance, box
    )
    best, furthest = torch.zeros_like(pixels), torch.zeros_like(search.before.output)
    noise = epsilon * _signs(pixels.shape, generator).to(pixels)
    for _ in range(N_HALVINGS):  # the largest noise within the tolerance of the output
        reached, better = search.further(pixels + noise, furthest)
        better &= furthest == 0
        best[better], furthest[better] = noise[better], reached[better]
        noise = noise / 2
    by_noise = furthest.clone()
    with progressing("attack on the explanation", n_queries, progress) as advance:
        for query in range(n_queries):
            patch, signs = _random_patches(pixels, MAX_PATCH_SHARE * 2.0 ** (-6 * query / n_queries), generator)
            candidate = torch.where(patch, epsilon * signs, best)
            reached, better = search.further(pixels + candidate, furthest)
            best[better], furthest[better] = candidate[better], reached[better]
            advance(1)
    return ExplanationAttackResult(search.before, search.explained(pixels + best), by_noise)


@dataclass(frozen=True)
class _ExplanationAttack:
    """The reference that candidates are compared with: the explanation of the samples, and the predictions for them."""

    model: Model
    before: Explanation
    said: Tensor  # [N]
    tolerance: float
    box: Box

    def explained(self, candidates: Tensor) -> Explanation:
        """Return the explanation of candidates for the target of the samples."""
        inputs = self.box.inputs(self.box.clipped(candidates))
        return explain(self.model, inputs, self.before.target, method=self.before.method, progress=False)

    def further(self, candidates: Tensor, furthest: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share of relevance that moved, and whether it increased within the tolerance of the output, `[N]` each."""
        e, before = self.explained(candidates), self.before
        reached = relevance_shift(before.relevance, e.relevance)
        better = (reached > furthest) & ((e.output - before.output).abs() <= self.tolerance * before.output.abs())
        if better.any():  # a forward pass of these samples only
            better[better.clone()] = predicted(self.model, e.inputs[better]) == self.said[better]
        return reached, better


def _random_patches(pixels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a square of each image, or features of each row, that cover `share` of it, and one random sign per channel."""
    count = len(pixels)
    if pixels.dim() < 3:
        chosen = torch.rand(pixels.shape, generator=generator) < max(share, 1 / pixels[0].numel())
        return chosen.to(pixels.device), _signs(pixels.shape, generator).to(pixels)
    height, width = pixels.shape[-2:]
    side = min(height, width, max(1, round((share * height * width) ** 0.5)))
    inside = torch.ones(count, height, width, dtype=torch.bool)
    for dim, size in ((1, height), (2, width)):
        start = torch.randint(size - side + 1, (count, 1), generator=generator)
        along = (torch.arange(size) >= start) & (torch.arange(size) < start + side)
        inside &= along.unsqueeze(3 - dim)
    inside = inside.view(count, *[1] * (pixels.dim() - 3), height, width)
    return inside.to(pixels.device), _signs((*pixels.shape[:-2], 1, 1), generator).to(pixels)


def _signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(2, tuple(shape), generator=generator) * 2 - 1


def relevance_shift(before: Tensor, after: Tensor) -> Tensor:
    """Return the share of relevance that moved, `[N]`: half the ℓ1 distance, each explanation scaled to Σ|R| = 1."""
    first, second = (_normalize(relevance.detach().flatten(1)) for relevance in (before, after))
    return (first - second).abs().sum(1) / 2


def _normalize(relevance: Tensor) -> Tensor:
    return relevance / relevance.abs().sum(1, keepdim=True).clamp(min=torch.finfo(relevance.dtype).tiny)


def _pairs_figure(before: Explanation, after: Explanation, titles: Sequence[str], moved: Tensor) -> "Figure":
    """Return a figure of the first samples and their modified versions, each with its heatmap."""
    from whence.plotting.adversarial_pairs import PairMember, pairs_figure

    def twin(e: Explanation, i: int, title: str) -> PairMember:
        return PairMember(e.inputs[i], title, e.relevance[i], f"why {e.heading(i)}:  f = {e.output[i]:.4g}")

    drawn = range(min(len(before), MAX_SAMPLES))
    pairs = [(twin(before, i, "input"), twin(after, i, titles[i])) for i in drawn]
    return pairs_figure(pairs, [f"{moved[i]:.0%} of the relevance moved" for i in drawn])
