"""`evaluate`: how faithful explanations are, by several metrics, for several methods, sample by sample."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.files import atomic_write, make_cache_dir
from whence.core.fingerprints import fingerprint
from whence.core.inputs import check_model
from whence.core.progress import Progress, progress
from whence.core.targets import Target, select_target_samples
from whence.data.batches import ReadFunction, batch_ranges, batches, dataset_size, is_shuffled, read_batch
from whence.data.dataset_rows import DatasetRows, SampleBatch, UnreadableRow
from whence.data.partial_failures import run_with_fallback
from whence.data.sharding import parse_shard, run_on_ray
from whence.errors import InputError, ModelError, RuleError, TargetError, first_line, value_repr
from whence.evaluation.evaluation_batch import EvaluationBatch, MethodAdapter
from whence.evaluation.imputers import Imputer
from whence.evaluation.method_adapters import Methods, make_adapters
from whence.evaluation.metrics.registry import Metric, Metrics, make_metrics
from whence.evaluation.regions import RegionSpec
from whence.evaluation.results import Evaluation, Failure, resample_curves
from whence.lrp.engine.prepared_model import PreparedModel

METHODS = ("lrp", "gradient_times_input", "integrated_gradients", "sensitivity", "random")
METRICS = ("srg", "sparseness", "max_sensitivity")
METRICS_FOR_IDS = ("srg", "sparseness")  # token ids cannot be perturbed continuously
ENGINES = ("local", "ray")


@check_arguments
def evaluate(
    model: Callable[..., Any],
    inputs: Any,
    methods: Methods = METHODS,
    metrics: Metrics | None = None,
    *,
    target: Target | str = "predicted",
    masks: Tensor | None = None,
    regions: RegionSpec = None,
    imputer: Imputer | Tensor | float | str | None = None,
    score: str | None = None,
    n_steps: int | None = None,
    batch_size: int | None = None,
    read: ReadFunction | None = None,
    cache_dir: str | Path | None = None,
    shard: str | tuple[int, int] | None = None,
    engine: str = "local",
    address: str | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> Evaluation:
    """Evaluate explanations of a model: compute each metric of each method for each sample.

    >>> found = whence.evaluate(model, (x, y), ["lrp", "gradient_times_input", "random"], ["srg", "selectivity"])
    >>> found
    >>> found.values["lrp"]["srg"]                 # [n]
    >>> found.differences("srg", to="random")      # paired
    >>> found.save("report.html")                  # or .png, .csv, .json

    If a method fails on a sample, or a sample cannot be read, its value is NaN and the sample is listed in `failures`; the
    others are evaluated. Random draws depend on `seed` and on the index of the sample in the data, not on its batch.

    To use several machines, call with `shard="i/n"` on each, then call once without `shard` and with the same `cache_dir` to
    gather the results; or use `engine="ray"`.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        inputs: `(x, y)`, `x`, a dataset or a loader.
        methods: Methods or their short names, or a dict of them by name; the dict may also contain functions
            `(model, inputs, target) → relevance` of other libraries. "random" is a baseline of random relevance.
        metrics: Metrics or their names (`whence.metrics.METRICS`). Defaults to "srg", "sparseness" and "max_sensitivity",
            for token ids without "max_sensitivity".
        target: "predicted", "label", or any target that `explain` takes.
        masks: Masks `[N, …]` of the positions where relevance is expected, for the localization metrics.
        regions: The regions that metrics remove from the input, see `whence.metrics.Removal`. This and the next three
            arguments apply to metrics that are given by name.
        imputer: The values that replace removed regions, see `whence.metrics.Removal`; for token ids, pass
            `tokenizer.mask_token_id`.
        score: "logit", "probability" or "logit_difference", see `whence.metrics.Removal`.
        n_steps: The number of steps in which regions are removed, see `whence.metrics.RegionFlipping`.
        batch_size: The number of samples per batch; None chooses it by the size of the samples.
        read: A function from a row of a dataset to an input, or to a pair of input and label.
        cache_dir: A folder for finished results, which a repeated call reads instead of computing them again.
        shard: "i/n" or `(i, n)` evaluates every n-th batch, starting at i, and writes the results to `cache_dir`, a folder
            shared by all jobs; "env" reads i and n from the environment variables that torchrun sets.
        engine: "local", or "ray" to distribute the batches of a dataset among the workers of a Ray cluster.
        address: The address of the Ray cluster.
        seed: Random seed.
        progress: Whether to show a progress bar, or a function that is called with (done, total).
    Returns:
        An `Evaluation`.
    Raises:
        InputError: The data cannot be evaluated: it is empty, or masks or targets do not match the samples.
        RuleError: A method, metric or setting is invalid.
        TargetError: The target is invalid.
        Exception: A method fails on all samples; its own error is raised.
    """
    check_model(model)
    if engine not in ENGINES:
        raise RuleError(f"engine={value_repr(engine)}; choose from {', '.join(ENGINES)}")
    if shard is not None and cache_dir is None:
        raise RuleError("shard= requires cache_dir=, a folder shared by all jobs; give both")
    if address is not None and engine != "ray":
        raise RuleError("address= is the address of a Ray cluster; give engine='ray' too")
    ways = make_adapters(model, methods)
    found = batches(inputs, batch_size, read, parse_shard(shard))
    first = _until_first_readable(found)
    explained = first[-1].inputs.explained  # type: ignore[union-attr]
    metrics = (METRICS if explained else METRICS_FOR_IDS) if metrics is None else metrics
    given = {"regions": regions, "imputer": imputer, "score": score, "n_steps": n_steps}
    measured = make_metrics(metrics, {name: value for name, value in given.items() if value is not None})
    masks = None if masks is None else torch.as_tensor(masks)
    _check_needs(measured, model, masks)
    wanted = torch.as_tensor(target) if isinstance(target, list | tuple) or hasattr(target, "__array__") else target
    count = dataset_size(inputs)
    run = EvaluationRun(
        PreparedModel(model, lasting=True),
        ways,
        measured,
        wanted,
        masks,
        seed,
        ResultCache.at(cache_dir, model, seed, measured, ways),
        count,
    )
    run.check_counts(count)
    per_sample = any(way.of_samples([0], count).method is not way.method for way in ways)
    several = per_sample or masks is not None or (isinstance(wanted, Tensor) and wanted.dim() > 0)
    if (several or shard is not None) and is_shuffled(inputs):
        raise InputError(
            "masks, targets, shards and baselines of single samples cannot be matched to a loader that shuffles or samples; "
            "pass the dataset itself"
        )
    if engine == "local":
        return run.gathered(map(run.part, chain(first, found)), count, progress)
    return run.gathered(_run_on_ray(run, inputs, batch_size, read, parse_shard(shard), address), count, progress)


@dataclass
class PartialResult:
    """The results for some of the samples."""

    numbers: Sequence[int]
    scores: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # method -> metric -> [n]
    failures: list[Failure] = field(default_factory=list)


@dataclass
class EvaluationRun:
    """A call of `evaluate`: the methods and metrics, and the settings that all batches share."""

    prepared: PreparedModel
    ways: list[MethodAdapter]
    metrics: list[Metric]
    target: Target | str
    masks: Tensor | None
    seed: int
    kept: "ResultCache"
    count: int | None = None  # of all samples, where it is known
    _errors: dict[str, Exception] = field(default_factory=dict)  # the first error of each method

    def gathered(self, parts: Iterable[PartialResult], count: int | None, shown: Progress) -> Evaluation:
        """Merge partial results, which may come in any order, into one `Evaluation`."""
        found: list[PartialResult] = []
        with progress("evaluate", count or 0, count is not None and shown) as advance:
            for part in parts:
                found.append(part)
                advance(len(part.numbers))
        numbers = [number for part in found for number in part.numbers]
        count = count or max(numbers) + 1
        self.check_counts(count, known=False)
        failures = sorted((failure for part in found for failure in part.failures), key=lambda f: f.sample)
        for way in self.ways:
            if sum(failure.method == way.name for failure in failures) == len(numbers):
                raise self._errors.get(way.name) or ModelError(
                    f"method {way.name!r} failed on every sample: {failures[0].message}"
                )
        scores = {
            way.name: _merge_in_order([(p.numbers, p.scores[way.name]) for p in found if p.scores], count) for way in self.ways
        }
        return Evaluation.of(scores, self.metrics, failures)

    def part(self, samples: SampleBatch | UnreadableRow) -> PartialResult:
        """Compute the metrics of each method for a batch, except for results that are cached."""
        if isinstance(samples, UnreadableRow):
            return PartialResult(
                [samples.index], failures=[Failure(way.name, samples.index, samples.message) for way in self.ways]
            )
        part = PartialResult(samples.numbers)
        batch: EvaluationBatch | None = None
        about = self.kept.key(samples.inputs.parts, list(samples.numbers), self._target(samples), self._masks(samples))
        for way in self.ways:
            key = self.kept.key(about, way.name, self.kept.methods.get(way.name))
            if (known := self.kept.read(key)) is not None:
                part.scores[way.name] = known
                continue
            batch = batch or self._made(samples)
            found, failed = self._values(way, batch, samples)
            if not failed:  # failures are not cached: a later call may succeed
                self.kept.write(key, found)
            part.scores[way.name] = found
            part.failures += failed
        return part

    def _values(
        self, way: MethodAdapter, batch: EvaluationBatch, samples: SampleBatch
    ) -> tuple[dict[str, Tensor], list[Failure]]:
        def of(some: SampleBatch) -> dict[str, Tensor]:
            return self._of_case(way, batch if some is samples else self._made(some))

        values, failures = [], []
        for some, outcome in run_with_fallback(of, samples, SampleBatch.one_by_one):
            if isinstance(outcome, Exception):
                self._errors.setdefault(way.name, outcome)
                failures.append(Failure(way.name, some.numbers[0], first_line(outcome)))
                outcome = {metric.name: torch.full((1,), torch.nan, dtype=torch.float64) for metric in self.metrics}
            values.append((range(len(values), len(values) + len(some)), outcome))
        return (values[0][1] if len(values) == 1 else _merge_in_order(values, len(samples))), failures

    def _of_case(self, way: MethodAdapter, batch: EvaluationBatch) -> dict[str, Tensor]:
        case = way.case(batch)
        found = {metric.name: metric(case).double().cpu() for metric in self.metrics}
        for curves in list(case.curves.values())[:1]:
            found |= resample_curves(curves)
        return found

    def _made(self, samples: SampleBatch) -> EvaluationBatch:
        target, masks = self._target(samples), self._masks(samples)
        inputs = samples.inputs.beside(self.prepared.model)
        return EvaluationBatch.of(
            self.prepared, inputs, target, samples.numbers, labels=samples.labels, masks=masks, seed=self.seed, count=self.count
        )

    def _target(self, samples: SampleBatch) -> Target:
        if not isinstance(self.target, str):
            return select_target_samples(self.target, torch.tensor(list(samples.numbers)))
        if self.target == "predicted":
            return None
        if self.target == "label":
            if samples.labels is None:
                raise TargetError("target='label' needs labels; pass inputs=(x, y)")
            return samples.labels
        raise TargetError(
            f"target={value_repr(self.target)}; choose 'predicted', 'label', a class, or any target that explain() takes"
        )

    def _masks(self, samples: SampleBatch) -> Tensor | None:
        return None if self.masks is None else self.masks[torch.tensor(list(samples.numbers))]

    def check_counts(self, count: int | None, known: bool = True) -> None:
        """Raise `InputError` unless there is one mask and one target per sample."""
        if count is None:
            return
        for what, given in (("masks", self.masks), ("targets", self.target)):
            several = isinstance(given, Tensor) and given.dim() > 0
            if several and (len(given) < count or (known and len(given) != count)):  # type: ignore[arg-type]
                raise InputError(f"{len(given)} {what} for {count} samples; give one per sample")  # type: ignore[arg-type]


@dataclass(frozen=True)
class ResultCache:
    """A folder of finished results; the name of each file is the fingerprint of all that the result depends on."""

    folder: Path | None
    settings: str = ""
    methods: Mapping[str, str] = field(default_factory=dict)  # taken once: a function may count its calls in a global

    @classmethod
    def at(
        cls, folder: str | Path | None, model: Any, seed: int, metrics: Sequence[Metric], ways: Sequence[MethodAdapter]
    ) -> "ResultCache":
        if folder is None:
            return cls(None)
        methods = {way.name: fingerprint(way.method) for way in ways}
        return cls(make_cache_dir(folder), fingerprint(model, seed, metrics, version("whence")), methods)

    def key(self, *about: Any) -> str:
        return "" if self.folder is None else fingerprint(self.settings, *about)

    def read(self, key: str) -> dict[str, Tensor] | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as kept:
                return {name: torch.from_numpy(kept[name]) for name in kept.files}
        except (OSError, ValueError, BadZipFile, EOFError):  # damaged file: compute the result again
            return None

    def write(self, key: str, found: dict[str, Tensor]) -> None:
        path = self._path(key)
        if path is None:
            return
        with atomic_write(path) as beside:
            arrays: dict[str, Any] = {name: values.numpy() for name, values in found.items()}
            np.savez(beside, **arrays)

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.npz"


def _check_needs(metrics: Sequence[Metric], model: Any, masks: Tensor | None) -> None:
    for metric in metrics:
        if getattr(metric, "needs_masks", False) and masks is None:
            raise InputError(f"{metric.name} needs masks=, one mask per sample: [N, H, W] for images, [N, T] for texts")
        if getattr(metric, "needs_module", False) and not isinstance(model, nn.Module):
            raise ModelError(f"{metric.name} randomizes weights; the model must be a torch.nn.Module")


def _until_first_readable(found: Iterator[SampleBatch | UnreadableRow]) -> list[SampleBatch | UnreadableRow]:
    """Return the batches up to and including the first that can be read."""
    first: list[SampleBatch | UnreadableRow] = []
    for piece in found:
        first.append(piece)
        if isinstance(piece, SampleBatch):
            return first
    raise InputError("no samples to evaluate: the data is empty, or has fewer batches than there are shards")


def _run_on_ray(
    run: EvaluationRun, data: Any, batch_size: int | None, read: ReadFunction | None, mine: tuple[int, int], address: str | None
) -> Iterator[PartialResult]:
    rows = DatasetRows.of(data, read)
    todo = range(mine[0], len(batch_ranges(rows, batch_size)), mine[1])
    for _, parts in run_on_ray(_worker, (run, rows, batch_size), todo, address):
        yield from parts


def _worker(run: EvaluationRun, rows: DatasetRows, batch_size: int | None) -> Callable[[int], list[PartialResult]]:
    numbers, usual = batch_ranges(rows, batch_size), rows.shape
    return lambda piece: [run.part(found) for found in read_batch(rows, numbers[piece], usual)]


def _merge_in_order(parts: Sequence[tuple[Sequence[int], dict[str, Tensor]]], count: int) -> dict[str, Tensor]:
    """Merge values by sample index; values of samples without any are NaN."""
    like = {key: value for _, part in parts for key, value in part.items()}
    found = {key: value.new_full((count, *value.shape[1:]), torch.nan) for key, value in like.items()}
    for numbers, part in parts:
        for key, value in part.items():
            found[key][torch.tensor(list(numbers))] = value
    return found
