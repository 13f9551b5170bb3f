"""`attribution_graph`: the relevance that flows between channels of successive layers, for one input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from whence.core.argument_checks import check_arguments
from whence.core.explain import explain, explain_targets
from whence.core.result import Result
from whence.core.targets import Target
from whence.core.trees import Tree
from whence.errors import InputError, RuleError
from whence.mechanistic.channel_relevance import resolve_layer, sum_by_channel, top_channels
from whence.methods.registry import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_CHANNELS = 5


@dataclass(frozen=True)
class GraphEdge:
    """The relevance that a channel receives through a channel of the next layer.

    Args:
        layer: The lower layer.
        channel: Channel of the lower layer.
        above: The next layer.
        channel_above: Channel of the next layer.
        relevance: Relevance that flows from the channel above to the channel.
    """

    layer: str
    channel: int
    above: str
    channel_above: int
    relevance: float


@dataclass(frozen=True, repr=False, eq=False)
class AttributionGraph(Result):
    """The most relevant channels of several layers and the relevance that flows between them.

    >>> graph = whence.attribution_graph(model, x, ["features.3", "features.8", "features.12"])
    >>> graph.nodes["features.12"]                 # {channel: relevance}, the most relevant first
    >>> graph.edges                                # (layer, channel, above, channel_above, relevance)
    >>> graph.save("graph.png")

    Args:
        output: The explained output.
        target: Name of the explained class.
        nodes: The relevance of the channels by layer, from the input up, the most relevant first.
        edges: The relevance between channels of successive layers.
    """

    output: float
    target: str
    nodes: dict[str, dict[int, float]]  # by layer, from the input up
    edges: Sequence[GraphEdge]

    def __repr__(self) -> str:
        lines = [f"Attribution graph of {self.target} ({self.output:.4g})"]
        for layer, channels in reversed(self.nodes.items()):
            shares = ", ".join(f"{c} ({r / self.output:.0%})" for c, r in channels.items())
            lines.append(f"  {layer}: {shares}")
        return "\n".join(lines)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each edge: a channel, a channel of the next layer, and the relevance that flows between them."""
        return [vars(edge) for edge in self.edges]

    def figure(self) -> "Figure":
        """Return a figure of the stacked layers, the output on top; line widths show |relevance|, red for positive."""
        from whence.plotting.layered_graph import layered_graph_figure

        links = [((e.above, e.channel_above), (e.layer, e.channel), e.relevance) for e in self.edges]
        top = list(self.nodes)[-1]
        links += [(("", 0), (top, c), r) for c, r in self.nodes[top].items()]
        return layered_graph_figure({**self.nodes, "": {0: self.output}}, links, f"{self.target}\n{self.output:.4g}")


@check_arguments
def attribution_graph(
    model: Callable[..., Any],
    inputs: Tree,
    layers: Sequence[str],
    target: Target = None,
    *,
    n_channels: int = N_CHANNELS,
    method: Method | str | None = None,
    class_names: Any = (),
) -> AttributionGraph:
    """Compute how relevance of one sample's output flows down through channels of several layers (Achtibat et al. 2023).

    >>> whence.attribution_graph(model, x, ["features.3", "features.8", "features.12"], target=483).save("graph.png")

    An edge is the relevance of a channel under the condition that it flows through one channel of the next layer. Over all
    channels of the next layer, the edges add up to the channel's relevance, unless a connection bypasses that layer.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: One sample `[1, …]`.
        layers: Module paths of at least two layers, from the input up.
        target: What is explained, as for `explain`; the predicted class by default.
        n_channels: Number of most relevant channels of each layer.
        method: A method or its short name; LRP with its default rules if not given.
        class_names: Names of the classes, for the figure.

    Returns:
        An `AttributionGraph`.

    Raises:
        RuleError: If `layers` are fewer than two, or not distinct.
        InputError: If there is not exactly one sample.
        SelectorError: If the model has no such layer.
    """
    layers = [resolve_layer(model, layer) for layer in layers]
    if len(layers) < 2 or len(set(layers)) != len(layers):
        raise RuleError(f"layers={layers}; expected at least two, ordered from the input to the output")
    whole = explain(model, inputs, target, method=method, layers=layers, class_names=class_names, progress=False)
    if len(whole) != 1:
        raise InputError(f"an attribution graph needs one sample, got {len(whole)}")
    output = float(whole.output)
    relevance = {layer: sum_by_channel(model, whole, layer)[0] for layer in layers}
    nodes = {layer: {c: float(r[c]) for c in top_channels(r, n_channels, output)} for layer, r in relevance.items()}
    edges = []
    for layer, above in pairwise(layers):
        through = [{above: c} for c in nodes[above]]
        parts = explain_targets(model, inputs, [whole.target], method=method, layers=[layer], through=through)
        for channel_above, part in zip(nodes[above], parts, strict=True):
            found = sum_by_channel(model, part, layer)[0]
            edges += [GraphEdge(layer, c, above, channel_above, float(found[c])) for c in nodes[layer]]
    (name,) = whole.target_names()
    return AttributionGraph(output, name, nodes, edges)
