"""Shared building blocks of all functions: inputs, targets, conditions and explanations."""
