"""The work on one shard: what a job is, and who does it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.explainer import Explainer
from whence.core.explanation import Explanation
from whence.core.fingerprints import fingerprint
from whence.core.targets import Logit, Target
from whence.core.trees import described, tensors
from whence.data.dataset_rows import Rows, Samples, Unreadable
from whence.data.partial_failures import salvaged
from whence.errors import InputError, RuleError, StoreError, WhenceError, first_line
from whence.evaluation.case import Watching
from whence.methods.batching import automatic_batch_size
from whence.methods.registry import Method
from whence.stores.store import Manifest, Shard, Store, halved

LOOKED_AT = 8  # rows by which data sets are told apart
PICTURE = 64  # pixels a side, of the pictures that are kept for looking at


@dataclass(frozen=True)
class Job:
    """What is computed for every shard; it can be sent to other machines."""

    model: Callable[..., Any]
    rows: Rows
    method: Method
    targets: Any
    layers: tuple[str, ...]
    batch_size: int | None
    reduce: str
    pictures: bool
    shape: Any = None  # of the samples; others fail

    def manifest(self, shard_size: int, classes: Sequence[str]) -> Manifest:
        return Manifest(
            count=self.rows.count, shard_size=shard_size, model=fingerprint(self.model), method=fingerprint(self.method),
            method_words=described(self.method), data=self._data(), targets=_in_words(self.targets), layers=self.layers,
            reduce=self.reduce, pictures=self.pictures, library=f"whence {version('whence')}", classes=list(map(str, classes)),
        )  # fmt: skip

    def _data(self) -> str:
        """By its length and a few of its rows: reading all would take as long as explaining them."""
        count = self.rows.count
        looked_at = sorted({round(i * (count - 1) / (LOOKED_AT - 1)) for i in range(LOOKED_AT)}) if count else []
        found = []
        for i in looked_at:
            try:
                found.append(self.rows.row(i))
            except Exception as error:
                found.append(first_line(error))
        return fingerprint(count, found)


class Worker:
    """Explains shards, on the prepared explainer; the next batch is read while one is explained."""

    def __init__(self, job: Job):
        self.job = job
        self._explainer = Explainer(job.model, job.method)

    def shard(self, numbers: range) -> Shard:
        """All samples of these numbers, and those that failed."""
        parts: list[dict[str, Tensor]] = []
        failures: list[Unreadable] = []
        for samples, unreadable in self._read(numbers):
            failures += unreadable
            for some, outcome in salvaged(self.explained, samples, Samples.one_by_one) if samples is not None else []:
                if isinstance(outcome, Exception):
                    failures.append(Unreadable(some.numbers[0], first_line(outcome)))
                else:
                    parts.append(outcome)
        failed = [vars(failure) for failure in sorted(failures, key=lambda f: f.index)]
        if not parts:
            return Shard({"index": torch.zeros(0, dtype=torch.long)}, failed)
        together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = together["index"].argsort()
        return Shard({name: t[order] for name, t in together.items()}, failed)

    def _read(self, numbers: range) -> Iterator[tuple[Samples | None, list[Unreadable]]]:
        size = self.job.batch_size or self._usual_size(numbers)
        pieces = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        with ThreadPoolExecutor(1) as reader:
            ahead: Future | None = reader.submit(self._rows, pieces[0])
            for following in [*pieces[1:], None]:
                assert ahead is not None
                found = ahead.result()
                ahead = None if following is None else reader.submit(self._rows, following)
                yield found

    def _rows(self, numbers: Sequence[int]) -> tuple[Samples | None, list[Unreadable]]:
        return self.job.rows.read(numbers, self.job.shape)

    def _usual_size(self, numbers: range) -> int:
        for i in numbers:
            one, _ = self._rows([i])
            if one is not None:
                return min(64, automatic_batch_size(one.inputs))
        return 1

    def explained(self, samples: Samples) -> dict[str, Tensor]:
        """The columns of one batch."""
        job, shown = self.job, []
        e = self._explainer(
            samples.inputs.beside(job.model).nest, self._target(samples, shown), layers=job.layers, progress=False
        )
        found = {
            "index": torch.tensor(samples.numbers),
            "output": e.output.float(),
            "label": torch.full((len(samples),), -1) if samples.labels is None else samples.labels.long(),
            "relevance_sum": e.conservation.relevance.float(),
            "conservation_error": e.conservation.error.float(),
        }
        if shown:
            logits = _of_the_inputs_themselves(shown, e)
            found |= {"prediction": logits.argmax(1), "confidence": logits.float().softmax(1).amax(1)}
            found["target"] = e.target.index
        found |= halved(reduced(e)) if job.reduce == "channels" else {"relevance": _only(e)}
        for name, relevance in e.layers.items():
            found[f"layers.{name}"] = _by_channel(relevance, _channels_first(job.model, name))
        if job.pictures and (picture := _picture(e)) is not None:
            found["picture"] = picture
        return {name: t.detach().cpu() for name, t in found.items()}

    def _target(self, samples: Samples, shown: list[Tensor]) -> Target:
        wanted, labels, numbers = self.job.targets, samples.labels, samples.numbers
        if isinstance(wanted, str):
            if wanted == "predicted":
                return Watching(None, shown=shown)
            if labels is None:
                raise RuleError("targets='label' needs labels; the data set has none")
            return Watching(labels, shown=shown)
        if isinstance(wanted, Logit):
            here = wanted.mapped(lambda index: index[numbers])
            return Watching(here.index, here.rather_than, here.position, shown)
        if isinstance(wanted, Tensor) and wanted.dim():
            return Watching(wanted[numbers], shown=shown)
        return Watching(wanted, shown=shown) if isinstance(wanted, int | Tensor) else wanted


def finish(worker: Worker, store: Store, number: int) -> None:
    """One shard, explained and written."""
    found = worker.shard(store.manifest.rows(number))
    try:
        found.write(store.path(number), store.manifest.settings)
    except Exception as error:  # safetensors' own, for a full disk too
        if isinstance(error, WhenceError):
            raise
        raise StoreError(f"{store.path(number)} cannot be written: {first_line(error)}") from error


def reduced(e: Explanation) -> Tensor:
    """Relevance summed over channels: `[n, H, W]` of pictures, `[n, T]` of series and texts, as it is of vectors."""
    relevance = _only(e)
    return relevance.sum(1) if relevance.dim() > 2 else relevance


def _of_the_inputs_themselves(shown: list[Tensor], e: Explanation) -> Tensor:
    """The logits that gave the explained outputs: many methods ask for altered inputs too."""
    for logits in shown:
        if len(logits) == len(e) and torch.allclose(logits.gather(1, e.target.index[:, None])[:, 0], e.output, rtol=1e-4):
            return logits
    raise StoreError("the method explains other outputs than the model gives; store it with a target function")


def _only(e: Explanation) -> Tensor:
    found = tensors(e.relevance)
    if len(found) != 1:
        raise InputError(f"a store holds the relevance of one input, not of {', '.join(found)}; wrap the model")
    return next(iter(found.values()))


def _by_channel(relevance: Any, channels_first: bool) -> Tensor:
    """Σ over space, `[n, C]`, of all calls of the layer; of texts and patches `[n, T, C]` over tokens."""
    calls = relevance if isinstance(relevance, tuple) else (relevance,)
    found = [r if r.dim() < 3 else r.flatten(2).sum(2) if r.dim() > 3 or channels_first else r.sum(1) for r in calls]
    return torch.stack(found).sum(0).float()


def _channels_first(model: Any, layer: str) -> bool:
    """Whether `[n, …, …]` of this layer is a series `[n, C, T]`, not tokens `[n, T, C]`."""
    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d)
    return isinstance(model, nn.Module) and isinstance(dict(model.named_modules()).get(layer), kinds)


def _picture(e: Explanation) -> Tensor | None:
    """The inputs as bytes, `[n, C, h, w]`, at most so many pixels a side; None of what is no picture."""
    x = next(iter(tensors(e.inputs).values()))
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return None
    x = x.float()
    if max(x.shape[2:]) > PICTURE:
        scale = PICTURE / max(x.shape[2:])
        x = torch.nn.functional.interpolate(x, scale_factor=scale, mode="area")
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return ((x - low) / (high - low).clamp(min=1e-12) * 255).round().byte()


def _in_words(targets: Any) -> str:
    return targets if isinstance(targets, str) else fingerprint(targets)
