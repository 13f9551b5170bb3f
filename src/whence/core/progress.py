"""Progress bars, which are shown for long runs only."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

SILENT_SECONDS = 3.0
Progress = bool | Callable[[int, int], None]  # whether to show a bar, or a function called with (done, total)


@contextmanager
def progress(label: str, total: int, shown: Progress) -> Iterator[Callable[..., None]]:
    """Yield `advance(steps, note)`, which updates a progress bar.

    >>> with progress("occlusion", 100, shown=True) as advance:
    ...     advance(10)

    The bar is shown on stderr after 3 seconds and removed at the end. If `shown` is a function, it is called instead.
    """
    with ExitStack() as undo:
        start, done = time.monotonic(), 0
        bar: Any = None
        task: Any = None

        def advance(steps: int, note: str = "") -> None:
            nonlocal bar, task, done
            done += steps
            if callable(shown):
                shown(done, total)
                return
            seconds = time.monotonic() - start
            if bar is None and shown and done < total and seconds > SILENT_SECONDS:
                bar = undo.enter_context(_bar())
                task = bar.add_task(label, total=total, left="")
            if bar is not None:
                bar.update(task, completed=done, description=f"{label} {note}", left=_time_left(seconds, done, total))

        yield advance


def _time_left(seconds: float, done: int, total: int) -> str:
    """Return the time that remains at the mean speed so far."""
    return f"{timedelta(seconds=round(seconds * (total - done) / done))} left" if done else ""


def _bar() -> Any:
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    seen = console.is_terminal or console.is_jupyter  # a transient bar leaves blank lines in log files
    left = rich.TextColumn("{task.fields[left]}", style="cyan")
    columns = rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(), left
    return rich.Progress(*columns, console=console, transient=True, disable=not seen)
