"""Explanations replayed: the graph that the first of its kind wrote, run again on other numbers."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from whence.explanation import Explanation
from whence.inputs import Inputs
from whence.lrp.decisions import settings_of
from whence.lrp.saved import version
from whence.lrp.traced import state_of
from whence.targets import Logit, Target
from whence.written import HOLDS, Explained, Written, folded, given_tensors, write


@dataclass
class Capture:
    """A graph, and what is left of it where all that is made of the weights is made already."""

    written: Written
    weights: tuple[Tensor, ...]
    replayed: GraphModule
    state: Hashable

    @classmethod
    def of(cls, written: Written) -> "Capture":
        weights = tuple(getattr(written.graph, node.target) for node in written.graph.graph.find_nodes(op="get_attr"))
        return cls(written, weights, folded(written.graph), _state(weights))

    def replay(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        if (state := _state(self.weights)) != self.state:
            self.replayed, self.state = folded(self.written.graph), state
        # a graph of operators has all casts and ways back in it: neither autocast nor autograd is to see them again
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), torch._C._DisableAutocast():
            return self.replayed(*tensors)


class Captures:
    """The graphs of one model and method, by the kinds of inputs."""

    def __init__(self, model: Callable[..., Any]):
        self._model = model
        self._captures: dict[Hashable, Capture] = {}
        self._settings: Hashable = None

    def __call__(self, explained: Explained, inputs: Inputs, target: Target, layers: tuple[str, ...]) -> Explanation | None:
        """What `explained(inputs, target)` gives; None where it would raise or warn."""
        asked = torch.as_tensor(target) if isinstance(target, list | tuple | range) else target
        given = given_tensors(inputs, asked)
        kinds = tuple((name, t.shape, t.dtype, t.device) for name, t in given.items())
        fixed = tuple(part for part in inputs.parts if not isinstance(part, Tensor))
        key = (kinds, repr(fixed), inputs.names, _fixed(asked), layers)
        if (settings := self._made_of()) != self._settings:
            self._captures.clear()
            self._settings = settings
        if key not in self._captures:
            first = explained(inputs.nest, target)  # which raises what there is to raise
            self._captures[key] = Capture.of(write(explained, inputs, asked))
            return first
        capture = self._captures[key]
        try:
            found = capture.replay(list(given.values()))
        except (IndexError, RuntimeError):  # of classes or ids that there are none of, say
            return None
        return capture.written.like.with_tensors(found) if found[HOLDS] else None

    def _made_of(self) -> Hashable:
        """What a graph holds for good."""
        weights = state_of(self._model).values() if isinstance(self._model, nn.Module) else ()
        return settings_of(self._model), tuple(map(id, weights))


def _fixed(target: Target) -> Hashable:
    """What of a target is the same at each call."""
    if isinstance(target, Tensor):
        return "target"
    if isinstance(target, Logit):
        indices = (target.index, target.rather_than)
        return (type(target), target.position, *("given" if isinstance(i, Tensor) else i for i in indices))
    return target  # type: ignore[return-value]


def _state(weights: tuple[Tensor, ...]) -> Hashable:
    return tuple((t.data_ptr(), version(t)) for t in weights)
