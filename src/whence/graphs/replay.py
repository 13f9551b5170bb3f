"""Explanations replayed: the graph that the first of its kind wrote, run again on other numbers."""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.core.explanation import Explanation
from whence.core.explanation_io import with_tensors
from whence.core.inputs import Inputs
from whence.core.targets import Logit, Target, class_indices
from whence.errors import TargetError
from whence.graphs.cuda_graphs import as_cuda_graph
from whence.graphs.tracing import HOLDS, ExplainFunction, TracedExplanation, check_equal, fold_constants, input_tensors, trace
from whence.lrp.torch_compat.model_state import model_settings
from whence.lrp.torch_compat.saved_tensors import version_of
from whence.lrp.training.differentiable import state_tensors

PlainValue = int | float | str | None
MAX_GRAPHS = 32  # graphs


class ReplayGraph:
    """A graph, and what is left of it where all that is made of the weights is made already."""

    def __init__(self, written: TracedExplanation):
        self.written = written
        constants: Any = (node.target for node in written.graph.graph.find_nodes(op="get_attr"))
        self.weights: tuple[Tensor, ...] = tuple(getattr(written.graph, name) for name in constants)
        self.state: Hashable = None

    def replay(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        # a graph of operators has all casts and ways back in it: neither autocast nor autograd is to see them again
        with torch.inference_mode(False), torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), torch._C._DisableAutocast():
            if (state := _weight_versions(self.weights)) != self.state:
                program = fold_constants(self.written.graph)
                self.own = {t.untyped_storage()._cdata for t in program.buffers()}  # which is not given away
                self.program, self.state = as_cuda_graph(program, tensors), state
            found = self.program(*tensors)
        return {name: t.clone() if t.untyped_storage()._cdata in self.own else t for name, t in found.items()}


class ReplayCache:
    """The graphs of one model and method, by the kinds of inputs."""

    def __init__(self, model: Callable[..., Any]):
        self._model = model
        self._captures: dict[Hashable, ReplayGraph | None] = {}  # None: explained plainly
        self._settings: Hashable = None

    def __call__(
        self, explained: ExplainFunction, inputs: Inputs, target: Target, layers: tuple[str, ...]
    ) -> Explanation | None:
        """What `explained(inputs, target)` gives; None where it would raise or warn, and for what is not replayed: targets that
        are functions or passages, inputs with parts that cannot be compared."""
        asked: Any = _with_tensor_indices(target, inputs)
        if not isinstance(asked, Tensor | Logit | None) or not all(isinstance(p, PlainValue | Tensor) for p in inputs.parts):
            return None
        given = input_tensors(inputs, asked)
        kinds = tuple((name, t.shape, t.dtype, t.device) for name, t in given.items())
        fixed = tuple(part for part in inputs.parts if not isinstance(part, Tensor))
        key = (kinds, repr(fixed), inputs.names, _static_part(asked), layers)
        if (settings := self._made_of()) != self._settings:
            self._captures.clear()
            self._settings = settings
        if key not in self._captures:
            first = explained(inputs.nest, target)  # which raises what there is to raise
            self._captures[key] = None if first.patches else self._written(explained, inputs, asked, first)
            for oldest in list(self._captures)[:-MAX_GRAPHS]:
                del self._captures[oldest]
            return first
        capture = self._captures[key]
        if capture is None:
            return None
        try:
            found = capture.replay(list(given.values()))
        except (IndexError, RuntimeError):  # of classes or ids that there are none of, say
            return None
        return with_tensors(capture.written.like, found) if found[HOLDS] else None

    def _written(self, explained: ExplainFunction, inputs: Inputs, target: Any, first: Explanation) -> ReplayGraph | None:
        """The graph, seen to give the same; None where an operator cannot run outside of its own forward pass."""
        capture = ReplayGraph(trace(explained, inputs, target))
        try:
            found = capture.replay(list(input_tensors(inputs, target).values()))
        except RuntimeError:  # the gradient of an LSTM by oneDNN
            return None
        check_equal(found, first)
        return capture

    def _made_of(self) -> Hashable:
        """What a graph holds for good."""
        if not isinstance(self._model, nn.Module):
            return model_settings(self._model)
        weights = tuple(map(id, state_tensors(self._model).values()))
        return model_settings(self._model), tuple(self._model.modules()), weights  # held, so that no other comes to lie there


def _with_tensor_indices(target: Any, inputs: Inputs) -> Any:
    """With class indices as tensors, which one graph serves for all classes."""
    if isinstance(target, int) and not isinstance(target, bool):
        return torch.full((inputs.batch_size,), target, device=next(p.device for p in inputs.parts if isinstance(p, Tensor)))
    if isinstance(target, list | tuple | range | np.ndarray):
        try:
            return class_indices(target, inputs.batch_size)
        except TargetError:
            return inputs  # for the plain explanation to say what is wrong
    if isinstance(target, Logit) and not all(isinstance(i, int | None | Tensor) for i in (target.index, target.rather_than)):
        return inputs
    return target


def _static_part(target: Target) -> Hashable:
    """What of a target is the same at each call."""
    if isinstance(target, Tensor):
        return "target"
    if isinstance(target, Logit):
        indices = (target.index, target.rather_than)
        return (type(target), target.position, *("given" if isinstance(i, Tensor) else i for i in indices))
    return target  # type: ignore[return-value]


def _weight_versions(weights: tuple[Tensor, ...]) -> Hashable:
    return tuple((t.data_ptr(), version_of(t)) for t in weights)
