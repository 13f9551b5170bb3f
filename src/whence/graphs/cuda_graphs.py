"""What a program launches on a CUDA device, recorded once and launched as a whole.

A network of many small functions keeps an accelerator waiting: to launch its kernels one by one takes longer than they run.
"""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Program = Callable[..., dict[str, Tensor]]
WARMUP_RUNS = 2  # in which libraries choose their kernels and take their memory


class CudaGraph:
    """A program of CUDA tensors of these shapes, as a CUDA graph. It keeps the memory of one run."""

    def __init__(self, program: Program, tensors: Sequence[Tensor]):
        self._program = program  # whose constants the kernels read
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
            self._done.wait()  # what another stream still reads of the last run
            for own, given in zip(self._given, tensors, strict=True):
                own.copy_(given)
            self._graph.replay()
            found = {name: t.clone() for name, t in self._found.items()}
            self._done.record()
        return found


def as_cuda_graph(program: Program, tensors: Sequence[Tensor]) -> Program:
    """The program recorded; itself where it does not run on one CUDA device alone, or waits for values on its way."""
    constants = program.buffers() if isinstance(program, nn.Module) else ()
    devices = {t.device for t in (*tensors, *constants) if t.is_cuda}
    if not tensors or not all(t.is_cuda for t in tensors) or len(devices) > 1:
        return program
    try:
        with torch.cuda.device(devices.pop()):
            return CudaGraph(program, tensors)
    except RuntimeError:
        return program
