"""`explain_dataset`: explanations of a whole dataset, on one machine or several, resumable after interruption."""

import os
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
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
from whence.lrp.torch_compat.module_tracker import layer_path
from whence.methods.registry import Method, resolve_method
from whence.stores.late_layers import late_layers
from whence.stores.shard_worker import SAMPLED_ROWS, ShardWorker, StoreJob, write_shard
from whence.stores.store import MANIFEST, DamagedShardError, Manifest, Shard, Store, claim_store, open_store
from whence.stores.store_paths import is_local, store_path

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
    layers: Sequence[str] | str = "auto",
    batch_size: int | None = None,
    shard_size: int = SHARD_SIZE,
    reduce: str = "channels",
    map_size: int | None = None,
    read: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] = (),
    pictures: bool = True,
    shard: str | tuple[int, int] | None = None,
    engine: str = "local",
    address: str | None = None,
    num_gpus: float = 0,
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
        store: The folder of the store, new or unfinished; or a URL that fsspec reads, such as s3://bucket/explanations, with
            the extra "cloud" and the package of the protocol (s3fs, gcsfs, …).
        method: A method or its short name; defaults to LRP with rules that suit most networks.
        target: "predicted", "label", or any target that `explain` takes; a tensor `[n]` is one target per sample.
        layers: Names of modules for which the relevance of every channel is stored; "auto" takes up to two late layers of a
            convolutional network, if the method has relevance of layers.
        batch_size: The number of samples explained at once; None chooses it by the size of the samples.
        shard_size: The number of samples per shard.
        reduce: "channels" stores relevance summed over channels in half precision, "none" stores it as it is.
        map_size: The largest side of the stored maps in pixels: relevance is summed over cells of larger maps. None stores
            every pixel. Only with `reduce="channels"`.
        read: A function from a row of the dataset to an input, or to a pair of input and label.
        class_names: Names of the classes, for reports.
        pictures: Whether to store thumbnails of the inputs.
        shard: "i/n" or `(i, n)` computes every n-th shard, starting at i, for array jobs; "env" reads i and n from the
            environment variables that torchrun sets. The jobs need no coordinator.
        engine: "local", or "ray" to distribute the shards among the workers of a Ray cluster.
        address: The address of the Ray cluster, host:port.
        num_gpus: GPUs of each Ray worker, which holds the model on its GPU; fractions share one. Zero for the CPU.
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
    if map_size is not None and (map_size < 1 or reduce == "none"):
        raise RuleError(f"map_size={value_repr(map_size)}; expected a positive int, with reduce='channels'")
    if num_gpus and engine != "ray":
        raise RuleError("num_gpus= is for Ray workers; pass engine='ray' too, or move the model to a GPU")
    if not isinstance(layers, str):
        layers = [layer_path(model, layer) for layer in ([layers] if isinstance(layers, torch.nn.Module) else layers)]
    elif layers != "auto":
        raise RuleError(f"layers={value_repr(layers)}; give a list of module names, or 'auto'")
    rows = DatasetRows.of(inputs, read)
    if not rows.count:
        raise InputError("the dataset is empty")
    wanted = torch.as_tensor(target) if isinstance(target, list | tuple | np.ndarray) else target
    if isinstance(wanted, Tensor) and wanted.dim() and len(wanted) != rows.count:
        raise TargetError(f"{len(wanted)} targets for {rows.count} samples; give one for all, or one per sample")
    named = () if layers == "auto" else tuple(layers)
    job = StoreJob(model, rows, resolve_method(method), wanted, named, batch_size, reduce, map_size, pictures, rows.shape)
    folder = store_path(store)
    if not _has_manifest(folder):
        _try_first_sample(job)
        if layers == "auto":
            job = _with_late_layers(job)
    elif layers == "auto":
        job = replace(job, layers=tuple(Manifest.read(folder).layers))
    there = claim_store(folder, job.manifest(shard_size, class_names))
    i, n = parse_shard(shard)
    todo = pending_shards(there, range(i, there.manifest.shards, n))
    engines = {"local": run_locally, "ray": run_on_cluster}
    if engine not in engines:
        raise RuleError(f"engine={value_repr(engine)}; choose from {', '.join(engines)}")
    engines[engine](job, there, todo, progress, address, num_gpus)
    return open_store(store)


def _has_manifest(folder: Path) -> bool:
    """Return whether there is a manifest; False also for names that no file system takes."""
    return os.path.isfile(folder / MANIFEST) if is_local(folder) else (folder / MANIFEST).is_file()


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


def _with_late_layers(job: StoreJob) -> StoreJob:
    """Return the job with late layers of the model, or as it is if they cannot be explained."""
    found = replace(job, layers=late_layers(job.model, job.rows.first.inputs.beside(job.model)))
    try:
        if found.layers:
            _try_first_sample(found)
    except WhenceError:  # methods without relevance of layers, layers without channels
        return job
    return found


def run_locally(
    job: StoreJob, store: Store, todo: Sequence[int], shown: Progress, address: str | None, num_gpus: float
) -> None:
    """Compute one shard after the other in this process."""
    if address is not None:
        raise RuleError("address= is the address of a Ray cluster; pass engine='ray' too")
    _track(map(shard_writer(job, store.folder), todo), store, todo, shown)


def run_on_cluster(
    job: StoreJob, store: Store, todo: Sequence[int], shown: Progress, address: str | None, num_gpus: float
) -> None:
    """Compute the shards on a Ray cluster, all machines of which must see the folder of the store at the same path."""
    folder = store.folder.resolve() if is_local(store.folder) else store.folder
    done = run_on_ray(shard_writer, (job, folder, bool(num_gpus)), todo, address, num_gpus)
    _track((number for number, _ in done), store, todo, shown)


def shard_writer(job: StoreJob, folder: Path, on_gpu: bool = False) -> Callable[[int], int]:
    """Return a function that explains and writes a shard by number, and returns the number."""
    if on_gpu:  # the one that Ray gave to this worker
        job = replace(job, model=deepcopy(job.model).to("cuda"))  # type: ignore[attr-defined]
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
