"""Capture of a program's kernels as a CUDA graph, which launches them all at once.

In a network of many small functions, launching the kernels one by one takes longer than running them.
"""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Program = Callable[..., dict[str, Tensor]]
WARMUP_RUNS = 2  # in which libraries select kernels and allocate memory


class CudaGraph:
    """A program of CUDA tensors of fixed shapes, captured as a CUDA graph. It holds the memory of one run."""

    def __init__(self, program: Program, tensors: Sequence[Tensor]):
        self._program = program  # keeps the constants alive that the kernels read
        self._given = [t.clone() for t in tensors]
        self._graph, self._done, self._lock = torch.cuda.CUDAGraph(), torch.cuda.Event(), threading.Lock()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARMUP_RUNS):
                program(*self._given)
        here.wait_stream(aside)
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._found = program(*self._given)

    def __call__(self, *tensors: Tensor) -> dict[str, Tensor]:
        with self._lock, torch.cuda.device(self._given[0].device):
            self._done.wait()  # wait until other streams have read the last results
            for own, given in zip(self._given, tensors, strict=True):
                own.copy_(given)
            self._graph.replay()
            found = {name: t.clone() for name, t in self._found.items()}
            self._done.record()
        return found


def as_cuda_graph(program: Program, tensors: Sequence[Tensor]) -> Program:
    """Return the program as a CUDA graph, or unchanged if it uses other devices or synchronises with the host."""
    constants = program.buffers() if isinstance(program, nn.Module) else ()
    devices = {t.device for t in (*tensors, *constants) if t.is_cuda}
    if not tensors or not all(t.is_cuda for t in tensors) or len(devices) > 1:
        return program
    try:
        with torch.cuda.device(devices.pop()):
            return CudaGraph(program, tensors)
    except RuntimeError:
        return program
