"""The state of the process in which the benchmark runs: torch's defaults and seeded random numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn.modules import module


@contextmanager
def default_state(seed: int) -> Iterator[None]:
    """Run with torch's default settings on one thread and seeded random generators, and restore the caller's afterwards.

    Networks so small are several times slower on more threads. Other libraries draw from the global generators.
    """
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    precision, strict = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    hooks = {name: value.copy() for name, value in _global_hooks()}
    try:
        _set(torch.float32, torch.device("cpu"), 1, "highest", False, False)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        with (
            np.errstate(all="warn"), torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False)
        ):  # fmt: skip
            yield
    finally:
        _set(dtype, device, threads, precision, strict, warn)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for name, value in _global_hooks():
            value.clear()
            value.update(hooks[name])


def _set(dtype: torch.dtype, device: torch.device, threads: int, precision: str, strict: bool, warn: bool) -> None:
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(strict, warn_only=warn)
    if torch.get_default_device() != device:  # setting it slows down every call
        torch.set_default_device(device)


def _global_hooks() -> list[tuple[str, dict]]:
    """Return the dicts of the hooks that run in all modules."""
    return [(name, value) for name, value in vars(module).items() if name.startswith("_global") and isinstance(value, dict)]
