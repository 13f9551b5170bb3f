"""Shapley values of the features of a model's inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from whence.core.explanation import Explanation
from whence.core.progress import progress
from whence.core.trees import Tree
from whence.errors import RuleError
from whence.lrp.engine.conservation import Conservation
from whence.methods import feature_masks, shapley_values
from whence.methods.batching import rows_are_independent, run_batched
from whence.methods.feature_masks import FeatureGroups
from whence.methods.forward_backward import Task, make_explanation, reject_layers
from whence.methods.model_queries import ModelQueries
from whence.methods.shapley_values import BudgetError, Estimator, InteractionIndex, ShapleyValues


@dataclass(frozen=True, eq=False)
class Shapley:
    """Shapley values of features: the mean marginal contribution of a feature to coalitions of the others (Shapley 1953).

    >>> e = whence.explain(model, x, target=3, method=whence.Shapley())                           # up to 11 features: exact
    >>> e = whence.explain(model, x, target=3, method=whence.Shapley(feature_mask=whence.patches(x, 16)))
    >>> e = whence.explain(model, x, target=3, method=whence.Shapley(background=x_train[:50], interactions="sii"))
    >>> e.standard_errors, e.interactions

    ΣR = f(x) − f(baseline), where each feature is counted once. Features that equal their replacement have the value zero and
    cost no model evaluations.

    Args:
        baselines: Values that replace absent features, as in `IntegratedGradients`; 0 by default. For token ids an id must be
            given.
        background: Samples `[B, …]`, structured like the inputs. Absent features are replaced by those of every background
            sample in turn, and the outputs are averaged. Give either `baselines` or `background`.
        feature_mask: Feature number of every entry, as in `FeatureAblation`; by default every entry is a feature.
        estimator: "exact" evaluates each of the 2^n coalitions once, for at most 20 features. "regression" evaluates pairs of
            complementary coalitions sampled by leverage scores (Musco and Witter 2025) and fits a regression under a prior over
            higher orders. "permutation" evaluates random orders and their reverses. The default is "exact" where that is within
            the budget, else "regression".
        budget: Number of model evaluations for each sample; 4n + 2048 coalitions by default.
        interactions: Index of pairwise interactions: "sii" (Grabisch and Roubens 1999) or "stii" (Sundararajan et al. 2020);
            estimating them from a sample takes n (n − 1) + 2 coalitions. None by default: no interactions.
        seed: Random seed of the sampled coalitions.
        batch_size: Number of samples that the model evaluates at once; chosen by the size of the input by default.
    Raises:
        RuleError: Both `baselines` and `background` are given, or `estimator`, `budget`, `interactions` or `seed` is invalid.
    """

    baselines: feature_masks.Baselines = None
    background: Tree = None
    feature_mask: Tree = None
    estimator: Estimator | None = None
    budget: int | None = None
    interactions: InteractionIndex | None = None
    seed: int = 0
    batch_size: int | None = None

    name: ClassVar[str] = "shapley"

    def __post_init__(self):
        shapley_values.check_settings(self.estimator, self.interactions, self.budget, self.seed)
        if self.baselines is not None and self.background is not None:
            raise RuleError("give baselines or a background to replace absent features, not both")

    def explanations(self, task: Task) -> Iterator[Explanation]:
        reject_layers(self, task)
        game = FeatureGame.of(self, task)
        task = game.task
        outputs, count = game.ask.outputs, game.players.count
        shares, spreads = outputs.new_zeros(2, *outputs.shape, count)
        pairs = None if self.interactions is None else outputs.new_zeros(*outputs.shape, count, count)
        empty, sampled = outputs.clone(), False
        for samples, playing, found in self._found(game):
            at = (slice(None), samples[:, None], playing)
            shares[at], empty[:, samples] = game.by_target(found.values), game.by_target(found.empty)
            if found.standard_errors is not None:
                spreads[at], sampled = game.by_target(found.standard_errors), True
            if pairs is not None and found.interactions is not None:
                pairs[:, samples[:, None, None], playing[:, None], playing] = game.by_target(found.interactions)
        for t, target in enumerate(game.ask.targets):
            account = Conservation(outputs[t], shares[t].sum(1), baseline=empty[t])
            scores, errors = (feature_masks.cast_like(task.inputs, game.players.spread(part[t])) for part in (shares, spreads))
            yield make_explanation(
                self, task, outputs[t], target, scores, account,
                standard_errors=task.inputs.together(errors) if sampled else None,
                interactions=None if pairs is None else pairs[t], feature_mask=game.players.mask(task.inputs),
            )  # fmt: skip

    def _found(self, game: "FeatureGame") -> Iterator[tuple[Tensor, Tensor, ShapleyValues]]:
        """Yield samples with the same active features, the numbers of these features, and their Shapley values."""
        active = game.active
        if len(active.unique(dim=0)) > 1:
            independent = rows_are_independent(game.task)
            game = replace(game, task=replace(game.task, rows_are_independent=independent))
            if not independent or any(callable(target) for target in game.ask.targets):  # these need the whole batch
                active = active.any(0).expand_as(active)
        patterns, which = active.unique(dim=0, return_inverse=True)
        with progress(self.name, len(which), len(patterns) > 1 and game.task.progress) as advance:
            for i, pattern in enumerate(patterns):
                samples, playing = (which == i).nonzero()[:, 0], pattern.nonzero()[:, 0]
                if len(playing):
                    yield samples, playing, self._values(game.among(samples, playing, alone=len(patterns) == 1))
                advance(len(samples))

    def _values(self, game: "FeatureGame") -> ShapleyValues:
        each = game.replacements
        within = None if self.budget is None else self.budget // each
        try:
            return shapley_values.estimate(game, len(game.playing), self.estimator, within, self.interactions, self.seed)
        except BudgetError as error:
            given = f"budget={self.budget}" if self.budget is not None else "the default budget"
            raise RuleError(f"{given} is below {error.least * each}: {error} at {each} model evaluations each") from None


@dataclass(frozen=True, eq=False)
class FeatureGame:
    """The cooperative game of input features: a coalition's value is the output with all other features replaced."""

    method: Shapley
    task: Task
    ask: ModelQueries
    players: FeatureGroups
    absent: dict[int, Tensor]  # part -> [replacements, 1 or N, …]
    playing: Tensor  # the numbers of the features that are players; the others are always present

    @classmethod
    def of(cls, method: Shapley, task: Task) -> "FeatureGame":
        ask = ModelQueries(task)
        task = ask.task
        if method.background is None:
            absent = {i: b[None] for i, b in feature_masks.required_baselines(method.baselines, task.inputs).items()}
        else:
            absent = {i: b[:, None] for i, b in feature_masks.background(method.background, task.inputs).items()}
        players = FeatureGroups.of(method.feature_mask, task.inputs, absent)
        return cls(method, task, ask, players, absent, torch.arange(players.count))

    @property
    def replacements(self) -> int:
        """The number of replacements of each absent feature; the outputs are averaged over them."""
        return len(next(iter(self.absent.values())))

    @property
    def active(self) -> Tensor:
        """A mask `[N, features]` of the features that differ from their replacement; the others contribute nothing."""
        return self.players.differing(self.task.inputs, self.absent).cpu()

    def among(self, samples: Tensor, playing: Tensor, alone: bool) -> "FeatureGame":
        """Return the game restricted to some samples and features; `alone` if the samples are all samples."""
        if alone:
            return replace(self, playing=playing)
        absent = {i: b[:, samples] if b.shape[1] > 1 else b for i, b in self.absent.items()}
        task = replace(self.task, inputs=self.task.inputs.of_samples(samples), progress=False)
        return replace(
            self, task=task, ask=self.ask.of_samples(samples), players=self.players.of_samples(samples), absent=absent,
            playing=playing,
        )  # fmt: skip

    def by_target(self, found: Tensor) -> Tensor:
        """Reshape the results of all games to `[targets, N, …]`."""
        return found.to(self.ask.outputs).unflatten(0, (len(self.ask.targets), -1))

    def __call__(self, members: Tensor) -> Tensor:
        """Return the values `[M, targets · N]` of coalitions `[M, playing]`."""
        present = torch.ones(len(members), self.players.count, dtype=torch.bool)
        present[:, self.playing] = members

        def outputs(rounds: slice) -> Tensor:
            numbers = torch.arange(rounds.start, rounds.stop)
            absent = {i: b[numbers % self.replacements] for i, b in self.absent.items()}
            return self.ask(self.players.altered(self.task.inputs, absent, present[numbers // self.replacements]))

        count = len(members) * self.replacements
        found = torch.cat(list(run_batched(self.method, self.task, count, outputs, self.method.batch_size)), 1)
        return found.unflatten(1, (-1, self.replacements)).mean(2).movedim(1, 0).flatten(1)
