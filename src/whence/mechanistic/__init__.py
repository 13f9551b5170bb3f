"""Which parts of a network carried the output, what they stand for, and how they work together."""
