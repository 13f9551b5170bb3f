"""What benchmarks share: peers that import, timing by turns, peak memory by child process, tables with versions."""

import contextlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def declare_torchvision_operators() -> None:
    """A CUDA build of torchvision beside a CPU build of torch imports only once its operators are declared."""
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


def peak_mebibytes(script: str, *args: str) -> float:
    """What a child process prints last: its own peak memory above what it held before, in MiB."""
    done = subprocess.run([sys.executable, script, *args], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def own_peak(way: Callable[[], object]) -> float:
    """Peak resident memory of `way` above what was resident before it, in MiB (Linux)."""
    clear = Path("/proc/self/clear_refs")
    clear.write_text("5")  # resets the high-water mark
    before = _resident("VmRSS")
    way()
    return _resident("VmHWM") - before


def versions(*packages: str) -> str:
    names = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    return f"{names}; {platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}"


def _resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
