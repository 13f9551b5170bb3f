"""Replay of captured explanations: the graph of the first explanation is run again on other inputs."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.core.class_indices import class_indices
from whence.core.explanation import Explanation
from whence.core.explanation_io import with_tensors
from whence.core.inputs import Inputs
from whence.core.targets import Logit, Target
from whence.errors import ModelError, TargetError, first_line
from whence.graphs.backward_decompositions import replace_convolution_backward, replace_views
from whence.graphs.cuda_graphs import as_cuda_graph
from whence.graphs.tracing import (
    CLOSE,
    HOLDS,
    ExplainFunction,
    TracedExplanation,
    check_equal,
    fold_constants,
    input_tensors,
    trace,
)
from whence.lrp.torch_compat.model_state import ModelSettings
from whence.lrp.torch_compat.saved_tensors import version_of
from whence.lrp.torch_compat.tensor_identity import checksums

PlainValue = int | float | str | None
LARGEST_INDEX = 2**31
CLOSE_IN_HALF_PRECISION = 0.03  # compilers keep intermediate values in float32
MAX_GRAPHS = 32  # the oldest are dropped


class ReplayGraph:
    """A graph, and its program with everything that depends on weights alone computed in advance.

    Args:
        written: The graph.
        compiled: Whether to compile the program by `torch.compile`.
    """

    def __init__(self, written: TracedExplanation, compiled: bool = False):
        self.written, self._compiled = written, compiled
        if compiled:
            replace_views(replace_convolution_backward(written.graph))
        constants: Any = (node.target for node in written.graph.graph.find_nodes(op="get_attr"))
        self.weights: tuple[Tensor, ...] = tuple(getattr(written.graph, name) for name in constants)
        self.state: Hashable = None
        self._read_state = _weight_versions(written.read_weights)
        self.folds = 0  # how often it was computed from the weights

    @property
    def is_current(self) -> bool:
        """Whether the weights that the model read as Python values are as they were."""
        return not self.written.read_weights or _weight_versions(self.written.read_weights) == self._read_state

    def replay(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        # the graph contains all casts and backward passes: autocast and autograd must not apply again
        with torch.inference_mode(False), torch.no_grad(), torch._C._DisableAutocast():
            if (state := _weight_versions(self.weights)) != self.state:
                self._fold(tensors)
                self.state = state
                self.folds += 1
            if self._compiled:
                found = self.program(*tensors)
            else:
                with torch._C._AutoDispatchBelowAutograd():  # takes effect where it is made
                    found = self.program(*tensors)
        return {name: t.clone() if _storage(t) in self.own else t for name, t in found.items()}

    def _fold(self, tensors: list[Tensor]) -> None:
        """Compute the parts of the program that depend on weights alone."""
        folded = fold_constants(self.written.graph)
        if self._compiled and self.folds:  # the code remains, since it reads the weights as inputs
            for name, fresh in folded.named_buffers():
                own = getattr(self._folded, name)
                if _storage(own) in self._of_model:  # not ours to write to
                    setattr(self._folded, name, fresh)
                else:
                    own.copy_(fresh)
        else:
            self._folded = folded
            self.program = as_cuda_graph(torch.compile(folded, dynamic=False) if self._compiled else folded, tensors)
        self._of_model = set(map(_storage, self.weights))
        self.own = set(map(_storage, self._folded.buffers()))  # must not be returned without a copy


class ReplayCache:
    """The graphs of one model and method, by shapes, dtypes and devices of the inputs; `compiled` by `torch.compile`."""

    def __init__(self, model: Callable[..., Any], compiled: bool = False):
        self._model, self._compiled = model, compiled
        self._captures: dict[Hashable, ReplayGraph | None] = {}  # None: cannot be captured
        self._current, self._settings = ModelSettings(model), None

    def __call__(
        self, explained: ExplainFunction, inputs: Inputs, target: Target, layers: tuple[str, ...]
    ) -> Explanation | None:
        """Return `explained(inputs, target)`, replayed from a graph if there is one.

        None where it would raise or warn, and where replay is not supported: targets that are functions or a `Span`, inputs
        with parts that cannot be compared.
        """
        if (request := ReplayRequest.of(inputs, target, layers)) is None:
            return None
        if (settings := self._current.read()) != self._settings:
            self._captures.clear()
            self._settings = settings
        if (known := self._captures.get(request.key)) is not None and not known.is_current:
            del self._captures[request.key]
        if request.key not in self._captures:
            first = explained(inputs.nest, target)  # raises the errors of an explanation without capture
            self._captures[request.key] = None if first.patches else self._written(explained, request, first)
            for oldest in list(self._captures)[:-MAX_GRAPHS]:
                del self._captures[oldest]
            return first
        capture = self._captures[request.key]
        return None if capture is None else replay_explanation(capture, request)

    def _written(self, explained: ExplainFunction, request: "ReplayRequest", first: Explanation) -> ReplayGraph | None:
        """Return the captured graph, checked against the explanation; None if an operator cannot run in a replay."""
        capture = ReplayGraph(trace(explained, request.inputs, request.target), self._compiled)
        try:
            found = capture.replay(request.tensors)
        except RuntimeError as error:
            if self._compiled:
                raise ModelError(
                    f"torch.compile failed on the explanation: {first_line(error)}. It needs a C++ compiler on CPUs and Triton "
                    "on GPUs; capture=True replays the graph without one"
                ) from error
            return None  # oneDNN's gradient of an LSTM
        low = self._compiled and (first.output.dtype.itemsize < 4 or torch.is_autocast_enabled(first.output.device.type))
        check_equal(found, first, CLOSE_IN_HALF_PRECISION if low else CLOSE)
        return capture


@dataclass(frozen=True, eq=False)
class ReplayRequest:
    """An explanation that is asked for, with the key of the graphs that can replay it."""

    inputs: Inputs
    target: Any  # with class indices as tensors
    tensors: list[Tensor]  # the arguments of the graph
    key: Hashable

    @classmethod
    def of(cls, inputs: Inputs, target: Target, layers: tuple[str, ...]) -> "ReplayRequest | None":
        """Return the request, or None where replay is not supported."""
        asked: Any = _with_tensor_indices(target, inputs)
        if not isinstance(asked, Tensor | Logit | None) or not all(isinstance(p, PlainValue | Tensor) for p in inputs.parts):
            return None
        given = input_tensors(inputs, asked)
        kinds = tuple((name, t.shape, t.stride(), t.dtype, t.device) for name, t in given.items())
        fixed = tuple((type(part), part) for part in inputs.parts if not isinstance(part, Tensor))
        key = (kinds, fixed, inputs.names, _static_part(asked), layers)
        return cls(inputs, asked, list(given.values()), key)


def replay_explanation(capture: ReplayGraph, request: ReplayRequest) -> Explanation | None:
    """Return the explanation by a captured graph; None where it would raise or warn, or compute another graph."""
    try:
        found = capture.replay(request.tensors)
    except (IndexError, RuntimeError):  # such as a class or token id out of range
        return None
    return with_tensors(capture.written.like, found) if found[HOLDS] else None


def _with_tensor_indices(target: Any, inputs: Inputs) -> Any:
    """Return the target with class indices as tensors, so that one graph works for all classes."""
    if isinstance(target, int) and not isinstance(target, bool):
        if not -LARGEST_INDEX <= target < LARGEST_INDEX:
            return inputs  # not supported, so that the explanation without capture raises the error
        return torch.full((inputs.batch_size,), target, device=next(p.device for p in inputs.parts if isinstance(p, Tensor)))
    if isinstance(target, list | tuple | range | np.ndarray):
        try:
            return class_indices(target, inputs.batch_size)
        except TargetError:
            return inputs  # not supported, so that the explanation without capture raises the error
    if isinstance(target, Logit) and not all(isinstance(i, int | None | Tensor) for i in (target.index, target.rather_than)):
        return inputs
    return target


def _static_part(target: Target) -> Hashable:
    """Return the part of a target that is fixed in a graph."""
    if isinstance(target, Tensor):
        return "target"
    if isinstance(target, Logit):
        indices = (target.index, target.rather_than)
        return (type(target), target.position, *("given" if isinstance(i, Tensor) else i for i in indices))
    return target  # type: ignore[return-value]


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _weight_versions(weights: tuple[Tensor, ...]) -> Hashable:
    return tuple((t.data_ptr(), version_of(t)) for t in weights), checksums(weights)
