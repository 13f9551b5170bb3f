"""Checks of values that are deferred while an explanation is traced as a graph, since its inputs are not known yet."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_under_way = threading.local()


@contextmanager
def defer_checks() -> Iterator[list[Tensor]]:
    """Collect conditions on values instead of evaluating them while a graph is traced."""
    before, _under_way.conditions = _conditions(), []
    try:
        yield _under_way.conditions
    finally:
        _under_way.conditions = before


def check_holds(condition: Tensor) -> bool:
    """Return whether the condition holds everywhere; while a graph is traced, record it and return True."""
    noted = _conditions()
    if noted is None:
        return bool(condition.all())
    noted.append(condition.all())
    return True


def known_true(condition: Tensor) -> bool:
    """Return whether the condition is known to hold everywhere, so that a step can be skipped; False while tracing."""
    return _conditions() is None and bool(condition.all())


def are_checks_deferred() -> bool:
    """Return whether a graph is being traced."""
    return _conditions() is not None


def _conditions() -> list[Tensor] | None:
    return getattr(_under_way, "conditions", None)
