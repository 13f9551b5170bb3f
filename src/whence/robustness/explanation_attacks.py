"""Explanations under attack: how relevance moves when a network is fooled, and whether it moves when nothing else does."""

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

N_HALVINGS = 6  # of the noise that the search starts from
MAX_SAMPLES = 16  # in a figure
MAX_PATCH_SHARE = 0.3  # of a picture; later ones are down to 1/64 of that


@dataclass(frozen=True, repr=False, eq=False)
class AttackExplanation(Result):
    """Samples and their adversarial twins, with heatmaps of what the network says to each.

    >>> pair = whence.explain_attack(model, x, y, whence.attacks.PGD(0.15))
    >>> pair.save("attack.png")                     # the four pictures of each sample
    >>> pair.moved                                  # [N], the share of relevance that lies elsewhere
    >>> pair.flip.relevance                         # what each feature's change did to the decision; adds up to it
    """

    result: AttackResult
    before: Explanation  # of what the network says to the sample
    after: Explanation  # of what it says to the twin
    same: Explanation  # of the twin, for what it says to the sample
    flip: Explanation  # from the sample to the twin: f_after − f_before

    @property
    def moved(self) -> Tensor:
        """How far relevance for the same class moved, `[N]`: 0 not at all, 1 all of it (total variation of |R| = 1)."""
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
        """Each sample, its heatmap, its twin, the twin's heatmap."""
        names = {True: "adversarial twin", False: "twin that does not fool it"}
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

    Which features carried the flip is told by integrated gradients from the sample to its twin, of the logit that came out on
    top rather than the one that was: their sum is what the margin changed by. `target_classes` and `box` are as for `attack`.

    Args:
        model: Any callable from inputs to logits `[N, classes]`.
        inputs: Samples `[N, …]`.
        labels: True classes, one for each sample or one for all; None for the predicted ones.
        attack: An attack, as for `whence.attack`.
        method: A method or its short name; LRP with its default rules if not given.
        target_classes: Classes that the samples should be taken for; None for any other class.
        box: Bounds and normalisation of the pixels; those of the attack by default.

    Returns:
        An `AttackExplanation`.
    """
    found = run_attack(model, inputs, labels, attack, target_classes=target_classes, box=box)
    before = explain(model, found.originals, found.before, method=method)
    after, same = explain_targets(model, found.inputs, [found.after, found.before], method=method)
    path = IntegratedGradients(baselines=found.originals, n_steps=100)
    flip = explain(model, found.inputs, Logit(found.after, rather_than=found.before), method=path)
    return AttackExplanation(found, before, after, same, flip)


@dataclass(frozen=True, repr=False, eq=False)
class ExplanationAttackResult(Result):
    """Samples and twins that a network says the same to, whose explanations differ.

    >>> found = whence.attack_explanation(model, x, epsilon=0.05, method="gradient_times_input")
    >>> found.moved, found.moved_by_noise           # [N] each
    """

    before: Explanation
    after: Explanation
    moved_by_noise: Tensor  # [N], by random signs as large as lets the output stay

    @property
    def moved(self) -> Tensor:
        """How far relevance moved, `[N]`, from 0 to 1."""
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
        """Each sample, its heatmap, its twin, the twin's heatmap."""
        return _pairs_figure(self.before, self.after, ["twin of the same output"] * len(self.after), self.moved)


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
    """Search for inputs with the same output and another heatmap, as a check of a method (Ghorbani et al. 2019).

    >>> whence.attack_explanation(model, x, epsilon=0.05, method="lrp")
    LRP(rules=presets.attn_lrp()): 21% of the relevance moved, by noise alone 11%; the output by 4.5%

    Looks for an `inputs` within ε whose predicted class is the same and whose output differs by no more than `tolerance` of it,
    while relevance moves as far as can be. It needs no gradients of the method, hence takes any: from random signs on, patches
    of ±ε are kept where they help, as in the Square attack (Andriushchenko et al. 2020), one explanation of all samples a
    query. What it finds is a lower bound of how far relevance can be moved.

    Args:
        model: Any callable from inputs to logits `[N, classes]`.
        inputs: Samples `[N, …]`.
        target: Classes that are explained; the predicted ones by default.
        epsilon: Largest change of each pixel (ℓ∞), in units of the pixels.
        method: A method or its short name; LRP with its default rules if not given.
        n_queries: Number of explanations to compute.
        tolerance: Largest relative change of the explained output.
        box: Bounds and normalisation of the pixels.
        seed: Random seed.
        progress: False for no progress bar, or a function that is called with (done, total).

    Returns:
        An `ExplanationAttackResult`.
    """
    for name, value in (("epsilon", epsilon), ("queries", n_queries), ("tolerance", tolerance)):
        require_non_negative(name, value)
    inputs = single_input(inputs)
    method, generator = resolve_method(method), torch.Generator().manual_seed(seed)
    pixels = checked_pixels(box, inputs)
    search = _ExplanationAttack(
        model, explain(model, inputs, target, method=method, progress=False), predicted(model, inputs), tolerance, box
    )
    best, furthest = torch.zeros_like(pixels), torch.zeros_like(search.before.output)
    noise = epsilon * _signs(pixels.shape, generator).to(pixels)
    for _ in range(N_HALVINGS):  # as large as lets the output stay
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
        inputs = self.box.inputs(self.box.clipped(candidates))
        return explain(self.model, inputs, self.before.target, method=self.before.method, progress=False)

    def further(self, candidates: Tensor, furthest: Tensor) -> tuple[Tensor, Tensor]:
        """How far relevance moved, and where that is further than before and the output stayed, `[N]` each."""
        e, before = self.explained(candidates), self.before
        reached = relevance_shift(before.relevance, e.relevance)
        better = (reached > furthest) & ((e.output - before.output).abs() <= self.tolerance * before.output.abs())
        if better.any():  # a forward pass of those alone
            better[better.clone()] = predicted(self.model, e.inputs[better]) == self.said[better]
        return reached, better


def _random_patches(pixels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A square of each picture, or random features of each row, that make up `share` of it; and signs, one a channel there."""
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
    """Half the ℓ1 distance of relevance, each scaled to Σ|R| = 1, `[N]`: the share of it that lies elsewhere."""
    first, second = (_normalize(relevance.detach().flatten(1)) for relevance in (before, after))
    return (first - second).abs().sum(1) / 2


def _normalize(relevance: Tensor) -> Tensor:
    return relevance / relevance.abs().sum(1, keepdim=True).clamp(min=torch.finfo(relevance.dtype).tiny)


def _pairs_figure(before: Explanation, after: Explanation, titles: Sequence[str], moved: Tensor) -> "Figure":
    """The first samples and their twins, each with its heatmap."""
    from whence.plotting.adversarial_pairs import PairMember, pairs_figure

    def twin(e: Explanation, i: int, title: str) -> PairMember:
        return PairMember(e.inputs[i], title, e.relevance[i], f"why {e.heading(i)}:  f = {e.output[i]:.4g}")

    drawn = range(min(len(before), MAX_SAMPLES))
    pairs = [(twin(before, i, "input"), twin(after, i, titles[i])) for i in drawn]
    return pairs_figure(pairs, [f"{moved[i]:.0%} of this lies elsewhere for the twin" for i in drawn])
