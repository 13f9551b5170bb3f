"""Benchmark of explanation methods on data and networks for which the right explanation is known."""
