"""Mechanistic analysis: the parts of a network that an output relies on, and how they work together."""
