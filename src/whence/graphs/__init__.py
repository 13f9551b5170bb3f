"""An explanation as one graph of plain operators: traced, replayed, recorded for CUDA."""
