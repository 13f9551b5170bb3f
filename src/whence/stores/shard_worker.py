"""Computation of the shards of a store."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from whence.core.channel_layout import channel_dim, input_channel_dim, sum_over_positions
from whence.core.explainer import Explainer
from whence.core.explanation import Explanation
from whence.core.fingerprints import fingerprint
from whence.core.inputs import Inputs
from whence.core.targets import Logit, Target
from whence.core.trees import named_leaves, short_repr
from whence.data.dataset_rows import DatasetRows, SampleBatch, UnreadableRow
from whence.data.partial_failures import run_with_fallback
from whence.errors import InputError, RuleError, StoreError, WhenceError, first_line
from whence.evaluation.evaluation_batch import LogitRecorder
from whence.methods.batching import automatic_batch_size
from whence.methods.per_sample_settings import method_of_samples
from whence.methods.registry import Method
from whence.stores.store import Manifest, Shard, Store, to_half_precision

SAMPLED_ROWS = 8  # number of rows by which datasets are distinguished
THUMBNAIL_SIDE = 64  # largest side of stored thumbnails in pixels


@dataclass(frozen=True)
class StoreJob:
    """The model, data and settings from which all shards are computed; it can be sent to other machines."""

    model: Callable[..., Any]
    rows: DatasetRows
    method: Method
    target: Any
    layers: tuple[str, ...]
    batch_size: int | None
    reduce: str
    map_size: int | None
    pictures: bool
    shape: Any = None  # of the samples; those of other shapes fail

    def manifest(self, shard_size: int, classes: Sequence[str]) -> Manifest:
        return Manifest(
            count=self.rows.count, shard_size=shard_size, model=fingerprint(self.model), method=fingerprint(self.method),
            method_words=short_repr(self.method), data=dataset_fingerprint(self.rows),
            target=_target_name(self.target), layers=self.layers, reduce=self.reduce, map_size=self.map_size,
            pictures=self.pictures, library=f"whence {version('whence')}", class_names=list(map(str, classes)),
            channel_dim=self._channel_dim(),
        )  # fmt: skip

    def _channel_dim(self) -> int | None:
        """Return the dimension of the channels in relevance that is stored with them."""
        if self.reduce == "channels":
            return None
        first = self.rows.first.inputs.beside(self.model)
        x = first.parts[first.explained[0] if first.explained else 0]
        return input_channel_dim(self.model, first, x) if x.dim() > 2 else None


def dataset_fingerprint(rows: DatasetRows) -> str:
    """Return a fingerprint of a dataset by its length and a few rows; reading all would take as long as explaining."""
    count, found = rows.count, []
    for i in sorted({round(i * (count - 1) / (SAMPLED_ROWS - 1)) for i in range(SAMPLED_ROWS)}) if count else []:
        try:
            found.append(rows.row(i))
        except Exception as error:
            found.append(first_line(error))
    return fingerprint(count, found)


class ShardWorker:
    """Computes shards with a prepared explainer; the next batch is read while the current one is explained."""

    def __init__(self, job: StoreJob):
        self.job = job
        self._explainer = Explainer(job.model, job.method)

    def shard(self, numbers: range) -> Shard:
        """Explain the samples with these indices; return them and those that failed."""
        parts: list[dict[str, Tensor]] = []
        failures: list[UnreadableRow] = []
        for samples, unreadable in self._read(numbers):
            failures += unreadable
            for some, outcome in (
                run_with_fallback(self.explained, samples, SampleBatch.one_by_one) if samples is not None else []
            ):
                if isinstance(outcome, Exception):
                    failures.append(UnreadableRow(some.numbers[0], first_line(outcome)))
                else:
                    parts.append(outcome)
        failed = [vars(failure) for failure in sorted(failures, key=lambda f: f.index)]
        if not parts:
            return Shard({"index": torch.zeros(0, dtype=torch.long)}, failed)
        together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = together["index"].argsort()
        return Shard({name: t[order] for name, t in together.items()}, failed)

    def _read(self, numbers: range) -> Iterator[tuple[SampleBatch | None, list[UnreadableRow]]]:
        size = self.job.batch_size or self._usual_size(numbers)
        pieces = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        with ThreadPoolExecutor(1) as reader:
            ahead: Future | None = reader.submit(self._rows, pieces[0])
            for following in [*pieces[1:], None]:
                assert ahead is not None
                found = ahead.result()
                ahead = None if following is None else reader.submit(self._rows, following)
                yield found

    def _rows(self, numbers: Sequence[int]) -> tuple[SampleBatch | None, list[UnreadableRow]]:
        return self.job.rows.read(numbers, self.job.shape)

    def _usual_size(self, numbers: range) -> int:
        for i in numbers:
            one, _ = self._rows([i])
            if one is not None:
                return min(64, automatic_batch_size(one.inputs))
        return 1

    def explained(self, samples: SampleBatch) -> dict[str, Tensor]:
        """Explain a batch and return the columns of the store."""
        job, shown = self.job, []
        method = method_of_samples(job.method, samples.numbers, job.rows.count)
        explainer = self._explainer if method is job.method else Explainer(job.model, method)
        e = explainer(samples.inputs.beside(job.model).nest, self._target(samples, shown), layers=job.layers, progress=False)
        found = {
            "index": torch.tensor(samples.numbers),
            "output": e.output.float(),
            "label": torch.full((len(samples),), -1) if samples.labels is None else samples.labels.long(),
            "relevance_sum": e.conservation.relevance.float(),
            "conservation_error": e.conservation.error.float(),
        }
        if shown:
            logits = _logits_of_inputs(shown, e)
            if logits.shape[1] == 1:  # of the second of two classes
                logits = torch.cat([torch.zeros_like(logits), logits], 1)
            found |= {"prediction": logits.argmax(1), "confidence": logits.float().softmax(1).amax(1)}
            found["target"] = e.target.index
        relevance = _single_input(e)
        if job.reduce == "channels":
            maps = reduce_relevance(e, input_channel_dim(job.model, samples.inputs, relevance))
            found |= to_half_precision(maps if job.map_size is None else sum_over_cells(maps, job.map_size))
        else:
            found["relevance"] = relevance
        for name, relevance in e.layers.items():
            found[f"layers.{name}"] = _channel_relevance(job.model, samples.inputs, name, relevance)
        if job.pictures and (picture := _thumbnails(e)) is not None:
            found["picture"] = picture
        return {name: t.detach().cpu() for name, t in found.items()}

    def _target(self, samples: SampleBatch, shown: list[Tensor]) -> Target:
        wanted, labels, numbers = self.job.target, samples.labels, samples.numbers
        if isinstance(wanted, str):
            if wanted == "predicted":
                return LogitRecorder(None, shown=shown)
            if labels is None:
                raise RuleError("target='label' needs labels, but the dataset has none")
            return LogitRecorder(labels, shown=shown)
        if isinstance(wanted, Logit):
            here = wanted.mapped(lambda index: index[numbers])
            return LogitRecorder(here.index, here.rather_than, here.position, shown=shown)
        if isinstance(wanted, Tensor) and wanted.dim():
            return LogitRecorder(wanted[numbers], shown=shown)
        return LogitRecorder(wanted, shown=shown) if isinstance(wanted, int | Tensor) else wanted


def write_shard(worker: ShardWorker, store: Store, number: int) -> None:
    """Explain one shard and write it."""
    found = worker.shard(store.manifest.rows(number))
    try:
        found.write(store.path(number), store.manifest.settings)
    except WhenceError as error:
        raise StoreError(first_line(error)) from error


def reduce_relevance(e: Explanation, channels: int) -> Tensor:
    """Sum relevance over channels: `[n, H, W]` for images, `[n, T]` for series and texts; vectors are unchanged."""
    relevance = _single_input(e)
    return relevance.sum(channels) if relevance.dim() > 2 else relevance


def sum_over_cells(maps: Tensor, side: int) -> Tensor:
    """Return maps `[n, H, W]` or `[n, T]` summed over cells, so that no side is longer; the sum of relevance stays the same."""
    maps = maps.float()
    for dim, length in enumerate(maps.shape[1:], start=1):
        if length > side:
            cell = torch.arange(length, device=maps.device) * side // length
            shape = (*maps.shape[:dim], side, *maps.shape[dim + 1 :])
            maps = maps.new_zeros(shape).index_add_(dim, cell, maps)
    return maps


def _logits_of_inputs(shown: list[Tensor], e: Explanation) -> Tensor:
    """Return the recorded logits that belong to the explained outputs; many methods run the model on other inputs too."""
    for logits in shown:
        if len(logits) == len(e) and torch.allclose(logits.gather(1, e.target.index[:, None])[:, 0], e.output, rtol=1e-4):
            return logits
    raise StoreError("the method explains outputs other than the model's; pass a target function")


def _single_input(e: Explanation) -> Tensor:
    found = named_leaves(e.relevance)
    if len(found) != 1:
        raise InputError(f"a store holds the relevance of one input, got {', '.join(found)}; wrap the model")
    return next(iter(found.values()))


def _channel_relevance(model: Any, inputs: Inputs, layer: str, relevance: Any) -> Tensor:
    """Sum relevance over positions and calls of the layer, `[n, C]`."""
    calls = relevance if isinstance(relevance, tuple) else (relevance,)
    return torch.stack([sum_over_positions(r, channel_dim(model, layer, inputs, r)) for r in calls]).sum(0).float()


def _thumbnails(e: Explanation) -> Tensor | None:
    """Return images as bytes `[n, C, h, w]`, scaled down to `THUMBNAIL_SIDE`; None for other inputs."""
    x = next(iter(named_leaves(e.inputs).values()))
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return None
    x = x.float()
    if max(x.shape[2:]) > THUMBNAIL_SIDE:
        size = [max(1, side * THUMBNAIL_SIDE // max(x.shape[2:])) for side in x.shape[2:]]
        x = torch.nn.functional.interpolate(x, size, mode="area")
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return ((x - low) / (high - low).clamp(min=1e-12) * 255).round().byte()


def _target_name(target: Any) -> str:
    return target if isinstance(target, str) else fingerprint(target)
