"""evaluate(): how much explanations can be trusted, by several metrics, for several methods, sample by sample."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from whence.errors import InputError, ModelError, RuleError, TargetError, first_line, out_of_memory
from whence.evaluation.batches import Batch, Way
from whence.evaluation.data import Samples, batches
from whence.evaluation.imputers import Imputer
from whence.evaluation.metrics import Metric, Metrics, metrics_of
from whence.evaluation.regions import Spec
from whence.evaluation.results import Evaluation, Failure, on_grid
from whence.evaluation.ways import Methods, ways_of
from whence.fingerprints import fingerprint
from whence.inputs import check_model
from whence.lrp.prepared import Prepared
from whence.progress import Progress, progress
from whence.show.drawable import written
from whence.targets import Target, of_samples

METHODS = ("lrp", "gradient_times_input", "integrated_gradients", "sensitivity", "random")
METRICS = ("srg", "sparseness", "max_sensitivity")
METRICS_OF_IDS = ("srg", "sparseness")  # which have nothing between them


def evaluate(
    model: Callable[..., Any],
    data: Any,
    methods: Methods = METHODS,
    metrics: Metrics | None = None,
    *,
    target: Target | str = "predicted",
    masks: Tensor | None = None,
    regions: Spec = None,
    imputer: Imputer | Tensor | float | str | None = None,
    score: str | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    keep: str | Path | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> Evaluation:
    """How far explanations of a model can be trusted: each method on each sample by each metric.

    >>> found = whence.evaluate(model, (x, y), ["lrp", "gradient_times_input", "random"], ["srg", "selectivity"])
    >>> found
    >>> found.values["lrp"]["srg"]                 # [n]
    >>> found.differences("srg", to="random")      # paired
    >>> found.save("report.html")                  # or .png, .csv, .json

    `data` is `(x, y)`, `x`, a data set or a loader. `methods` are names or methods, or a dict by name, in which functions
    `(model, inputs, target) → relevance` of other libraries may stand too; "random" is chance itself. `metrics` are names
    (`whence.metrics.METRICS`) or metrics. `target` is what is explained: "predicted", "label", or as for `explain`. `masks`
    `[N, …]` mark where relevance should lie. `regions`, `imputer`, `score` and `steps` are those of the metrics by name that
    take parts of the input away (`whence.metrics.Removal`, `Flipping`); for token ids `imputer=tokenizer.mask_token_id`.

    A method that fails on a sample has no value there; the sample is named in `failures`, the rest counted. What is random is
    set by `seed` and the place of a sample in the data, not by its batch. With `keep`, a folder, what was finished before a
    crash is read there, not computed again.

    Raises `InputError`, `RuleError`, `TargetError` for what cannot be evaluated, and the error of a method that fails on all.
    """
    check_model(model)
    ways = ways_of(model, methods)
    pieces = batches(data, batch_size)
    first = next(pieces)
    metrics = (METRICS if first.inputs.explained else METRICS_OF_IDS) if metrics is None else metrics
    given = {"regions": regions, "imputer": imputer, "score": score, "steps": steps}
    found = metrics_of(metrics, {name: value for name, value in given.items() if value is not None})
    masks = None if masks is None else torch.as_tensor(masks)
    _check_needs(found, model, masks)
    wanted = torch.as_tensor(target) if isinstance(target, list | tuple) or hasattr(target, "__array__") else target
    run = Run(Prepared(model, lasting=True), ways, found, wanted, masks, seed, Kept.at(keep, model, seed, found))
    return run.over(chain([first], pieces), first.total, progress)


@dataclass
class Run:
    """One evaluation under way."""

    prepared: Prepared
    ways: list[Way]
    metrics: list[Metric]
    target: Target | str
    masks: Tensor | None
    seed: int
    kept: "Kept"
    _errors: dict[str, Exception] = field(default_factory=dict)  # the first of each method

    def over(self, pieces: Iterable[Samples], total: int | None, shown: Progress) -> Evaluation:
        scores: dict[str, list[dict[str, Tensor]]] = {way.name: [] for way in self.ways}
        failures: list[Failure] = []
        done = 0
        with progress("evaluate", (total or 0) * len(self.ways), total is not None and shown) as advance:
            for samples in pieces:
                self._check_counts(total or samples.numbers.stop, known=total is not None)
                done = samples.numbers.stop
                for way, found, failed in self._batch(samples):
                    scores[way.name].append(found)
                    failures += failed
                    advance(len(samples.numbers), way.name)
        for way in self.ways:
            if sum(failure.method == way.name for failure in failures) == done:
                raise self._errors.get(way.name) or ModelError(f"{way.name!r} fails on every sample: {failures[0].message}")
        return Evaluation.of({name: _together(parts) for name, parts in scores.items()}, self.metrics, failures)

    def _batch(self, samples: Samples) -> Iterator[tuple[Way, dict[str, Tensor], list[Failure]]]:
        """The values of each method; the model is asked only for what is not kept."""
        batch: Batch | None = None
        about = self.kept.key(samples.inputs.parts, samples.numbers, self._target(samples), self._masks(samples))
        for way in self.ways:
            key = self.kept.key(about, way.name, way.method)
            if (known := self.kept.read(key)) is not None:
                yield way, known, []
                continue
            batch = batch or self._made(samples)
            found, failed = self._values(way, batch, samples)
            if not failed:  # what failed may succeed another time
                self.kept.write(key, found)
            yield way, found, failed

    def _values(self, way: Way, batch: Batch, samples: Samples) -> tuple[dict[str, Tensor], list[Failure]]:
        """Of all samples at once; where that fails, one by one, so that those at fault are known."""
        try:
            return self._of_case(way, batch), []
        except Exception as error:
            if isinstance(error, RuleError) or out_of_memory(error):  # no fault of a sample
                raise
            if len(samples.numbers) == 1:
                self._errors.setdefault(way.name, error)
                nothing = {metric.name: torch.full((1,), torch.nan, dtype=torch.float64) for metric in self.metrics}
                return nothing, [Failure(way.name, samples.numbers[0], first_line(error))]
        found = [self._values(way, self._made(one), one) for one in samples.each()]
        if len({failure.message for _, failed in found for failure in failed}) == 1 and all(failed for _, failed in found):
            raise self._errors[way.name]  # all for one reason: it is none of the samples'
        return _together([values for values, _ in found]), [failure for _, failed in found for failure in failed]

    def _of_case(self, way: Way, batch: Batch) -> dict[str, Tensor]:
        case = way.case(batch)
        found = {metric.name: metric(case).double().cpu() for metric in self.metrics}
        for curves in list(case.curves.values())[:1]:
            found |= on_grid(curves)
        return found

    def _made(self, samples: Samples) -> Batch:
        target, masks = self._target(samples), self._masks(samples)
        return Batch.of(
            self.prepared, samples.inputs, target, samples.numbers, labels=samples.labels, masks=masks, seed=self.seed
        )

    def _target(self, samples: Samples) -> Target:
        if not isinstance(self.target, str):
            if isinstance(self.target, Tensor) and self.target.dim() == 0:
                return self.target
            return of_samples(self.target, torch.tensor(list(samples.numbers)))
        if self.target == "predicted":
            return None
        if self.target == "label":
            if samples.labels is None:
                raise TargetError("target='label' needs labels: data=(x, y)")
            return samples.labels
        raise TargetError(f"target={self.target!r}; choose 'predicted', 'label', a class, or what explain() takes")

    def _masks(self, samples: Samples) -> Tensor | None:
        return None if self.masks is None else self.masks[samples.numbers.start : samples.numbers.stop]

    def _check_counts(self, count: int, known: bool) -> None:
        """One mask and one target for each sample."""
        for what, given in (("masks", self.masks), ("targets", self.target)):
            several = isinstance(given, Tensor) and given.dim() > 0
            if several and (len(given) < count or (known and len(given) != count)):  # type: ignore[arg-type]
                raise InputError(f"{len(given)} {what} for {count} samples; give one each")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Kept:
    """A folder of what is finished, each piece under the fingerprint of all that it depends on."""

    folder: Path | None
    settings: str = ""

    @classmethod
    def at(cls, folder: str | Path | None, model: Any, seed: int, metrics: Sequence[Metric]) -> "Kept":
        if folder is None:
            return cls(None)
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"keep={str(folder)!r} is a file; give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, fingerprint(model, seed, metrics, version("whence")))

    def key(self, *about: Any) -> str:
        return "" if self.folder is None else fingerprint(self.settings, *about)

    def read(self, key: str) -> dict[str, Tensor] | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as kept:
                return {name: torch.from_numpy(kept[name]) for name in kept.files}
        except (OSError, ValueError, BadZipFile, EOFError):  # damaged: to be computed again
            return None

    def write(self, key: str, found: dict[str, Tensor]) -> None:
        path = self._path(key)
        if path is None:
            return
        with written(path) as beside:
            arrays: dict[str, Any] = {name: values.numpy() for name, values in found.items()}
            np.savez(beside, **arrays)

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.npz"


def _check_needs(metrics: Sequence[Metric], model: Any, masks: Tensor | None) -> None:
    for metric in metrics:
        if getattr(metric, "needs_masks", False) and masks is None:
            raise InputError(f"{metric.name} needs masks=, one of each sample: [N, H, W] of pictures, [N, T] of texts")
        if getattr(metric, "needs_module", False) and not isinstance(model, nn.Module):
            raise ModelError(f"{metric.name} makes weights random; the model must be a torch.nn.Module")


def _together(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Values of all samples; NaN where some have none."""
    like = {key: value for part in parts for key, value in part.items()}

    def padded(part: dict[str, Tensor], key: str) -> Tensor:
        count = len(next(iter(part.values())))
        return part.get(key, like[key].new_full((count, *like[key].shape[1:]), torch.nan))

    return {key: torch.cat([padded(part, key) for part in parts]) for key in like}
