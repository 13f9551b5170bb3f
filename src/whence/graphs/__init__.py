"""Capture of explanations as graphs of plain operators: tracing, replay and CUDA graphs."""
