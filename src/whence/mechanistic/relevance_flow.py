"""`flow`: relevance at every layer, and on every edge of a small network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.explain import explain, explain_targets
from whence.core.explanation import Explanation
from whence.core.inputs import check_model
from whence.core.result import Result
from whence.core.targets import Target
from whence.core.trees import short_repr
from whence.errors import InputError, SelectorError
from whence.mechanistic.channel_relevance import resolve_layer
from whence.methods.layer_reader import LayerReader, layer_shapes, leaf_layers
from whence.methods.registry import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_UNITS = 16  # largest layer that is drawn unit by unit
SUM_CHANGE_REASON = "the layers between absorbed some of it (mostly biases), or some bypasses them"
SKIP_TOLERANCE = 1e-3  # share of the largest relevance: a larger difference is not rounding


@dataclass(frozen=True, eq=False)
class FlowLayer:
    """The activations and the relevance at the input or at a layer's output, for one sample."""

    name: str
    activations: Tensor
    relevance: Tensor


@dataclass(frozen=True, eq=False)
class FlowEdges:
    """The relevance that each unit of a layer passes to each unit of the layer below: R_i←j."""

    layer: str  # the layer above
    messages: Tensor  # [above, below]
    weight: Tensor | None  # [above, below]; None unless a single linear layer connects them
    bias: Tensor | None  # [above]


@dataclass(frozen=True, repr=False, eq=False)
class RelevanceFlow(Result):
    """The relevance at the layers of a network, from the output down to the input.

    >>> found = whence.flow(model, x)
    >>> found.columns[1].relevance                 # at the first hidden layer, like its activation
    >>> found.edges[0].messages                    # [hidden, inputs]: R_i←j; their sums over j are the input's relevance
    >>> found.save("flow.png")

    Args:
        columns: The activations and the relevance at the input and at each layer, from the input up.
        edges: The relevance between each column and the next; empty if a column has more than 16 units or is not a vector.
        explanation: The explanation of the sample.
    """

    columns: Sequence[FlowLayer]
    edges: Sequence[FlowEdges]
    explanation: Explanation

    def __repr__(self) -> str:
        (name,) = self.explanation.target_names()
        head = f"Flow of {name} ({float(self.explanation.output):.4g}) by {short_repr(self.explanation.method)}"
        lines = [
            f"  {c.name}: {' × '.join(map(str, c.activations.shape))}, relevance {float(c.relevance.sum()):.4g}"
            for c in reversed(self.columns)
        ]
        changes = [f"  where it changes, {SUM_CHANGE_REASON}"] if self.changes else []
        return "\n".join([head, *lines, *changes])

    @property
    def changes(self) -> bool:
        """Whether the sum of relevance differs between layers by more than rounding."""
        if not self.explanation.conservation.adds_up:
            return False
        sums = torch.stack([column.relevance.sum() for column in self.columns])
        return float(sums.max() - sums.min()) > SKIP_TOLERANCE * float(sums.abs().max())

    @property
    def has_ways_around(self) -> bool:
        """Whether units receive relevance other than by these edges, such as through a residual connection."""
        received = [edges.messages.sum(0) - lower.relevance for edges, lower in zip(self.edges, self.columns, strict=False)]
        largest = max(float(column.relevance.abs().max()) for column in self.columns)
        return any(float(missing.abs().max()) > SKIP_TOLERANCE * largest for missing in received)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each layer, from the input up: its name, its shape, and the sum of relevance there."""
        return [
            {"layer": c.name, "shape": tuple(c.activations.shape), "relevance": float(c.relevance.sum())} for c in self.columns
        ]

    def figure(self) -> "Figure":
        """Return a figure of a small network with weights and relevance on every edge, or of a heatmap per layer."""
        from whence.plotting.relevance_flow import heatmap_figure, network_figure

        what = "" if self.columns[-1].activations.numel() == 1 else f"{self.explanation.heading()}: "
        title = f"{what}output {float(self.explanation.output):.4g} by {short_repr(self.explanation.method)}"
        title += "; part of it bypasses these layers" if self.has_ways_around else ""
        title += f"\nwhere ΣR changes, {SUM_CHANGE_REASON}" if self.changes and not self.edges else ""
        return network_figure(self.columns, self.edges, title) if self.edges else heatmap_figure(self.columns, title)


@check_arguments
def flow(
    model: Callable[..., Any],
    inputs: Tensor,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    method: Method | str | None = None,
    class_names: Any = (),
) -> RelevanceFlow:
    """Compute the relevance at every layer of a network, and on every edge if no layer has more than 16 units.

    >>> whence.flow(model, torch.tensor([[2.0, 1.0]]), method=whence.LRP({nn.Linear: whence.AlphaBeta(1, 0)})).save("flow.png")

    The relevance R_i←j on the edges satisfies Σ_j R_i←j = R_i and Σ_i R_i←j = R_j, except for the absorbed relevance. The edges
    into a unit are the relevance that flows `through` it (see `explain`); relevance that bypasses the layers, as by a residual
    connection, is in no edge (`has_ways_around`).

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: One sample `[1, …]`.
        target: What is explained, as for `explain`; the predicted class by default.
        layers: Module paths in the order of the network; by default the outputs of every linear, convolution or pooling layer,
            after its activation function.
        method: A method or its short name; LRP with its default rules if not given.
        class_names: Names of the classes, for the figure.

    Returns:
        A `RelevanceFlow`.

    Raises:
        InputError: If there is not exactly one sample.
        SelectorError: If the model has no such layer, or a layer runs several times.
    """
    check_model(model)
    if not isinstance(inputs, Tensor) or inputs.dim() < 2 or len(inputs) != 1:
        raise InputError(f"flow needs one sample [1, …], got {getattr(inputs, 'shape', type(inputs))}")
    shapes = layer_shapes(model, inputs)
    chosen = [layers] if isinstance(layers, str) else layers
    names = _layers_shown(model, shapes) if chosen is None else [resolve_layer(model, layer) for layer in chosen]
    if not names:
        raise SelectorError("the model has no named modules" if chosen is None else "layers=[]; name at least one layer")
    e = explain(model, inputs, target, method=method, layers=names, class_names=class_names, progress=False)
    repeated = next((name for name in names if isinstance(e.layers[name], tuple)), None)
    if repeated is not None:
        raise SelectorError(f"layer '{repeated}' runs several times; pass layers that run once: layers=[…]")
    activations = LayerReader(model, names, output=True)(inputs).layers
    columns = [FlowLayer("input", inputs[0], e.relevance[0])]
    columns += [FlowLayer(name, activations[name][0].detach(), e.layers[name][0]) for name in names]
    small = all(column.activations.dim() == 1 and len(column.activations) <= MAX_UNITS for column in columns)
    return RelevanceFlow(columns, _edges(model, inputs, e, columns, leaf_layers(shapes)) if small else (), e)


def _layers_shown(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the layers to show: the activation function after each linear layer, without layers that only reshape."""
    found: list[str] = []
    for name in leaf_layers(shapes):
        mixes = isinstance(model.get_submodule(name), nn.modules.conv._ConvNd | nn.Linear | nn.Bilinear)
        if mixes or not found or prod(shapes[name]) != prod(shapes[found[-1]]):
            found.append(name)
        elif shapes[name] == shapes[found[-1]]:
            found[-1] = name
    return found


def _edges(model: Any, inputs: Tensor, e: Explanation, columns: Sequence[FlowLayer], called: Sequence[str]) -> list[FlowEdges]:
    """Compute the relevance at each lower layer that flows through each unit of the next, with the weights between."""
    linear = [name for name in called if isinstance(model.get_submodule(name), nn.Linear)]
    given = LayerReader(model, linear)(inputs).layers if linear else {}
    found = []
    for lower, upper in pairwise(columns):
        below = [] if lower is columns[0] else [lower.name]
        units = [{upper.name: unit} for unit in range(len(upper.activations))]
        parts = explain_targets(model, inputs, [e.target], method=e.method, layers=below, through=units, progress=False)
        messages = torch.cat([part.layers[lower.name] if below else part.relevance for part in parts])
        since = called.index(lower.name) + 1 if lower.name in called else 0
        way = called[since : called.index(upper.name) + 1] if upper.name in called else []
        between = [name for name in way if name in linear]
        weight, bias = None, None
        if len(between) == 1 and _connects(layer := model.get_submodule(between[0]), lower, given[between[0]][0], messages):
            weight, bias = layer.weight.detach(), layer.bias
        found.append(FlowEdges(upper.name, messages, weight, None if bias is None else bias.detach()))
    return found


def _connects(linear: nn.Linear, lower: FlowLayer, given: Tensor, messages: Tensor) -> bool:
    """Return whether a linear layer maps the lower layer to the upper one; a parallel branch may be called in between, too."""
    if linear.weight.shape != messages.shape:
        return False
    with torch.no_grad():
        return bool(torch.allclose(linear(lower.activations), given, rtol=1e-3, atol=1e-5))
