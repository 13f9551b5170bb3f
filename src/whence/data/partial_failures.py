"""Computations on batches in which some samples fail."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from whence.errors import RuleError, first_line, is_out_of_memory

S = TypeVar("S")
T = TypeVar("T")


def run_with_fallback(
    work: Callable[[S], T], samples: S, one_by_one: Callable[[S], Iterable[S]]
) -> list[tuple[S, T | Exception]]:
    """Run a function on samples; if it fails, run it on each sample alone.

    Returns pairs of samples and their result, or the error of a sample that fails. Raises errors that no single sample causes:
    a `RuleError`, out of memory, or the same error for all of several samples.
    """
    found: list[tuple[S, T | Exception]] = []
    try:
        return [(samples, work(samples))]
    except Exception as error:
        _raise_shared_error(error)
        alone = list(one_by_one(samples))
        if len(alone) == 1:
            return [(samples, error)]
    for one in alone:
        found += run_with_fallback(work, one, one_by_one)
    errors = [outcome for _, outcome in found if isinstance(outcome, Exception)]
    if len(errors) == len(found) and len({first_line(error) for error in errors}) == 1:
        raise errors[0]
    return found


def _raise_shared_error(error: Exception) -> None:
    if isinstance(error, RuleError) or is_out_of_memory(error):
        raise error
