"""Parts of layers that relevance may pass, for `through=`."""

from whence.core.conditions import Channels, Directions, Features, Heads, Nodes, Places

__all__ = [
    "Channels",
    "Directions",
    "Features",
    "Heads",
    "Nodes",
    "Places",
]
