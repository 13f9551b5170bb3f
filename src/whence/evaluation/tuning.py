"""`tune`: search for the settings of a method that explain a model best on given data, by successive halving."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.files import write_json
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress, progress
from whence.core.result import Result
from whence.core.targets import Target, select_target_samples
from whence.data.batches import batches, require_all
from whence.data.dataset_rows import SampleBatch
from whence.errors import InputError, RuleError, WhenceError
from whence.evaluation.bootstrap import Interval, paired_interval
from whence.evaluation.evaluate import evaluate
from whence.evaluation.imputers import Imputer
from whence.evaluation.metrics.complexity import Sparseness
from whence.evaluation.metrics.registry import METRICS, Metric, make_metrics
from whence.evaluation.regions import RegionSpec
from whence.evaluation.results import Evaluation, format_interval
from whence.evaluation.search_space import Bounds, rule_sets, vary_fields
from whence.methods.integrated_gradients import ExpectedGradients
from whence.methods.lrp import LRP
from whence.methods.registry import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST_SAMPLES = 8  # number of samples on which all candidates are evaluated
N_FINALISTS = 3
DEFAULT = "default"
MAX_BACKGROUND = 20  # samples of expected gradients


@dataclass(frozen=True, repr=False, eq=False)
class Tuning(Result):
    """The result of a search: the best candidate and its values on held-out samples.

    >>> found = whence.tune(model, (x, y))
    >>> found.method                                # for whence.explain(model, x, method=found.method)
    >>> found.held_out                              # finalists and the default, on samples not used in the search
    >>> found.save("pareto.png")

    Args:
        name: The name of the best candidate.
        method: The best candidate.
        metric: The name of the metric.
        better: Which values of the metric are better, "higher" or "lower".
        candidates: One row per candidate, the best first: its mean metric and sparseness, and the number `n` of samples on
            which it was evaluated; candidates that were eliminated early were evaluated on few.
        held_out: The `Evaluation` of the finalists and the default on held-out samples.
        gain: How much better the best candidate is than the default on held-out samples, paired by sample, with its interval;
            None if it is the default, or the default cannot explain the model.
    """

    name: str
    method: Method
    metric: str
    better: str
    candidates: Sequence[Mapping[str, Any]]
    held_out: Evaluation
    gain: Interval | None = None

    @property
    def better_than_default(self) -> bool:
        """Whether the best candidate is better than the default on samples that chose nothing, by more than the interval."""
        return self.gain is not None and self.gain.low > 0

    @property
    def table(self) -> Sequence[Mapping[str, Any]]:
        """One row per candidate, the best first."""
        return self.candidates

    @property
    def score(self) -> Interval:
        """The mean metric of the best candidate on held-out samples, with its interval."""
        return self.held_out.intervals[self.name][self.metric]

    @property
    def front(self) -> list[str]:
        """The Pareto front: candidates that no other candidate surpasses in both the metric and sparseness."""
        sign = 1 if self.better == "higher" else -1
        points = {row["method"]: (sign * row[self.metric], row["sparseness"]) for row in self.table}
        return [
            name
            for name, (a, b) in points.items()
            if not any((c >= a and d >= b) and (c > a or d > b) for other, (c, d) in points.items() if other != name)
        ]

    def __repr__(self) -> str:
        head = f"Tuning of {len(self.table)} candidates: {self.name} has {self.metric} {format_interval(self.score)}"
        return f"{head} on {self.score.n} held-out samples, {self._beside_default()}\n{self.held_out!r}"

    def _beside_default(self) -> str:
        if self.gain is None:
            return "and is the default itself" if self.name == DEFAULT else "where the default cannot explain the model"
        better = "better" if self.better_than_default else "no better"
        return f"{better} than the default there: by {format_interval(self.gain)}"

    def figure(self) -> "Figure":
        """Return a figure of the metric over sparseness, with the Pareto front as a line."""
        from whence.plotting.pareto import ParetoPoint, pareto_figure

        points = [
            ParetoPoint(
                row["method"], row["sparseness"], row[self.metric], row["method"] in self.front, row["method"] == self.name
            )
            for row in self.table
        ]
        return pareto_figure(points, ("sparseness", f"{self.metric} ({self.better} is better)"))

    def save(self, path: str | Path) -> Path:
        """Write the figure (.png, .jpg, .pdf, .svg), the table (.csv) or all results (.json), and return the path."""
        return self._save(path, {".json": self._write_json})

    def _write_json(self, path: Path) -> None:
        write_json(path, {"best": self.name, "table": self.table, "held_out": self.held_out.table})


@check_arguments
def tune(
    model: Callable[..., Any],
    inputs: Any,
    candidates: Mapping[str, Method] | Method | None = None,
    *,
    fields: Mapping[str, Sequence[Any]] | None = None,
    metric: Metric | str = "srg",
    bounds: Bounds | None = None,
    target: Target | str = "predicted",
    regions: RegionSpec = None,
    imputer: Imputer | Tensor | float | str | None = None,
    score: str | None = None,
    n_steps: int | None = None,
    held_out: float = 0.5,
    seed: int = 0,
    progress: Progress = True,
) -> Tuning:
    """Search for the method that explains a model best on given data, according to a metric.

    >>> found = whence.tune(model, (x, y))                                         # about thirty LRP rule sets
    >>> whence.explain(model, x, method=found.method)
    >>> whence.tune(model, (x, y), bounds=(low, high))                             # with z^B rules for the input layer
    >>> whence.tune(model, x, whence.IntegratedGradients(), fields={"n_steps": [8, 32], "baselines": [0.0, 0.5]})
    >>> whence.tune(model, x, {"mine": whence.LRP({...}), "theirs": whence.LRP(whence.presets.epsilon_plus())})

    All candidates are evaluated on a few samples, the better half on twice as many, and so on (successive halving, Jamieson and
    Talwalkar 2016). The finalists and the default are then evaluated on held-out samples that were not used in the search;
    report these values.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        inputs: `(x, y)`, `x`, a dataset or a loader, as for `evaluate`; at least four samples.
        candidates: Methods by name, or one method, whose `fields` are varied. Defaults to LRP rule sets that suit the network
            (`whence.experiments.rule_sets`), among them rule sets whose γ varies with depth.
        fields: For a single method, the values to try for each of its fields; all combinations are candidates.
        metric: A metric or its name; higher or lower values of it must be better.
        bounds: The lowest and the highest value of the pixels, for z^B rules among the default candidates.
        target: "predicted", "label", or any target that `explain` takes.
        regions: As for `evaluate`.
        imputer: As for `evaluate`.
        score: As for `evaluate`.
        n_steps: As for `evaluate`.
        held_out: The fraction of samples that are not used in the search, between 0 and 1.
        seed: Random seed.
        progress: Whether to show a progress bar, or a function that is called with (done, total).
    Returns:
        A `Tuning`.
    Raises:
        RuleError: The candidates, the fields, the metric or `held_out` are invalid.
        InputError: There are fewer than four samples, or one cannot be read.
    """
    check_model(model)
    given = {"regions": regions, "imputer": imputer, "score": score, "n_steps": n_steps}
    chosen = make_metrics([metric], {name: value for name, value in given.items() if value is not None})[0]
    if chosen.better not in ("higher", "lower"):
        good = [name for name, kind in METRICS.items() if kind.better != "neither"]
        raise RuleError(f"neither higher nor lower values of {chosen.name} are better; tune by one of {', '.join(good)}")
    samples = TuningData.of(inputs, held_out, seed, target)
    methods = _make_candidates(model, candidates, fields, bounds, samples)
    search = SuccessiveHalving(model, methods, chosen, samples, seed)
    winner, finalists = search.halved(progress)
    named = _add_default(search, {name: methods[name] for name in finalists}, samples)
    found = search.evaluated(named, samples.kept_out)
    gain = _gain(found, winner, chosen)
    return Tuning(winner, methods[winner], chosen.name, chosen.better, search.table(), found, gain)


@dataclass(frozen=True)
class TuningData:
    """All samples in memory, in random order, split into those used in the search and those held out."""

    inputs: Inputs
    labels: Tensor | None
    target: Target | str
    choosing: Tensor  # indices of the samples used in the search
    kept_out: Tensor  # indices of the held-out samples

    @classmethod
    def of(cls, data: Any, held_out: float, seed: int, target: Target | str) -> "TuningData":
        if not 0 < held_out < 1:
            raise RuleError(f"held_out={held_out}; expected a fraction between 0 and 1")
        found = require_all(batches(data))
        inputs, labels = _concatenate(found)
        count = inputs.batch_size
        if count < 4:
            raise InputError(f"{count} samples; tune() needs at least 4, some for the search and some held out")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        cut = min(max(2, count - round(held_out * count)), count - 1)
        return cls(inputs, labels, target, order[:cut], order[cut:])

    def some(self, numbers: Tensor) -> Any:
        """Return the samples with these indices as data for `evaluate`."""
        inputs = self.inputs.of_samples(numbers)
        nest = inputs.nest.numpy() if inputs.arrays else inputs.nest
        return nest, None if self.labels is None else self.labels[numbers]

    def targets(self, numbers: Tensor) -> Any:
        if isinstance(self.target, str):
            return self.target
        given = torch.as_tensor(self.target) if isinstance(self.target, list | tuple) else self.target
        return select_target_samples(given, numbers)


@dataclass
class SuccessiveHalving:
    """The candidates, and their values on the samples on which they were evaluated so far."""

    model: Callable[..., Any]
    methods: Mapping[str, Method]
    metric: Metric
    samples: TuningData
    seed: int

    def __post_init__(self):
        self._values: dict[str, list[Tensor]] = {name: [] for name in self.methods}
        self._sparse: dict[str, list[Tensor]] = {name: [] for name in self.methods}

    def evaluated(self, methods: Mapping[str, Method], numbers: Tensor) -> Evaluation:
        metrics = [self.metric, *([Sparseness()] if self.metric.name != Sparseness.name else [])]
        data, target = self.samples.some(numbers), self.samples.targets(numbers)
        return evaluate(self.model, data, methods, metrics, target=target, seed=self.seed, progress=False)

    def halved(self, bar: Progress) -> tuple[str, list[str]]:
        """Run the search; return the name of the best candidate and those of the finalists, the best first."""
        left, done, numbers = list(self.methods), 0, self.samples.choosing
        more = min(FIRST_SAMPLES, len(numbers))
        with progress("tune", len(numbers), bar) as advance:
            while True:
                found = self.evaluated({name: self.methods[name] for name in left}, numbers[done : done + more])
                for name in left:
                    self._values[name].append(found.values[name][self.metric.name])
                    self._sparse[name].append(found.values[name][Sparseness.name])
                done += more
                advance(more, f"{len(left)} candidates")
                left = sorted(left, key=self._loss)
                if done >= len(numbers):
                    return left[0], left[:N_FINALISTS]
                left = left[: max(N_FINALISTS, -(-len(left) // 2))]
                more = min(done, len(numbers) - done)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per candidate: those evaluated on more samples first, then by the metric."""
        rows = [
            {"method": name, self.metric.name: self._mean(self._values[name]), "sparseness": self._mean(self._sparse[name]),
             "n": sum(map(len, self._values[name]))}
            for name in self.methods
        ]  # fmt: skip
        return sorted(rows, key=lambda row: (-row["n"], self._loss(row["method"])))

    def _loss(self, name: str) -> float:
        mean = self._mean(self._values[name])
        return torch.inf if mean != mean else -mean if self.metric.better == "higher" else mean

    def _mean(self, values: list[Tensor]) -> float:
        return float(torch.cat(values).nanmean())


def _gain(found: Evaluation, winner: str, metric: Metric) -> Interval | None:
    """Return how much better the winner is than the default; None if it is the default, or that could not be evaluated."""
    if winner == DEFAULT or DEFAULT not in found.values:
        return None
    sign = 1 if metric.better == "higher" else -1
    ours, default = (sign * found.values[name][metric.name] for name in (winner, DEFAULT))
    return paired_interval(ours, default)


def _add_default(search: SuccessiveHalving, finalists: dict[str, Method], samples: TuningData) -> dict[str, Method]:
    """Return the finalists with the default method added, if it can explain the model."""
    try:
        search.evaluated({DEFAULT: LRP()}, samples.choosing[:1])
    except WhenceError:
        return finalists
    return {DEFAULT: LRP()} | finalists


def _make_candidates(
    model: Callable[..., Any],
    given: Any,
    fields: Mapping[str, Sequence[Any]] | None,
    bounds: Bounds | None,
    samples: TuningData,
) -> dict[str, Method]:
    if given is not None and bounds is not None:
        raise RuleError(
            "bounds= applies to the default candidates only; add rule sets with whence.ZBox to the candidates instead"
        )
    if fields is not None:
        if given is None or isinstance(given, Mapping):
            raise RuleError(
                "fields= varies a single method; pass one, as in tune(model, x, whence.IntegratedGradients(), fields={…})"
            )
        return vary_fields(given, fields)
    if given is None:
        found: dict[str, Method] = {
            **rule_sets(model, samples.inputs.of_samples(samples.choosing[:1]).beside(model).nest, bounds)
        }
        if samples.inputs.single and samples.inputs.explained:
            background = samples.inputs.of_samples(samples.choosing[:MAX_BACKGROUND]).beside(model).parts[0]
            found["expected gradients"] = ExpectedGradients(background, n_samples=MAX_BACKGROUND)
        return found
    if not isinstance(given, Mapping) or not given:
        raise RuleError("candidates must be a dict of methods by name, or one method with fields= to vary")
    return dict(given)


def _concatenate(found: list[SampleBatch]) -> tuple[Inputs, Tensor | None]:
    nests, labels = [s.inputs.nest for s in found], [s.labels for s in found]
    names = list(nests[0]) if isinstance(nests[0], dict) else None
    if isinstance(nests[0], Tensor):
        joined: Any = torch.cat(nests)
    elif names is not None:
        joined = {name: torch.cat([nest[name] for nest in nests]) for name in names}
    else:
        joined = tuple(torch.cat(parts) for parts in zip(*nests, strict=True))
    known = [t for t in labels if t is not None]
    return replace(Inputs.of(joined), arrays=found[0].inputs.arrays), torch.cat(known) if len(known) == len(labels) else None
