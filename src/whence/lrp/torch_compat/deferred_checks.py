"""Values that nobody can look at yet: while an explanation is written down as a graph, its inputs are still to come."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_under_way = threading.local()


@contextmanager
def defer_checks() -> Iterator[list[Tensor]]:
    """While entered, nothing may be decided by values; what has to hold of them is listed."""
    before, _under_way.conditions = _conditions(), []
    try:
        yield _under_way.conditions
    finally:
        _under_way.conditions = before


def check_holds(condition: Tensor) -> bool:
    """Whether it holds everywhere. Of values to come that is noted, and taken to be so."""
    noted = _conditions()
    if noted is None:
        return bool(condition.all())
    noted.append(condition.all())
    return True


def known_true(condition: Tensor) -> bool:
    """Whether it is known to hold everywhere, so that something may be spared."""
    return _conditions() is None and bool(condition.all())


def _conditions() -> list[Tensor] | None:
    return getattr(_under_way, "conditions", None)
