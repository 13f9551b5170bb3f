"""Conditions for the argument `through`: the parts of layers through which relevance flows."""

from whence.core.conditions import Channels, Directions, Features, Heads, Nodes, Places
from whence.core.public_names import namespace

__all__ = [
    "Channels",
    "Directions",
    "Features",
    "Heads",
    "Nodes",
    "Places",
]
__getattr__ = namespace(__name__, globals())
