"""The parts that every call shares: inputs, targets, conditions, explanations."""
