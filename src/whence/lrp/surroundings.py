"""What has to be arranged around a forward pass for the mode to see all of it: compiled parts run eagerly, and checkpointed
parts are seen again when they are computed again. Both are process-wide in torch: the first who needs them makes the change,
the last undoes it.
"""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch.utils import checkpoint

ContextFn = Callable[[], tuple[AbstractContextManager, AbstractContextManager]]
Recompute = Callable[[Callable[..., Any], tuple], tuple[Callable[..., Any], Callable[[], AbstractContextManager]]]
GENERATOR = "_checkpoint_without_reentrant_generator"  # what torch's checkpoint() looks up at each call


class Shared:
    """A process-wide change that several threads may need at once."""

    def __init__(self, change: Callable[[], AbstractContextManager]):
        self._change, self._lock, self._users, self._undo = change, threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._undo.enter_context(self._change())
            self._users += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._undo.close()


class Reenterable:
    """A context made anew each time it is entered: a checkpointed part is computed again for each backward pass."""

    def __init__(self, make: Callable[[], AbstractContextManager]):
        self._make = make
        self._entered: list[AbstractContextManager] = []

    def __enter__(self) -> None:
        context = self._make()
        context.__enter__()
        self._entered.append(context)

    def __exit__(self, *exception: Any) -> None:
        self._entered.pop().__exit__(*exception)


_recompute = threading.local()


@contextmanager
def recomputing_by(recompute: Recompute) -> Iterator[None]:
    """`recompute(function, arguments)` says how a part that this thread checkpoints is to be computed on the way back."""
    before = getattr(_recompute, "value", None)
    _recompute.value = recompute
    try:
        yield
    finally:
        _recompute.value = before


@contextmanager
def _checkpoints_carried() -> Iterator[None]:
    original = getattr(checkpoint, GENERATOR, None)
    if original is None:  # a torch that has moved it: recomputation then fails with torch's own error
        yield
        return

    def generator(function: Callable[..., Any], preserve: bool, context_fn: ContextFn, *rest: Any, **kwargs: Any) -> Any:
        recompute: Recompute | None = getattr(_recompute, "value", None)
        if recompute is None:
            return original(function, preserve, context_fn, *rest, **kwargs)
        function, recomputing = recompute(function, (rest, kwargs))

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            forward, backward = context_fn()
            return forward, Reenterable(lambda: entered(backward, recomputing()))

        return original(function, preserve, contexts, *rest, **kwargs)

    setattr(checkpoint, GENERATOR, generator)
    try:
        yield
    finally:
        setattr(checkpoint, GENERATOR, original)


@contextmanager
def entered(*contexts: AbstractContextManager) -> Iterator[None]:
    """All of the contexts, one within the other."""
    with ExitStack() as undo:
        for context in contexts:
            undo.enter_context(context)
        yield


@contextmanager
def _eagerly() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import is slow
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
        yield


CHECKPOINTS_CARRIED = Shared(_checkpoints_carried)
EAGERLY = Shared(_eagerly)
