"""explain_dataset(): explanations of a whole data set, on one machine or many, that survive being killed."""

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
from whence.errors import InputError, RuleError, StoreError, TargetError, WhenceError
from whence.methods.registry import Method, resolve_method
from whence.stores.shard_worker import SAMPLED_ROWS, ShardWorker, StoreJob, write_shard
from whence.stores.store import MANIFEST, Shard, Store, claim_store, open_store

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
    """Explain a whole dataset into a store, a folder of shards; a run that was interrupted resumes where it stopped.

    >>> store = whence.explain_dataset(model, dataset, "explanations", layers=["features.10"])
    >>> whence.explain_dataset(model, dataset, "explanations", layers=["features.10"])       # nothing left to do
    >>> whence.explain_dataset(model, dataset, "explanations", shard="3/8")                  # the fourth of eight array jobs

    `inputs` is map-style (PyTorch's, Hugging Face's, `(x, y)`), its rows inputs or pairs of input and label; `read` makes them
    of other rows. `target` is "predicted", "label", or a target as for `explain` (`[n]`: one each). `reduce` "channels" keeps
    maps summed over channels in half precision, "none" relevance as it is. `layers` keeps the relevance of every channel of
    named layers, `pictures` small pictures of the inputs for looking at.

    Each shard of `shard_size` samples is written aside and renamed, with a checksum; a rerun computes the missing ones alone
    and refuses a store of another model, method, data or setting, naming which. Samples that cannot be read or explained are in
    `store.failures`. `shard="i/n"` does every n-th shard, for array jobs and `torchrun`, with no coordinator; `engine="ray"`
    shares the shards among the workers of a Ray cluster at `address`.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: A map-style dataset (of PyTorch, of Hugging Face, or `(x, y)`) whose rows are inputs or pairs of input and
            label.
        store: Folder of the store, new or unfinished.
        method: A method or its short name; LRP with its default rules if not given.
        target: What is explained: "predicted", "label", or a target as for `explain`.
        layers: Module paths whose channel relevance is stored.
        batch_size: Number of samples explained at once; chosen by their size if not given.
        shard_size: Number of samples in a file.
        reduce: "channels" for maps summed over channels in half precision, "none" for the relevance as it is.
        read: Function that makes an input, or a pair of input and label, of a row.
        class_names: Names of the classes.
        pictures: Whether to store small images of the inputs, for reports.
        shard: "i/n" to compute every n-th shard from the i-th on, or "env" under torchrun.
        engine: "local" or "ray".
        address: Address of a Ray cluster, host:port.
        progress: False for no progress bar, or a function that is called with (done, total).

    Returns:
        The `Store`.

    Raises:
        StoreError: If the folder holds explanations of other settings.
    """
    if reduce not in REDUCTIONS:
        raise RuleError(f"reduce={reduce!r}; choose from {', '.join(REDUCTIONS)}")
    if isinstance(target, str) and target not in ("predicted", "label"):
        raise RuleError(f"target={target!r}; choose 'predicted', 'label', or what explain() takes")
    if not isinstance(shard_size, int) or shard_size < 1:
        raise InputError(f"shard_size={shard_size!r}; expected the number of samples in a file")
    rows = DatasetRows.of(inputs, read)
    if not rows.count:
        raise InputError("the dataset is empty")
    wanted = torch.as_tensor(target) if isinstance(target, list | tuple | np.ndarray) else target
    if isinstance(wanted, Tensor) and wanted.dim() and len(wanted) != rows.count:
        raise TargetError(f"{len(wanted)} targets for {rows.count} samples; give one, or one each")
    job = StoreJob(model, rows, resolve_method(method), wanted, tuple(layers), batch_size, reduce, pictures, rows.shape)
    folder = Path(store)
    if not (folder / MANIFEST).is_file():
        _try_first_sample(job)
    there = claim_store(folder, job.manifest(shard_size, class_names))
    i, n = parse_shard(shard)
    todo = pending_shards(there, range(i, there.manifest.shards, n))
    engines = {"local": run_locally, "ray": run_on_cluster}
    if engine not in engines:
        raise RuleError(f"engine={engine!r}; choose from {', '.join(engines)}")
    engines[engine](job, there, todo, progress, address)
    return open_store(store)


def pending_shards(store: Store, numbers: Sequence[int]) -> list[int]:
    """Return the shards that are missing, or damaged and to be computed again."""
    found = []
    for number in numbers:
        try:
            Shard.read(store.path(number), store.manifest.settings)
        except StoreError:
            store.path(number).unlink(missing_ok=True)
            found.append(number)
    return found


def _try_first_sample(job: StoreJob) -> None:
    """A sample, before a folder is claimed for settings that cannot work."""
    worker, failed = ShardWorker(job), None
    for i in range(min(job.rows.count, SAMPLED_ROWS)):
        sample, _ = job.rows.read([i], job.shape)
        try:
            if sample is not None:
                worker.explained(sample)
                return
        except WhenceError as error:  # perhaps of this sample alone
            failed = failed or error
    if failed is not None:
        raise failed


def run_locally(job: StoreJob, store: Store, todo: Sequence[int], shown: Progress, address: str | None) -> None:
    """One shard after the other in this process."""
    if address is not None:
        raise RuleError("address= is the address of a Ray cluster; pass engine='ray' too")
    _track(map(shard_writer(job, store.folder), todo), store, todo, shown)


def run_on_cluster(job: StoreJob, store: Store, todo: Sequence[int], shown: Progress, address: str | None) -> None:
    """Every machine of the cluster must see the store's folder under the same path."""
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
