"""Interrupts (Ctrl-C, timers) at safe points only, so that they leave no mode, hook or patch of torch behind."""

import _signal  # whose functions are those of signal in C: no interrupt is raised, and lost, within them
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGUSR1", "SIGUSR2", "SIGBREAK")
    if hasattr(signal, name)
)


class _State:
    """How many deferring blocks the main thread is in, and the exception that a signal handler raised in them."""

    depth = 0
    pending: BaseException | None = None


class DeferringHandler:
    """A signal handler that runs the original one, and keeps the exception that it raises within a deferring block."""

    def __init__(self, original: Callable[[int, FrameType | None], Any]):
        self.original = original

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not _State.depth:
            self.original(number, frame)
            return
        try:
            self.original(number, frame)
        except BaseException as error:
            _State.pending = error.with_traceback(None)


class defer_interrupts:
    """Context in which exceptions of signal handlers, such as KeyboardInterrupt, are raised by `raise_pending` and at its end.

    Python raises them between any two instructions, also between those of a context manager that enters or leaves a mode of
    torch. Handlers run in the main thread alone; other threads are unaffected.
    """

    def __enter__(self) -> None:
        self._main = threading.current_thread() is threading.main_thread()
        if not self._main:
            return
        try:
            if not _State.depth:
                _swap(lambda handler: handler if isinstance(handler, DeferringHandler) else DeferringHandler(handler))
            _State.depth += 1
        except BaseException:  # an interrupt before the block defers
            _restore()
            raise

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if not self._main:
            return
        try:
            _State.depth -= 1
            if not _State.depth:
                _restore()
        except BaseException:  # an interrupt before all handlers are restored
            _restore()
            raise
        finally:
            if kind is None or not _State.depth:
                raise_pending()


def raise_pending() -> None:
    """Raise the exception of a signal handler that waits, if there is one; called where it leaves nothing behind."""
    if _State.pending is not None and threading.current_thread() is threading.main_thread():
        error, _State.pending = _State.pending, None
        raise error


def _swap(change: Callable[[Any], Any]) -> None:
    """Change the handlers that are functions of Python."""
    for number in SIGNALS:
        handler = _signal.getsignal(number)
        if callable(handler):
            _signal.signal(number, change(handler))


def _restore() -> None:
    _swap(lambda handler: handler.original if isinstance(handler, DeferringHandler) else handler)
