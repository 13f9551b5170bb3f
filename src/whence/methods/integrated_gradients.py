"""Gradients integrated along straight paths from a baseline to the input: integrated and expected gradients."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from whence.core.explanation import Explanation
from whence.core.inputs import Inputs
from whence.core.trees import Tree
from whence.errors import ConservationWarning, RuleError, value_repr
from whence.lrp.engine.conservation import MAX_GAP, Conservation
from whence.lrp.engine.embeddings import NO_POSITION, AlterLookup, BaselineOutsideVocabulary, Lookup
from whence.lrp.torch_compat.deferred_checks import check_holds, known_true
from whence.methods import feature_masks
from whence.methods.batching import rows_are_independent, run_batched
from whence.methods.forward_backward import Task, make_explanation, reject_layers, sum_relevance, target_values
from whence.methods.gradients import input_gradients
from whence.methods.running_statistics import RunningMoments
from whence.methods.token_baselines import ZERO_VECTORS, config_baselines, token_baselines

Quadrature = Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


@dataclass(frozen=True, eq=False)
class IntegratedGradients:
    """Integrated gradients, R_i = (x_i − x̃_i) ∫₀¹ ∂f/∂x_i(x̃ + α (x − x̃)) dα (Sundararajan et al. 2017, eq. 1).

    >>> e = whence.explain(model, x, target=3, method=whence.IntegratedGradients(n_steps=50))
    >>> e.conservation.gap          # f(x) − f(x̃) − ΣR, [N]: the error of the quadrature

    Args:
        baselines: Baseline x̃: a number, a tensor shaped like the input or `[1, …]`, or a tuple or dict of them structured like
            the inputs. 0 by default. For token ids, an id; by default the mask token, or else the padding token, if the
            tokenizer or the model's `config` names one, for all tokens that do not begin, end or separate texts. Without one,
            the zero vector in place of each embedding, which a note says.
        n_steps: Number of points at which the gradient is evaluated, at least 1, or 2 for "riemann_trapezoid".
        method: Quadrature: "gausslegendre", which is exact for polynomials, "riemann_left", "riemann_right", "riemann_middle"
            or "riemann_trapezoid".
        batch_size: Number of points that the model evaluates at once; chosen by the size of the input by default.
        tokenizer: Tokenizer that names the default baseline of token ids; `explain(…, tokenizer=…)` passes it.
    Raises:
        RuleError: Unknown `method`, or too few steps for it.
    """

    baselines: feature_masks.Baselines = None
    n_steps: int = 50
    method: Quadrature = "gausslegendre"
    batch_size: int | None = None
    tokenizer: Any = field(default=None, repr=False)

    name: ClassVar[str] = "integrated_gradients"

    def __post_init__(self):
        if self.method not in QUADRATURES:
            raise RuleError(f"method={value_repr(self.method)}; choose from {', '.join(QUADRATURES)}")
        if not isinstance(self.n_steps, int) or self.n_steps < 1 + (self.method == "riemann_trapezoid"):
            raise RuleError(
                f"n_steps={value_repr(self.n_steps)} is too few for method={value_repr(self.method)}; expected an int of at "
                "least "
                f"{1 + (self.method == 'riemann_trapezoid')}"
            )

    def explanations(self, task: Task) -> Iterator[Explanation]:
        starts = feature_masks.baselines(self.baselines, task.inputs)
        tokens: dict[int, Tensor] = {}
        if self.baselines is None:
            named = token_baselines(self.tokenizer, task.model, task.inputs)
            tokens = named or config_baselines(task.model, task.inputs)
        try:
            yield from self._from(task, starts | tokens)
        except BaselineOutsideVocabulary:  # raised before the first explanation
            if not tokens:
                raise
            yield from self._from(task, starts)

    def _from(self, task: Task, starts: dict[int, Tensor]) -> Iterator[Explanation]:
        note = ZERO_VECTORS if task.inputs.ids and self.baselines is None and not starts.keys() & task.inputs.ids.keys() else ""
        alphas, weights = (torch.from_numpy(part) for part in QUADRATURES[self.method](self.n_steps))
        which = torch.zeros(self.n_steps, dtype=torch.long)
        paths = StraightPaths(task.inputs, {i: start[None] for i, start in starts.items()}, which, alphas)
        return _integrate(self, task, paths, weights, note)


@dataclass(frozen=True, eq=False)
class ExpectedGradients:
    """Expected gradients: integrated gradients averaged over baselines drawn from a background (Erion et al. 2021, eq. 3).

    >>> e = whence.explain(model, x, target=3, method=whence.ExpectedGradients(background=x_train[:100]))
    >>> e.standard_errors           # like x

    Each of the `n_samples` gradients is taken at a different point on the straight path from one of the background samples to
    the input. ΣR = f(x) − mean f(background) up to `conservation.gap`. The draws are the same for every sample.

    Args:
        background: Baseline samples `[B, …]`, structured like the inputs.
        n_samples: Number of gradients for each sample, at least 2.
        seed: Random seed of the draws.
        batch_size: Number of points that the model evaluates at once; chosen by the size of the input by default.
    Raises:
        RuleError: `n_samples` is below 2.
    """

    background: Tree
    n_samples: int = 200
    seed: int = 0
    batch_size: int | None = None

    name: ClassVar[str] = "expected_gradients"

    def __post_init__(self):
        if not isinstance(self.n_samples, int) or self.n_samples < 2:
            raise RuleError(f"n_samples={value_repr(self.n_samples)}; expected an int of at least 2")

    def explanations(self, task: Task) -> Iterator[Explanation]:
        starts = {i: b[:, None] for i, b in feature_masks.background(self.background, task.inputs).items()}
        random, n = torch.Generator().manual_seed(self.seed), self.n_samples
        alphas = (torch.randperm(n, generator=random) + torch.rand(n, generator=random, dtype=torch.float64)) / n
        count = len(next(iter(starts.values())))
        which = torch.cat([torch.randperm(count, generator=random) for _ in range(-(-n // count))])[:n]
        return _integrate(
            self, task, StraightPaths(task.inputs, starts, which, alphas), torch.full((n,), 1 / n, dtype=torch.float64)
        )


@dataclass(frozen=True)
class StraightPaths:
    """The points x̃ + α (x − x̃) of all samples, with one baseline and one α for each round."""

    inputs: Inputs
    starts: dict[int, Tensor]  # part -> [baselines, 1 or N, …]
    which: Tensor  # [rounds], the baseline of each
    alphas: Tensor  # [rounds]

    def points(self, rounds: slice) -> tuple[int, dict[int, Tensor], dict[int, Tensor]]:
        """Return the number of rounds, and the points and differences x − x̃ of floating-point parts, `[rounds · N, …]`."""
        alphas, which = self.alphas[rounds], self.which[rounds]
        points, differences = {}, {}
        for i in self.inputs.explained:
            x, start = self.inputs.parts[i], self.starts[i][which]
            difference = x - start
            alpha = alphas.to(x).view(-1, *[1] * x.dim())
            points[i], differences[i] = (start + alpha * difference).flatten(0, 1), difference.flatten(0, 1)
        return len(which), points, differences

    def alter(self, rounds: slice) -> AlterLookup | None:
        """Return a function that moves the embeddings of token ids along the path and stores their differences x − x̃."""
        ids = self.inputs.ids
        if not ids:
            return None
        alphas, which = self.alphas[rounds], self.which[rounds]
        device = next(iter(ids.values())).device
        alpha_at = torch.cat([self._alphas(t, alphas) for t in ids.values()]).to(device)
        start_at = torch.cat([self._start_ids(i, which).flatten().to(device) for i in ids])

        def alter(lookup: Lookup) -> Lookup:
            alpha, start = alpha_at[lookup.places].to(lookup.vectors), start_at[lookup.places]
            own = ((lookup.places == NO_POSITION) | alpha.isnan())[..., None]  # these embeddings are not moved
            begin = torch.where(own, lookup.vectors, lookup.find(start.clamp(min=0)) * (start >= 0)[..., None])
            difference = lookup.vectors - begin
            vectors = torch.where(own, begin, begin + alpha[..., None] * difference)
            return replace(lookup, vectors=vectors, difference=difference)

        return alter

    def _alphas(self, ids: Tensor, alphas: Tensor) -> Tensor:
        """Return α for every id position; NaN for ids shared by all samples, which are not repeated by round."""
        return (
            alphas.repeat_interleave(ids.numel()) if self.inputs.of_batch(ids) else alphas.new_full((ids.numel(),), torch.nan)
        )

    def _start_ids(self, i: int, which: Tensor) -> Tensor:
        """Return the baseline ids `[rounds, N, …]`; −1 stands for the zero vector."""
        ids = self.inputs.ids[i]
        start = self.starts[i][which] if i in self.starts else torch.tensor(-1)
        return start.expand(len(which), *ids.shape) if self.inputs.of_batch(ids) else torch.full_like(ids, -1)


def _integrate(method: Any, task: Task, paths: StraightPaths, weights: Tensor, note: str = "") -> Iterator[Explanation]:
    reject_layers(method, task)
    answers = target_values(task)
    targets = [target for _, target in answers]
    outputs = _baseline_outputs(method, task, paths, targets)
    totals = [RunningMoments() for _ in targets]

    def scores(rounds: slice) -> list[dict[int, Tensor]]:
        """Return the contributions of each round to each target's relevance, `[rounds, N, …]`."""
        times, points, differences = paths.points(rounds)
        moved = task.moved(times, points, targets, paths.alter(rounds))
        found = []
        for at in input_gradients(moved):
            inputs = {i: (differences[i], g) for i, (_, g) in at.inputs.items()}
            looked_up = [(found.difference, g) for found, (_, g) in zip(at.lookups.found, at.looked_up, strict=True)]
            rows = replace(at, inputs=inputs, looked_up=looked_up).scores(torch.mul)
            found.append({i: s.view(times, -1, *s.shape[1:]) for i, s in rows.items()})
        return found

    for found in run_batched(method, task, len(weights), scores, method.batch_size):
        for total, of_target in zip(totals, found, strict=True):
            total.add(of_target, weights)
    sampled = isinstance(method, ExpectedGradients)
    for (output, target), total, baseline in zip(answers, totals, outputs, strict=True):
        relevance = total.sums()
        account = Conservation(output, sum_relevance(relevance, output.shape[0]), baseline=baseline)
        if not sampled:
            size = sum_relevance({i: r.abs() for i, r in relevance.items()}, output.shape[0])
            _warn_if_incomplete(account, size, task, method.n_steps)
        errors = {"standard_errors": task.inputs.together(total.standard_errors())} if sampled else {}
        yield make_explanation(method, task, output, target, relevance, account, note=note, **errors)


def _warn_if_incomplete(account: Conservation, size: Tensor, task: Task, n_steps: int) -> None:
    """Warn of a gap that is large compared with f(x) − f(x̃), and not small compared with Σ|R|, `size`."""
    change = (account.output - account.baseline).abs() if account.baseline is not None else account.output.abs()
    missing = account.gap.abs() > torch.maximum(MAX_GAP * change, MAX_GAP / 40 * size)
    if not known_true(~missing) and len(missing) > 1 and not rows_are_independent(task):  # these account for each other
        missing = missing & (account.gap.sum().abs() > MAX_GAP / 10 * size.sum())
    if not check_holds(~missing):
        if task.inputs.explained:
            other = "the mean of many inputs as baselines, data.mean(0, keepdim=True)"
        else:
            other = "baselines={'input_ids': tokenizer.pad_token_id} for token ids, or the id of another neutral token"
        warnings.warn(
            f"integrated gradients do not add up to f(x) − f(baseline) = {float(change[missing].max()):.3g}: "
            f"{float(account.gap[missing].abs().max()):.3g} is missing. Either n_steps={n_steps} are too few, or the model is "
            f"not smooth at the baseline, as LayerNorm, InstanceNorm and RMSNorm are not at zero; then pass {other}",
            ConservationWarning,
            stacklevel=2,
        )


def _baseline_outputs(method: Any, task: Task, paths: StraightPaths, targets: list) -> list[Tensor]:
    """Return the mean output at the baselines, `[N]` for each target."""
    which = paths.which.unique()
    starts = replace(paths, which=which, alphas=torch.zeros(len(which), dtype=torch.float64))

    def outputs(rounds: slice) -> Tensor:
        times, points, _ = starts.points(rounds)
        found = target_values(task.moved(times, points, targets, starts.alter(rounds)))
        return torch.stack([value.view(times, -1) for value, _ in found])

    silent = replace(task, progress=False)
    found = torch.cat(list(run_batched(method, silent, len(which), outputs, method.batch_size)), 1)
    share = torch.bincount(paths.which)[which].to(found) / len(paths.which)
    return list(torch.einsum("r,trn->tn", share, found))


def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


def _riemann(offset: float) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    return lambda n: ((np.arange(n) + offset) / n, np.full(n, 1 / n))


def _trapezoid(n: int) -> tuple[np.ndarray, np.ndarray]:
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


QUADRATURES: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "gausslegendre": _gauss_legendre,
    "riemann_left": _riemann(0),
    "riemann_right": _riemann(1),
    "riemann_middle": _riemann(0.5),
    "riemann_trapezoid": _trapezoid,
}
