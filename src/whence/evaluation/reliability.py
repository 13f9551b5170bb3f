"""`reliability`: whether the features that an explanation shows as relevant are enough for the output, and needed for it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.explanation import Explanation
from whence.core.files import Rows
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress
from whence.core.result import Result
from whence.core.texts import TextModel
from whence.core.trees import Tree
from whence.errors import InputError, RuleError, value_repr
from whence.evaluation.evaluation_batch import EvaluationBatch
from whence.evaluation.imputers import BackgroundSamples, FillFunction, Imputer, OtherPlaces, make_imputer
from whence.evaluation.regions import Regions, RegionSpec
from whence.lrp.engine.prepared_model import PreparedModel
from whence.methods.batching import run_batched
from whence.methods.model_queries import ModelQueries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("kept", "random kept", "removed", "random removed", "all removed")  # what the model is evaluated on
MEASURES = ("sufficiency", "necessity")


class Share(NamedTuple):
    """A share of the output of each sample, `[N]`, with its 95 % interval; NaN where the output does not depend on it."""

    value: Tensor
    low: Tensor
    high: Tensor

    def percent(self, sample: int) -> str:
        """Return the share of a sample in percent, with its interval."""
        value, low, high = (100 * float(t[sample]) for t in self)
        return f"{value:.0f} % [{low:.0f}, {high:.0f}]"


@dataclass(frozen=True, repr=False, eq=False)
class Reliability(Result):
    """How much of the output the most relevant features keep, and how much is lost without them, beside random ones.

    >>> r = whence.reliability(model, e)
    >>> r.sentences[0]
    >>> r.better_than_chance                    # [N]

    Args:
        share: The share of the features that are kept or removed.
        sufficiency: The share of the output that the most relevant features keep when all others are replaced.
        necessity: The share of the output that is lost when they are replaced.
        random_sufficiency: The share that as many features at random keep, in the mean of such sets, and the range in which
            95 % of the sets are.
        random_necessity: The share that is lost without as many features at random, and that range.
        targets: Names of the targets.
    """

    share: float
    sufficiency: Share
    necessity: Share
    random_sufficiency: Share
    random_necessity: Share
    targets: list[str]

    @property
    def better_than_chance(self) -> Tensor:
        """Whether the shown features keep, or lose if replaced, more of the output than 97.5 % of random sets, `[N]`."""
        enough, needed = (getattr(self, name).value > getattr(self, f"random_{name}").high for name in MEASURES)
        return enough | needed

    @property
    def sentences(self) -> list[str]:
        """The result of each sample in words."""
        return [self._sentence(sample) for sample in range(len(self.targets))]

    @property
    def table(self) -> Rows:
        """Rows, one for each sample and measure: the share, its interval, and those of random features."""
        shares = {name: (getattr(self, name), getattr(self, f"random_{name}")) for name in MEASURES}
        return [
            {"sample": sample, "target": target, "measure": name} | _row(shown, sample) | _row(random, sample, "random_")
            for sample, target in enumerate(self.targets)
            for name, (shown, random) in shares.items()
        ]

    def figure(self) -> "Figure":
        """Return a figure of both measures of each sample, with their intervals, beside those of random features."""
        from whence.plotting.interval_bars import interval_bars

        groups = {
            name: [(getattr(self, name), "the most relevant"), (getattr(self, f"random_{name}"), "random")] for name in MEASURES
        }
        return interval_bars(groups, self.targets)

    def __repr__(self) -> str:
        both = zip(self.targets, self.sentences, strict=True)
        return "\n".join(f"sample {i}, {target}: {text}" for i, (target, text) in enumerate(both))

    def _sentence(self, sample: int) -> str:
        if self.sufficiency.value[sample].isnan():
            return (
                "no statement: replacing features changes the output no more than other random values in their place do; pass "
                "another imputer"
            )
        part = f"{100 * self.share:g} %"
        verdict = "" if self.better_than_chance[sample] else "; random sets may do as well: no better than chance"
        kept, lost = (
            f"{shown.percent(sample)} of the output (random sets {random.percent(sample)})"
            for shown, random in ((self.sufficiency, self.random_sufficiency), (self.necessity, self.random_necessity))
        )
        return f"keeping the most relevant {part} of the features keeps {kept}; replacing them loses {lost}{verdict}"


@check_arguments
def reliability(
    model: Callable[..., Any],
    explanation: Explanation,
    inputs: Tree = None,
    *,
    share: float = 0.1,
    n_samples: int = 12,
    regions: RegionSpec = None,
    imputer: Imputer | Tensor | float | str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    tokenizer: Any = None,
    progress: Progress = True,
) -> Reliability:
    """Measure whether the features shown as relevant are enough for the output, and needed for it.

    >>> e = whence.explain(model, x)
    >>> print(whence.reliability(model, e))
    sample 0, cat: keeping the most relevant 10 % of the features keeps 83 % [78, 88] of the output (random sets 31 % …

    The most relevant features (patches of pictures, about fourteen a side; tokens; columns) are kept while all others are
    replaced (sufficiency), and replaced themselves (necessity), and so are random sets of as many features, by the same
    `n_samples` draws of values. Output is counted from its mean when all features are replaced. Intervals of the
    shown features are Fieller's, for a ratio of means over the draws; those of random sets are the range of 95 % of the sets,
    so that shown features within it are no better than chance. The model is evaluated 5 · `n_samples` times for each sample.

    Args:
        model: The model that was explained.
        explanation: An explanation of it.
        inputs: The inputs, if the explanation does not have all of them: texts, masks, numbers, inputs that are not explained.
        share: The share of the features that are kept or replaced.
        n_samples: The number of draws, at least 3.
        regions: The features, as for `evaluate`.
        imputer: What replaces features: an imputer that draws values, such as `whence.imputers.BackgroundSamples(x_train)`; one
            that always replaces by the same values makes the intervals of the shown features too narrow. By default values from
            other places of the same picture, series or text, or columns of the other samples.
        seed: Random seed.
        batch_size: Number of altered samples that the model evaluates at once; chosen by the size of the input by default.
        tokenizer: The tokenizer of the model, for inputs that are texts.
        progress: Whether to show a progress bar, or a function that is called with (done, total) instead.

    Returns:
        A `Reliability`.

    Raises:
        InputError: The explanation lacks inputs, or a single vector cannot be imputed without an imputer.
        RuleError: `share` or `n_samples` is out of range.
    """
    if not isinstance(explanation, Explanation):
        raise InputError(f"got {value_repr(explanation)}; expected what whence.explain returned")
    texts = TextModel.of(model, tokenizer)
    model = texts.model
    check_model(model)
    if not 0 < share < 1:
        raise RuleError(f"share={share}; expected a share of the features between 0 and 1")
    if n_samples < 3:
        raise RuleError(f"n_samples={n_samples}; expected at least 3 draws")
    if inputs is None and explanation.held_fixed:
        text = " (the text, with tokenizer=)" if explanation.tokens else ""
        raise InputError(f"the explanation does not have the inputs {', '.join(explanation.held_fixed)}; pass inputs={text}")
    given = Inputs.of(explanation.inputs if inputs is None else texts.read(inputs)).beside(model).detached()
    batch = EvaluationBatch.of(PreparedModel(model), given, explanation.target, seed=seed)
    trial = FeatureReplacement.of(batch, explanation, regions, imputer, share, n_samples)
    outputs = trial.outputs(batch_size, progress)  # [kinds, draws, N]
    kept, random_kept, removed, random_removed, blank = outputs.double().cpu()
    output = batch.output.double().cpu()
    lost, random_lost = output - removed + blank, output - random_removed + blank  # so that their share is (f − r) / (f − z)
    return Reliability(
        share,
        sufficiency=_shares(kept, blank, output),
        necessity=_shares(lost, blank, output),
        random_sufficiency=_shares_of_sets(random_kept, kept, blank, output),
        random_necessity=_shares_of_sets(random_lost, lost, blank, output),
        targets=[explanation.heading(i) for i in range(len(explanation))],
    )


@dataclass(frozen=True)
class FeatureReplacement:
    """The sets of features that are replaced in each draw, and what replaces them."""

    batch: EvaluationBatch
    regions: Regions
    top: Tensor  # [N, regions]
    random: Tensor  # [draws, N, regions]
    fills: dict[int, list[FillFunction]]

    name: ClassVar[str] = "reliability"

    @classmethod
    def of(
        cls, batch: EvaluationBatch, e: Explanation, spec: RegionSpec, imputer: Any, share: float, draws: int
    ) -> "FeatureReplacement":
        inputs = batch.inputs
        relevance = {i: r for i, r in inputs.apart(e.relevance).items() if isinstance(r, Tensor)}
        regions = Regions.of(spec, inputs, list(relevance))
        counts = (share * regions.counts).round().clamp(min=1)
        top = _largest(regions.means(relevance), regions.valid, counts)
        generators = batch.random("reliability")
        noise = torch.stack([torch.rand(draws, regions.valid.shape[1], generator=r) for r in generators], 1)
        random = torch.stack([_largest(one, regions.valid, counts) for one in noise])
        fills = {i: _imputer_of(imputer, inputs.parts[i], draws).fills(inputs.parts[i], generators) for i in relevance}
        return cls(batch, regions, top, random, fills)

    def outputs(self, batch_size: int | None, progress: Progress) -> Tensor:
        """Return the explained output of all altered inputs, `[kinds, draws, N]`."""
        ask, draws = ModelQueries(self.batch.task), len(self.random)
        task = replace(self.batch.task, progress=progress)

        def evaluate(rounds: slice) -> Tensor:
            numbers = range(rounds.start, rounds.stop)
            hidden = torch.stack([self._hidden(KINDS[r // draws], r % draws) for r in numbers])
            entries = self.regions.entries(hidden)
            altered = {
                i: torch.cat([fills[r % draws % len(fills)](entries[i][k : k + 1])[0] for k, r in enumerate(numbers)])
                for i, fills in self.fills.items()
            }
            return ask(altered)[0]

        found = torch.cat(list(run_batched(self, task, len(KINDS) * draws, evaluate, batch_size)))
        return found.view(len(KINDS), draws, -1)

    def _hidden(self, kind: str, draw: int) -> Tensor:
        """Return the regions that are replaced, `[N, regions]`."""
        valid, random = self.regions.valid, self.random[draw]
        return {
            "kept": valid & ~self.top, "random kept": valid & ~random, "removed": self.top, "random removed": random,
            "all removed": valid,
        }[kind]  # fmt: skip


def _imputer_of(given: Any, x: Tensor, draws: int) -> Imputer:
    if given is not None:
        made = make_imputer(given)
        return replace(made, n_samples=draws) if hasattr(made, "n_samples") else made  # type: ignore[type-var]
    if x.dim() >= 3 or not x.is_floating_point():
        return OtherPlaces(draws)
    if len(x) < 2:
        raise InputError(
            "the columns of a single vector have nothing to be replaced by; pass "
            "imputer=whence.imputers.BackgroundSamples(x_train)"
        )
    return BackgroundSamples(x, draws)


def _largest(scores: Tensor, valid: Tensor, counts: Tensor) -> Tensor:
    """Return the regions of the largest scores, as many as `counts` `[N]` says, `[N, regions]`."""
    order = torch.argsort(scores.masked_fill(~valid, -torch.inf), dim=1, descending=True, stable=True)
    return torch.zeros_like(valid).scatter(1, order, torch.arange(scores.shape[1]) < counts[:, None]) & valid


def _shares(values: Tensor, blank: Tensor, output: Tensor) -> Share:
    """Return ρ = (v̄ − z̄) / (f − z̄) over draws of v and z, `[draws, N]`, with Fieller's interval; NaN if f − z̄ may be 0.

    The interval holds all ρ for which the mean of (v − z) − ρ (f − z) is within t standard errors of 0 (Fieller 1954).
    """
    draws = len(values)
    over, under = values - blank, output - blank
    a, b = over.mean(0), under.mean(0)
    factor = _student_quantile(draws - 1) ** 2 / draws
    saa, sbb, sab = over.var(0), under.var(0), ((over - a) * (under - b)).sum(0) / (draws - 1)
    square, middle, constant = b**2 - factor * sbb, a * b - factor * sab, a**2 - factor * saa
    root = (middle**2 - square * constant).clamp(min=0).sqrt()
    # else the interval is unbounded, or nearly; to be stricter selects large f − z̄ by chance, and fewer intervals cover
    known = square > b**2 / 20
    nan = torch.full_like(a, torch.nan)
    return Share(*(torch.where(known, value, nan) for value in (a / b, (middle - root) / square, (middle + root) / square)))


def _shares_of_sets(random: Tensor, shown: Tensor, blank: Tensor, output: Tensor) -> Share:
    """Return the mean share of random sets, `[draws, N]`, one for each draw, and the range in which 95 % of the sets are.

    The variance of the draws is that of the sets and of what replaces features, which is that of the shown set; of it, the mean
    of as many draws of one set has 1 / draws.
    """
    draws, span = len(random), output - blank.mean(0)
    of_sets = (random.var(0) - shown.var(0)).clamp(min=0)
    error = (of_sets + (random.var(0) + shown.var(0)) / draws).sqrt() * _student_quantile(draws - 1) / span.abs()
    share = _shares(random, blank, output).value
    return Share(share, share - error, share + error)


def _student_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution (Hill 1970, by its expansion in 1 / freedom)."""
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )  # fmt: skip
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


def _row(share: Share, sample: int, prefix: str = "") -> dict[str, float]:
    return {f"{prefix}{name}": float(getattr(share, name)[sample]) for name in ("value", "low", "high")}
