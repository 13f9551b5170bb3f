"""The state of the process in which the benchmark runs: torch's defaults and seeded random numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def default_state(seed: int) -> Iterator[None]:
    """Run with torch's default settings on one thread and seeded random generators, and restore the caller's afterwards.

    Networks so small are several times slower on more threads. Other libraries draw from the global generators.
    """
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
