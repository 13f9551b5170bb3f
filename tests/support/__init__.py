"""Models, oracles and helpers that several tests share."""
