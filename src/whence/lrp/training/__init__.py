"""Modified gradients for training loops and differentiable relevance."""
