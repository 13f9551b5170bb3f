"""`walks` and `subgraph_relevance`: the relevance of walks and subgraphs for graph networks (GNN-LRP)."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.conditions import Nodes
from whence.core.explain import explain, explain_targets
from whence.core.inputs import check_model
from whence.core.result import Result
from whence.core.targets import Target
from whence.errors import InputError, RuleError, SelectorError
from whence.mechanistic.channel_relevance import resolve_layer
from whence.methods.layer_reader import layer_shapes
from whence.methods.registry import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_WALKS = 100_000  # limit on the walks computed by default

Walk = tuple[int, ...]  # nodes, from the input up


@dataclass(frozen=True, repr=False, eq=False)
class WalkRelevance(Result):
    """The relevance of walks, each a node at the input and one at each layer.

    >>> found = whence.walks(model, x, ["interaction.0", "interaction.1"], fixed=(adjacency,))
    >>> found.top(5)                               # [((0, 1, 1), 2.3), …]
    >>> sum(found.relevance)                       # the output, if no connection bypasses the layers

    Args:
        walks: The walks, each a tuple of nodes from the input up.
        relevance: The relevance of each walk, `[walks]`.
        output: The explained output.
    """

    walks: Sequence[Walk]
    relevance: Tensor  # [walks]
    output: float

    def __repr__(self) -> str:
        lines = [f"{len(self.walks)} walks, ΣR {float(self.relevance.sum()):.4g} of an output of {self.output:.4g}"]
        return "\n".join([*lines, *(f"  {' → '.join(map(str, walk))}: {r:.4g}" for walk, r in self.top(5))])

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each walk, the strongest first: its nodes and its relevance."""
        return [{"walk": walk, "relevance": relevance} for walk, relevance in self.top(len(self.walks))]

    def figure(self) -> "Figure":
        """Return a figure of the strongest walks as bars, the sum of the others below them."""
        from whence.plotting.bars import Bars
        from whence.plotting.stacked_panels import stack_panels

        names = [" → ".join(map(str, walk)) for walk in self.walks]
        return stack_panels([Bars(self.relevance, f"relevance of walks of an output of {self.output:.4g}", names)])

    def top(self, count: int = 10) -> list[tuple[Walk, float]]:
        """Return the walks of largest |relevance|, with their relevance."""
        order = self.relevance.abs().argsort(descending=True)[:count]
        return [(self.walks[int(i)], float(self.relevance[i])) for i in order]

    def within(self, nodes: Sequence[int]) -> float:
        """Return the relevance of all walks that visit only the given nodes."""
        inside = set(nodes)
        return float(sum(r for walk, r in zip(self.walks, self.relevance.tolist(), strict=True) if inside.issuperset(walk)))


@check_arguments
def walks(
    model: Callable[..., Any],
    inputs: Tensor,
    layers: Sequence[str],
    target: Target = None,
    *,
    walks: Sequence[Walk] | None = None,
    fixed: Tensor | tuple | Mapping[str, Any] = (),
    method: Method | str | None = None,
) -> WalkRelevance:
    """Compute the relevance of walks through a graph network (GNN-LRP, Schnake et al. 2021).

    >>> whence.walks(model, x, ["interaction.0", "interaction.1"], target=1, fixed=(adjacency,))

    The relevance of a walk (W₀, W₁, …) is the part that flows through node W₀ at the input, W₁ after the first layer, and so
    on, for any network whose layers return a row for each node. If all relevance flows through the layers, the walks add up to
    the output. The sum over the walks within some nodes is the relevance of that subgraph, which `whence.subgraph_relevance`
    computes in one backward pass.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: Features of one graph, `[nodes, C]` or `[1, nodes, C]`.
        layers: Module paths of the interaction layers, from the input up.
        target: What is explained, as for `explain`; the predicted class by default.
        walks: Walks to compute, each a tuple of one node at the input and one per layer; all, at most 100,000, if not given.
        fixed: Further arguments of the model that are constant, such as the adjacency matrix.
        method: A method or its short name; LRP with its default rules if not given.

    Returns:
        A `WalkRelevance` result.

    Raises:
        InputError: If `inputs` is not one graph.
        RuleError: If `layers` are empty or in another order than they run, or a walk is invalid.
        SelectorError: If the model is not an `nn.Module`, or has no such layer.
    """
    model, layers = _bind(model, layers, fixed)
    count = _node_count(inputs)
    wanted = _group_walks(walks, count, len(layers))
    _check_order(model, layers, inputs)
    through = [{layer: Nodes([node]) for layer, node in zip(layers, above, strict=True)} for above in wanted]
    found, relevance, output = [], [], 0.0
    for above, e in zip(wanted, explain_targets(model, inputs, [target], method=method, through=through), strict=True):
        per_node = e.relevance.reshape(count, -1).sum(1)
        for node in wanted[above]:
            found.append((node, *above))
            relevance.append(per_node[node])
        output = float(e.output.sum())
    return WalkRelevance(found, torch.stack(relevance).detach(), output)


@check_arguments
def subgraph_relevance(
    model: Callable[..., Any],
    inputs: Tensor,
    layers: Sequence[str],
    nodes: Sequence[int],
    target: Target = None,
    *,
    fixed: Tensor | tuple | Mapping[str, Any] = (),
    method: Method | str | None = None,
) -> float:
    """Return the relevance of all walks within some nodes, in one backward pass (sGNN-LRP, Xiong et al. 2022).

    >>> whence.subgraph_relevance(model, x, ["interaction.0", "interaction.1"], [0, 3, 4], fixed=(adjacency,))

    The gradient g = R/a is masked to the nodes at every layer and at the input.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: Features of one graph, `[nodes, C]` or `[1, nodes, C]`.
        layers: Module paths of the interaction layers, from the input up.
        nodes: Indices of the nodes of the subgraph.
        target: What is explained, as for `explain`; the predicted class by default.
        fixed: Further arguments of the model that are constant, such as the adjacency matrix.
        method: A method or its short name; LRP with its default rules if not given.

    Returns:
        The relevance of the subgraph.

    Raises:
        InputError: If `inputs` is not one graph.
        RuleError: If `layers` are empty.
        SelectorError: If the model is not an `nn.Module`, or has no such layer or node.
    """
    model, layers = _bind(model, layers, fixed)
    count = _node_count(inputs)
    e = explain(model, inputs, target, method=method, through={layer: Nodes(list(nodes)) for layer in layers})
    return float(e.relevance.reshape(count, -1)[list(nodes)].sum())


def _bind(model: Any, layers: Sequence[str], fixed: Tensor | tuple | Mapping[str, Any]) -> tuple[Any, list[str]]:
    check_model(model)
    if not isinstance(model, nn.Module):
        raise SelectorError(f"a {type(model).__name__} has no named layers; pass a torch.nn.Module")
    layers = [resolve_layer(model, layer) for layer in ([layers] if isinstance(layers, str) else layers)]
    if not layers:
        raise RuleError("layers=[]; expected the interaction layers, ordered from the input to the output")
    args = (fixed,) if isinstance(fixed, Tensor) else () if isinstance(fixed, Mapping) else tuple(fixed)
    kwargs = dict(fixed) if isinstance(fixed, Mapping) else {}
    with_fixed, forward = copy(model), model.forward  # shares the submodules and their names
    with_fixed.__dict__["forward"] = lambda x: forward(x, *args, **kwargs)
    return with_fixed, layers


def _node_count(x: Tensor) -> int:
    if not isinstance(x, Tensor) or x.dim() not in (2, 3) or (x.dim() == 3 and len(x) != 1):
        raise InputError(f"walks needs one graph, [nodes, C] or [1, nodes, C], got {getattr(x, 'shape', type(x))}")
    return x.shape[-2]


def _check_order(model: Any, layers: Sequence[str], x: Tensor) -> None:
    order = [name for name in layer_shapes(model, x) if name in layers]
    if order != [name for name in layers if name in order]:
        raise RuleError(f"layers={list(layers)} run in the order {order}; pass them in that order, from the input up")


def _group_walks(walks: Sequence[Walk] | None, nodes: int, depth: int) -> dict[Walk, list[int]]:
    """Group the input nodes of the walks by the rest of the walk."""
    if walks is not None and not len(walks):
        raise RuleError("walks=[]; expected some walks, or None for all")
    if walks is None:
        if nodes ** (depth + 1) > MAX_WALKS:
            raise RuleError(
                f"{nodes} nodes and {depth} layers have {nodes ** (depth + 1):,} walks; pass some of them: walks=[…]"
            )
        return {tuple(reversed(above)): list(range(nodes)) for above in product(range(nodes), repeat=depth)}
    found: dict[Walk, list[int]] = {}
    for walk in walks:
        if len(walk) != depth + 1 or not all(0 <= node < nodes for node in walk):
            raise RuleError(
                f"walk {walk}: expected {depth + 1} nodes from 0 to {nodes - 1}, one at the input and one per layer"
            )
        found.setdefault(tuple(walk[1:]), []).append(walk[0])
    return found
