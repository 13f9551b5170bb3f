"""The shards of a store shared among the workers of a Ray cluster, by Ray Data."""

import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whence.datasets.store import Store, open_store
from whence.datasets.work import Job, Worker, finish
from whence.errors import MissingPackageError, WhenceError, first_line
from whence.progress import Progress, progress

ANSWER_WITHIN = 10.0  # seconds


class ClusterError(WhenceError):
    """A cluster that cannot be reached, or fails."""


class ShardWorker:
    """Lives on a machine of the cluster, with the model prepared once."""

    def __init__(self, job: Any, folder: str):
        import ray

        self._worker, self._store = Worker(ray.get(job)), open_store(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number in batch["item"]:
            finish(self._worker, self._store, int(number))
        return batch


def by_ray(job: Job, store: Store, todo: Sequence[int], shown: Progress, address: str | None) -> None:
    """Every machine of the cluster must see the store's folder under the same path."""
    if not todo:
        return
    ray = _connected(address)
    try:
        workers = max(1, min(len(todo), int(ray.cluster_resources().get("CPU", 1))))
        shards = ray.data.from_items(list(todo), override_num_blocks=len(todo))
        pool = ray.data.ActorPoolStrategy(size=workers)
        made = (ray.put(job), str(Path(store.folder).resolve()))
        done = shards.map_batches(ShardWorker, fn_constructor_args=made, batch_size=1, compute=pool)
        sizes = {number: len(store.manifest.rows(number)) for number in todo}
        with progress("explain dataset", sum(sizes.values()), shown) as advance:
            for batch in done.iter_batches(batch_size=1, prefetch_batches=0):
                advance(sum(sizes[int(number)] for number in batch["item"]))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, WhenceError) else ClusterError(f"Ray failed: {_last_line(error)}") from error


def _connected(address: str | None) -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackageError("engine='ray' needs Ray; pip install 'whence[ray]'") from error
    if ray.is_initialized():
        return ray
    if address is not None and address not in ("auto", "local"):
        _check_that_it_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {first_line(error)}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _check_that_it_answers(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER_WITHIN).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"nothing answers at {address} within {ANSWER_WITHIN:.0f} s ({first_line(error)}); start a cluster by "
            "`ray start --head` and give its address, host:port"
        ) from error


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
