"""The progress of the question that a worker process answers, in memory that the server reads."""

from collections.abc import MutableSequence

_counter: MutableSequence[int] = [0, 0]  # done, total


def use_counter(counter: MutableSequence[int]) -> None:
    """Report progress in this memory, shared with the server."""
    global _counter
    _counter = counter


def report_progress(done: int, total: int) -> None:
    """Report the progress of the question; the `progress` of the library's functions."""
    _counter[0], _counter[1] = done, total
