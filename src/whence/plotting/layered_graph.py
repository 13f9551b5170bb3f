"""Figures of layered graphs, with lines whose width shows the relevance that flows."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

POSITIVE_COLOR, NEGATIVE_COLOR = "#c00000", "#0040c0"
MAX_LINE_WIDTH = 7.0  # points
MIN_SHARE = 0.02  # of the strongest link; weaker links are not drawn
Node = tuple[str, int]


def layered_graph_figure(
    nodes: Mapping[str, Mapping[int, float]], links: Sequence[tuple[Node, Node, float]], top: str
) -> Figure:
    """Return a figure of layers from the bottom up, with line widths relative to the strongest link between two layers.

    The layer named "" is a single node with the title `top`.
    """
    widest = max(map(len, nodes.values()))
    drawn = Figure(figsize=(1.15 * widest + 1.6, 1.25 * len(nodes) + 0.2), dpi=120, layout="constrained")
    axis = drawn.subplots()
    place = {}
    for height, (layer, channels) in enumerate(nodes.items()):
        for i, channel in enumerate(channels):
            place[layer, channel] = ((i + 0.5) * widest / len(channels), height)
    largest: dict[str, float] = {}
    for _, (layer, _), relevance in links:
        largest[layer] = max(abs(relevance), largest.get(layer, 0.0))
    for above, below, relevance in links:
        if abs(relevance) > MIN_SHARE * largest[below[0]]:
            (x0, y0), (x1, y1) = place[above], place[below]
            colour, width = (
                POSITIVE_COLOR if relevance > 0 else NEGATIVE_COLOR,
                MAX_LINE_WIDTH * abs(relevance) / largest[below[0]],
            )
            axis.plot([x0, x1], [y0, y1], color=colour, linewidth=max(0.4, width), alpha=0.55, solid_capstyle="round", zorder=1)
    for (layer, channel), (x, y) in place.items():
        text = top if layer == "" else f"{channel}\n{nodes[layer][channel]:.3g}"
        axis.text(x, y, text, ha="center", va="center", fontsize=8, zorder=2,
                  bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#666666"})  # fmt: skip
    for height, layer in enumerate(nodes):
        axis.text(-0.15, height, layer, ha="right", va="center", fontsize=8)
    axis.set_xlim(-0.1, widest)
    axis.set_ylim(-0.4, len(nodes) - 0.6)
    axis.set_axis_off()
    return drawn
