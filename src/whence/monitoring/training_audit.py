"""`TrainingAudit`: audits of a fixed sample while a network is trained."""

import atexit
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.auditing.audit import Audit, audit
from whence.core.result import Result
from whence.data.batches import ReadFunction
from whence.data.dataset_rows import DatasetRows
from whence.errors import AuditWarning, InputError, RuleError, WhenceError, first_line, value_repr
from whence.evaluation.metrics.complexity import gini
from whence.methods.registry import Method, resolve_method
from whence.stores.explain_dataset import explain_dataset
from whence.stores.store import Store, StoreColumn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tracker = Callable[[int, Mapping[str, float], Mapping[str, "Figure"]], None]
PREFIX = "whence/"  # of the names of what is logged
SAMPLES_DRAWN = 8


@dataclass(frozen=True, eq=False, repr=False)
class TrainingRecord:
    """The audit of one epoch.

    >>> watch.records[-1].statistics["largest_effect"]

    Args:
        epoch: Number of the epoch.
        statistics: Values by name: accuracy, confidence, positive_share, gini, conservation_error, suspicious_classes,
            largest_effect.
        audit: The audit; None if the samples could not be audited.
        note: Why they could not be audited.
    """

    epoch: int
    statistics: Mapping[str, float]
    audit: Audit | None = None
    note: str = ""

    def __repr__(self) -> str:
        return f"TrainingRecord, epoch {self.epoch}: {self.note or (self.audit.headline if self.audit is not None else '')}"

    @property
    def logged(self) -> dict[str, float]:
        """The statistics by the names under which they are logged."""
        return {PREFIX + name: value for name, value in self.statistics.items()}


@dataclass(frozen=True, eq=False)
class TrainingAudit(Result):
    """Audit a fixed sample of a dataset every few epochs, and log what the network has learned to rely on.

    >>> watch = whence.callbacks.TrainingAudit((x, y), every=2, trackers=[whence.callbacks.tensorboard_tracker("runs")])
    >>> for epoch in range(20):
    ...     train(model)
    ...     watch(model, epoch)
    >>> watch.first_suspicious                      # the epoch in which the network began to rely on a mark, or None
    >>> watch.records[-1].audit.save("report.html")

    An `AuditWarning` is emitted when an audit finds the first suspicious cluster. Training is not disturbed: the mode of each
    module, gradients, and the states of random generators are as before, and samples that cannot be audited yet (a network
    that predicts one class for all) give a note in the record.

    Args:
        data: The data that the network is trained on, or a part of them: `x`, `(x, y)` or a map-style dataset, without random
            transforms. A mark can be found if the sample has it.
        every: Audit each epoch that is a multiple of this.
        n_samples: Number of samples to audit, chosen at random and fixed.
        trackers: Functions `(epoch, values by name, figures by name)` that log: `tensorboard_tracker`, `mlflow_tracker`,
            `wandb_tracker`, or your own.
        method: The method of explanation, or its short name; defaults to LRP.
        read: Function from a row of the dataset to an input, or to a pair of input and label; not for tensors.
        class_names: Names of the classes.
        folder: Folder in which the stores of explanations are written, those of each run in a new one; None deletes them when
            the process ends.
        seed: Random seed of the sample and of the audits.

    Raises:
        InputError: If the data are empty.
        RuleError: If `every` or `n_samples` is less than 1.
    """

    data: Any
    every: int = 1
    n_samples: int = 500
    trackers: Sequence[Tracker] = ()
    method: Method | str | None = None
    read: ReadFunction | None = None
    class_names: Sequence[str] = ()
    folder: str | Path | None = None
    seed: int = 0
    records: list[TrainingRecord] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("every", "n_samples"):
            if getattr(self, name) < 1:
                raise RuleError(f"{name}={value_repr(getattr(self, name))}; give an integer of 1 or more")
        if not self._rows.count:
            raise InputError("the data are empty; pass samples of the data that the network is trained on")
        resolve_method(self.method)

    def __call__(self, model: nn.Module, epoch: int) -> TrainingRecord | None:
        """Audit the network after an epoch; return the record, or None for epochs between audits.

        Args:
            model: The network, in training or evaluation mode.
            epoch: Number of the epoch.
        """
        epoch = int(epoch)
        if epoch % self.every:
            return None
        network = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        with undisturbed(network):
            record = self._record(network, epoch)
            if record.audit is not None and record.audit.suspicious and self.first_suspicious is None:
                warnings.warn(f"epoch {epoch}: {record.audit}", AuditWarning, stacklevel=2)
            self.records.append(record)
            if self.trackers:
                figures = self._figures(record)
                for track in self.trackers:
                    try:
                        track(epoch, record.logged, figures)
                    except Exception as error:  # of a library or its server, which training must survive
                        name = getattr(track, "__qualname__", type(track).__name__)
                        warnings.warn(
                            f"epoch {epoch} was not logged by {name}: {first_line(error)}", AuditWarning, stacklevel=2
                        )
        return record

    @property
    def first_suspicious(self) -> int | None:
        """The first epoch in which an audit found a suspicious cluster."""
        found = (r.epoch for r in self.records if r.audit is not None and r.audit.suspicious)
        return next(found, None)

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per audit: the epoch, the statistics and the note."""
        return [{"epoch": r.epoch, **r.statistics, "note": r.note} for r in self.records]

    def figure(self) -> "Figure":
        """Return a figure of the statistics by epoch, with the first suspicious one marked."""
        from whence.plotting.training_curves import training_figure

        names = list(dict.fromkeys(name for r in self.records for name in r.statistics))
        curves = {name: [(r.epoch, r.statistics[name]) for r in self.records if name in r.statistics] for name in names}
        return training_figure(curves, self.first_suspicious)

    def __repr__(self) -> str:
        if not self.records:
            return f"TrainingAudit of {len(self._numbers)} samples every {self.every} epochs: no audits yet"
        first = "" if self.first_suspicious is None else f"; suspicious since epoch {self.first_suspicious}"
        return f"TrainingAudit, last {self.records[-1]!r}{first}"

    @cached_property
    def _rows(self) -> DatasetRows:
        return DatasetRows.of(self.data, self.read)

    @cached_property
    def _numbers(self) -> list[int]:
        """The dataset indices of the sample."""
        order = torch.randperm(self._rows.count, generator=torch.Generator().manual_seed(self.seed))
        return order[: self.n_samples].sort().values.tolist()

    @cached_property
    def _sample(self) -> "FixedSample":
        return FixedSample(self._rows, self._numbers)

    @cached_property
    def _stores(self) -> Path:
        """The folder of the stores."""
        if self.folder is not None:
            return _unused(Path(self.folder), "run")
        made = mkdtemp(prefix="whence-training-audit-")
        atexit.register(shutil.rmtree, made, ignore_errors=True)
        return Path(made)

    def _record(self, model: nn.Module, epoch: int) -> TrainingRecord:
        labelled = self._sample.labelled
        by = "label" if labelled else "predicted"
        try:
            store = explain_dataset(
                model, self._sample, _unused(self._stores, f"epoch-{epoch:04d}"), method=self.method, target=by,
                class_names=self.class_names, progress=False,
            )  # fmt: skip
        except WhenceError as error:
            return TrainingRecord(epoch, {}, None, first_line(error))
        statistics = relevance_statistics(store)
        try:
            found = audit(
                store, model=model, data=self._sample, group_by="label" if labelled else "prediction", seed=self.seed,
                progress=False,
            )  # fmt: skip
        except WhenceError as error:
            return TrainingRecord(epoch, statistics, None, first_line(error))
        statistics |= {
            "suspicious_classes": float(sum(row["suspicious"] > 0 for row in found.by_class)),
            "largest_effect": max((row["largest_effect"] or 0.0 for row in found.by_class), default=0.0),
        }
        return TrainingRecord(epoch, statistics, found)

    def _figures(self, record: TrainingRecord) -> dict[str, "Figure"]:
        """Return the heatmaps of a few samples, the same in each epoch, and the figure of suspicious clusters."""
        from whence.plotting.clusters import ClusterRow, cluster_rows

        if record.audit is None:
            return {}
        store = record.audit.store
        maps = store.relevance[: min(SAMPLES_DRAWN, len(store))]
        figures = {}
        if maps.dim() == 3:
            shown = store.column("picture")[: len(maps)] if "picture" in store.names else [None] * len(maps)
            mean = maps.abs().mean(0)
            figures[PREFIX + "heatmaps"] = cluster_rows(
                [ClusterRow("mean, then samples", mean, None, list(zip(shown, maps, strict=True)))]
            )
        if record.audit.suspicious:
            figures[PREFIX + "suspicious"] = record.audit.figure()
        return figures


def _unused(folder: Path, name: str) -> Path:
    """Return a path in a folder that does not exist yet, numbered if the name is taken."""
    numbered = (folder / (name if k == 1 else f"{name}-{k}") for k in count(1))
    return next(path for path in numbered if not path.exists())


@dataclass(frozen=True)
class FixedSample:
    """A map-style dataset of some rows of another, each of which is read once.

    Args:
        rows: The rows of the dataset.
        numbers: The indices of the sample.
    """

    rows: DatasetRows
    numbers: Sequence[int]
    _read: dict[int, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Any:
        if i not in self._read:
            self._read[i] = self.rows.row(self.numbers[i])
        return self._read[i]

    @cached_property
    def labelled(self) -> bool:
        """Whether a row has a label."""
        for i in range(len(self)):
            with suppress(Exception):  # such rows are listed as failures
                if self[i][1] is not None:
                    return True
        return False


def relevance_statistics(store: Store) -> dict[str, float]:
    """Return statistics of stored explanations: how good the predictions are, and how relevance is distributed.

    `positive_share` is Σ max(R, 0) / Σ|R|, and `gini` the mean Gini coefficient of |R|, near 1 if relevance is concentrated.
    """
    found = {}
    if "prediction" in store.names:
        label = store.column("label")
        if (label >= 0).all():
            found["accuracy"] = float((store.column("prediction") == label).double().mean())
        found["confidence"] = float(store.column("confidence").mean())
    positive = total = concentration = 0.0
    for maps in _flat_batches(store.relevance):
        positive, total = positive + float(maps.clamp(min=0).sum()), total + float(maps.abs().sum())
        concentration += float(gini(maps.abs()).nansum())
    found |= {"positive_share": positive / max(total, 1e-30), "gini": concentration / max(len(store), 1)}
    return found | {"conservation_error": float(store.column("conservation_error").abs().mean())}


def _flat_batches(column: StoreColumn) -> Iterator[Tensor]:
    return (maps.flatten(1).double() for maps in column.batches())


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run with the model in evaluation mode, and restore the mode of each module and all random states afterwards."""
    modes = {module: module.training for module in model.modules()}
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            random.setstate(python)
            np.random.set_state(numpy)
