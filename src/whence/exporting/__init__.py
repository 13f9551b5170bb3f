"""Explainers as files: programs of plain operators that run without this library."""
