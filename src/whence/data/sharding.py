"""Work in numbered pieces, distributed among array jobs (every n-th piece) or the workers of a Ray cluster."""

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from whence.errors import MissingPackageError, RuleError, WhenceError, first_line, value_repr

CONNECT_TIMEOUT = 10.0  # seconds

PieceWork = Callable[[int], Any]  # number of a piece -> result


class ClusterError(WhenceError):
    """A Ray cluster cannot be reached, or fails."""


def parse_shard(shard: str | tuple[int, int] | None) -> tuple[int, int]:
    """Parse "i/n" into `(i, n)`: this job does every n-th piece, starting at the i-th.

    "env" reads both from the environment variables that torchrun sets; None is `(0, 1)`, all pieces.
    """
    if shard is None:
        return 0, 1
    if shard == "env":
        shard = (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    try:
        i, n = map(int, shard.split("/") if isinstance(shard, str) else shard)
    except (ValueError, TypeError) as error:
        raise RuleError(f"shard={value_repr(shard)}; give 'i/n', as in '0/8', or 'env' under torchrun") from error
    if not 0 <= i < n:
        raise RuleError(f"shard={value_repr(shard)}; i in 'i/n' must be from 0 to n − 1")
    return i, n


class RayWorker:
    """An actor on a machine of the cluster, which prepares its work once."""

    def __init__(self, make: Callable[..., PieceWork], given: Any):
        import ray

        self._work = make(*ray.get(given))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = [pickle.dumps(self._work(int(number))) for number in batch["item"]]
        return {"item": batch["item"], "found": np.array(found, dtype=object)}


def run_on_ray(
    make: Callable[..., PieceWork], given: tuple, numbers: Sequence[int], address: str | None, num_gpus: float = 0
) -> Iterator[tuple[int, Any]]:
    """Yield each number with the result of `make(*given)(number)`, in the order of completion, by Ray Data.

    Each worker calls `make` once. With `num_gpus`, it has so many GPUs, and there are as many workers as the GPUs suffice for.
    """
    if not numbers:
        return
    ray = _connect(address)
    try:
        workers = _worker_count(ray.cluster_resources(), len(numbers), num_gpus)
        items = ray.data.from_items(list(numbers), override_num_blocks=len(numbers))
        pool = ray.data.ActorPoolStrategy(size=workers)
        done = items.map_batches(
            RayWorker, fn_constructor_args=(make, ray.put(given)), batch_size=1, compute=pool, num_gpus=num_gpus or None
        )
        for batch in done.iter_batches(batch_size=1, prefetch_batches=0):
            for number, found in zip(batch["item"], batch["found"], strict=True):
                yield int(number), pickle.loads(found)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, WhenceError) else ClusterError(f"Ray failed: {_last_line(error)}") from error


def _worker_count(resources: Mapping[str, float], pieces: int, num_gpus: float) -> int:
    """Return how many workers a cluster has room for, at most one per piece."""
    if not num_gpus:
        return max(1, min(pieces, int(resources.get("CPU", 1))))
    if (gpus := resources.get("GPU", 0)) < num_gpus:
        raise ClusterError(f"num_gpus={num_gpus:g} for each worker, but the cluster has {gpus:g} GPUs; pass num_gpus=0")
    return min(pieces, int(gpus / num_gpus))


def _connect(address: str | None) -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPackageError("engine='ray' needs Ray; pip install 'whence[ray]'") from error
    if ray.is_initialized():
        return ray
    if address is not None and address not in ("auto", "local"):
        _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"cannot connect to a Ray cluster at {address or 'this machine'}: {first_line(error)}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _check_reachable(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no answer from {address} within {CONNECT_TIMEOUT:.0f} s ({first_line(error)}); start a cluster with "
            "`ray start --head` and pass its address, host:port"
        ) from error


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
