"""Modified gradients in training loops, and differentiable relevance."""
