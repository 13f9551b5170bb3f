"""The rules of layer-wise relevance propagation, composites of them, and published presets."""
