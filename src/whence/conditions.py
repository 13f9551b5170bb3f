"""Conditions for the argument `through`: the parts of layers through which relevance flows."""

from whence.core.conditions import Channels, Directions, Features, Heads, Nodes, Places

__all__ = [
    "Channels",
    "Directions",
    "Features",
    "Heads",
    "Nodes",
    "Places",
]
