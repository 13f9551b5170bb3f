"""The function mode, and what it knows of tensors, linear maps and the way back."""
