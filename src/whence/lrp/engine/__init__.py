"""The function mode, the facts it tracks about tensors, linear maps, and the backward pass."""
