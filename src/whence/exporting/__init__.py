"""Export of explainers to files: programs of plain operators that run without this library."""
