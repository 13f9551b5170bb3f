"""What a store costs beside a bare loop, what two Ray workers gain, and how long an audit's spectrum takes.

python benchmarks/dataset.py ../shared/data   # prints the tables and writes benchmarks/results/dataset.md
"""

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import pdist

import networks
import peers
import whence
from whence.auditing import spectral_clustering
from whence.models.digits import digits

ROUNDS, MANY = 3, 20_000


def stored(data: tuple, folder: Path, **more) -> whence.results.Store:
    shutil.rmtree(folder, ignore_errors=True)
    return whence.explain_dataset(digits(), data, folder, shard_size=512, batch_size=64, progress=False, **more)


def bare(x: torch.Tensor) -> None:
    explainer = whence.Explainer(digits())
    for part in x.split(64):
        explainer(part)


def seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    x, y = networks.mnist(folder, "train", 60_000)
    aside = Path(tempfile.mkdtemp())
    few = x[:8192], y[:8192]
    ways = {"bare loop": lambda: bare(few[0]), "store": lambda: stored(few, aside / "s")}
    ways |= {"store, no pictures": lambda: stored(few, aside / "n", pictures=False)}
    times = peers.seconds(ways, ROUNDS)
    rows = [f"| {name} | {t:.2f} | {t / times['bare loop']:.2f} |" for name, t in times.items()]
    small = peak_mebibytes()
    took = seconds(lambda: stored((x, y), aside / "all"))
    memory = (
        f"60,000 digits: {took:.0f} s; the process had held {small:.0f} MiB at most after 8,192 of them, and "
        f"{peak_mebibytes():.0f} after all (the digits themselves are 180, and are "
        "checked for NaN at once, which takes as much again for a moment)."
    )
    ray = _ray(few, aside)
    store = whence.open_store(aside / "all")
    vectors = spectral_clustering.features(store.relevance[:MANY])
    ours = seconds(lambda: spectral_clustering.spectral_clusters(vectors, clusters=8))
    part = vectors[: MANY // 4].numpy()
    theirs = seconds(lambda: np.sort(pdist(part)))
    spectrum = (
        f"Spectrum of {MANY:,} maps of 784 places, stability included: {ours:.0f} s. CoRelAy's first step alone, all distances "
        f"(scipy's pdist), takes {theirs:.0f} s for {MANY // 4:,} and grows with the square: {16 * theirs:.0f} s and "
        f"{MANY**2 * 4 / 1e9:.1f} GB for as many."
    )
    shutil.rmtree(aside)
    peers.write(
        "dataset",
        f"# Data sets\n\n{peers.versions('ray')}; the digit network, 8,192 digits, one thread.\n",
        ["| way | seconds | bare loop = 1 |", "|---|---|---|", *rows],
        [memory],
        [ray],
        [spectrum],
    )


def _ray(data: tuple, aside: Path) -> str:
    import ray

    times = {}
    for workers in (1, 2):
        ray.init(num_cpus=workers, log_to_driver=False, logging_level="ERROR")
        stored((data[0][:512], data[1][:512]), aside / f"warm{workers}", engine="ray")
        times[workers] = seconds(lambda workers=workers: stored(data, aside / f"ray{workers}", engine="ray"))
        ray.shutdown()
    return (
        f"Ray, starting its workers included: one worker {times[1]:.1f} s, two {times[2]:.1f} s, "
        f"{times[1] / times[2]:.2f} times as fast."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
