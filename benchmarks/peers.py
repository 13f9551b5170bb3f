"""What benchmarks share: peers that import, timing by turns, peak memory, tables with versions."""

import contextlib
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).parent / "results"


def declare_torchvision_operators() -> None:
    """A CUDA build of torchvision beside a CPU build of torch imports only once its operators are declared."""
    if hasattr(declare_torchvision_operators, "kept"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    declare_torchvision_operators.kept = library  # type: ignore[attr-defined]


def seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The best of `rounds` runs of each way, all ways in turn within each round."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def peak_mebibytes(way: Callable[[], object]) -> float:
    """The most that torch's CPU allocator held at once during `way`, above what it held before, in MiB.

    As `torch.cuda.max_memory_allocated` counts: resident memory would add what malloc keeps of freed tensors.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        way()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held) / 2**20


HEAD = ["| network | way | time / gradient | peak memory / gradient | seconds | MiB |", "|---|---|---|---|---|---|"]


def compared(name: str, ways: dict[str, Callable[[], object]], rounds: int) -> list[str]:
    """A row of the table for each way, as ratios to the first, the plain gradient."""
    for way in ways.values():
        way()  # first calls load kernels
    times = seconds(ways, rounds)
    memory = {label: peak_mebibytes(way) for label, way in ways.items()}
    first = next(iter(ways))
    t, m = times[first], memory[first]
    return [
        f"| {name} | {label} | {times[label] / t:.2f} | {memory[label] / m:.2f} | {times[label]:.3f} | {memory[label]:.0f} |"
        for label in ways
    ]


def versions(*packages: str) -> str:
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    return f"{names}; {platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}"


def write(name: str, heading: str, *tables: list[str]) -> None:
    """Print the tables and keep them in `results/NAME.md`."""
    text = "\n".join([heading, *("\n".join(table) + "\n" for table in tables)])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
