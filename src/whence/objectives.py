"""Objectives that a prototype maximises: a class, a channel, a neuron, a direction, or sums of them."""

from whence.core.public_names import namespace
from whence.prototypes.objectives import Caricature, Channel, Direction, Inversion, Layer, LogProbability, Neuron, Objective

__all__ = [
    "Caricature",
    "Channel",
    "Direction",
    "Inversion",
    "Layer",
    "LogProbability",
    "Neuron",
    "Objective",
]
__getattr__ = namespace(__name__, globals())
