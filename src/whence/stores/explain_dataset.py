"""`explain_dataset`: explanations of a whole dataset, on one machine or several, resumable after interruption."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.progress import Progress, progress
from whence.data.dataset_rows import DatasetRows
from whence.data.sharding import parse_shard, run_on_ray
from whence.errors import InputError, RuleError, TargetError, WhenceError, value_repr
from whence.methods.registry import Method, resolve_method
from whence.stores.shard_worker import SAMPLED_ROWS, ShardWorker, StoreJob, write_shard
from whence.stores.store import MANIFEST, DamagedShardError, Shard, Store, claim_store, open_store

SHARD_SIZE = 256
REDUCTIONS = ("channels", "none")


@check_arguments
def explain_dataset(
    model: Callable[..., Any],
    inputs: Any,
    store: str | Path,
    *,
    method: Method | str | None = None,
    target: Any = "predicted",
    layers: Sequence[str] = (),
    batch_size: int | None = None,
    shard_size: int = SHARD_SIZE,
    reduce: str = "channels",
    read: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] = (),
    pictures: bool = True,
    shard: str | tuple[int, int] | None = None,
    engine: str = "local",
    address: str | None = None,
    progress: Progress = True,
) -> Store:
    """Explain a whole dataset and save the explanations in a store, a folder of shards; interrupted runs resume.

    >>> store = whence.explain_dataset(model, dataset, "explanations", layers=["features.10"])
    >>> whence.explain_dataset(model, dataset, "explanations", layers=["features.10"])       # nothing left to do
    >>> whence.explain_dataset(model, dataset, "explanations", shard="3/8")                  # the fourth of eight array jobs

    Each shard is written to a temporary file with a checksum, then renamed. A rerun computes only the missing shards; it
    refuses a store that was made with another model, method, dataset or setting. Samples that cannot be read or explained are
    listed in `store.failures`.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is not modified.
        inputs: A map-style dataset (of PyTorch or Hugging Face) or `(x, y)`; its rows are inputs, or pairs of input and label.
        store: The folder of the store, new or unfinished.
        method: A method or its short name; defaults to LRP with rules that suit most networks.
        target: "predicted", "label", or any target that `explain` takes; a tensor `[n]` is one target per sample.
        layers: Names of modules for which the relevance of every channel is stored.
        batch_size: The number of samples explained at once; None chooses it by the size of the samples.
        shard_size: The number of samples per shard.
        reduce: "channels" stores relevance summed over channels in half precision, "none" stores it as it is.
        read: A function from a row of the dataset to an input, or to a pair of input and label.
        class_names: Names of the classes, for reports.
        pictures: Whether to store thumbnails of the inputs.
        shard: "i/n" or `(i, n)` computes every n-th shard, starting at i, for array jobs; "env" reads i and n from the
            environment variables that torchrun sets. The jobs need no coordinator.
        engine: "local", or "ray" to distribute the shards among the workers of a Ray cluster.
        address: The address of the Ray cluster, host:port.
        progress: Whether to show a progress bar, or a function that is called with (done, total).
    Returns:
        The `Store`.
    Raises:
        InputError: The dataset is empty, or cannot be read by index.
        RuleError: A setting is invalid.
        TargetError: The targets do not match the samples.
        StoreError: The folder holds other files, or a store of other settings; or a shard cannot be written.
    """
    if reduce not in REDUCTIONS:
        raise RuleError(f"reduce={value_repr(reduce)}; choose from {', '.join(REDUCTIONS)}")
    if isinstance(target, str) and target not in ("predicted", "label"):
        raise RuleError(f"target={value_repr(target)}; choose 'predicted', 'label', or any target that explain() takes")
    if not isinstance(shard_size, int) or shard_size < 1:
        raise InputError(f"shard_size={value_repr(shard_size)}; expected a positive int, the number of samples per file")
    rows = DatasetRows.of(inputs, read)
    if not rows.count:
        raise InputError("the dataset is empty")
    wanted = torch.as_tensor(target) if isinstance(target, list | tuple | np.ndarray) else target
    if isinstance(wanted, Tensor) and wanted.dim() and len(wanted) != rows.count:
        raise TargetError(f"{len(wanted)} targets for {rows.count} samples; give one for all, or one per sample")
    job = StoreJob(model, rows, resolve_method(method), wanted, tuple(layers), batch_size, reduce, pictures, rows.shape)
    folder = Path(store)
    if not os.path.isfile(folder / MANIFEST):  # False also for names that no file system takes
        _try_first_sample(job)
    there = claim_store(folder, job.manifest(shard_size, class_names))
    i, n = parse_shard(shard)
    todo = pending_shards(there, range(i, there.manifest.shards, n))
    engines = {"local": run_locally, "ray": run_on_cluster}
    if engine not in engines:
        raise RuleError(f"engine={value_repr(engine)}; choose from {', '.join(engines)}")
    engines[engine](job, there, todo, progress, address)
    return open_store(store)


def pending_shards(store: Store, numbers: Sequence[int]) -> list[int]:
    """Return the shards that are missing or proven to be damaged, whose files will be replaced."""
    found = []
    for number in numbers:
        if not store.path(number).exists():
            found.append(number)
            continue
        try:
            Shard.read(store.path(number), store.manifest.settings, store.manifest.rows(number))
        except DamagedShardError:
            found.append(number)
    return found


def _try_first_sample(job: StoreJob) -> None:
    """Explain one sample, so that invalid settings raise an error before the folder is created."""
    worker, failed = ShardWorker(job), None
    for i in range(min(job.rows.count, SAMPLED_ROWS)):
        sample, _ = job.rows.read([i], job.shape)
        try:
            if sample is not None:
                worker.explained(sample)
                return
        except WhenceError as error:  # the error may concern this sample only
            failed = failed or error
    if failed is not None:
        raise failed


def run_locally(job: StoreJob, store: Store, todo: Sequence[int], shown: Progress, address: str | None) -> None:
    """Compute one shard after the other in this process."""
    if address is not None:
        raise RuleError("address= is the address of a Ray cluster; pass engine='ray' too")
    _track(map(shard_writer(job, store.folder), todo), store, todo, shown)


def run_on_cluster(job: StoreJob, store: Store, todo: Sequence[int], shown: Progress, address: str | None) -> None:
    """Compute the shards on a Ray cluster, all machines of which must see the folder of the store at the same path."""
    done = run_on_ray(shard_writer, (job, Path(store.folder).resolve()), todo, address)
    _track((number for number, _ in done), store, todo, shown)


def shard_writer(job: StoreJob, folder: Path) -> Callable[[int], int]:
    """Return a function that explains and writes a shard by number, and returns the number."""
    worker, store = ShardWorker(job), open_store(folder)

    def write(number: int) -> int:
        write_shard(worker, store, number)
        return number

    return write


def _track(done: Iterable[int], store: Store, todo: Sequence[int], shown: Progress) -> None:
    sizes = {number: len(store.manifest.rows(number)) for number in todo}
    with progress("explain dataset", sum(sizes.values()), shown) as advance:
        for number in done:
            advance(sizes[number])
