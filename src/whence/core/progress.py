"""A bar for long runs; short ones stay silent."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

SILENT_SECONDS = 3.0
Progress = bool | Callable[[int, int], None]  # whether to show a bar; or who is told (done, total) instead


@contextmanager
def progress(label: str, total: int, shown: Progress) -> Iterator[Callable[..., None]]:
    """Gives `advance(steps, note)`. A bar on stderr appears once the run has taken a few seconds and vanishes at its end.

    >>> with progress("occlusion", 100, shown=True) as advance:
    ...     advance(10)
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
            elif bar is not None:
                bar.update(task, completed=done, description=f"{label} {note}")
            elif shown and done < total and time.monotonic() - start > SILENT_SECONDS:
                bar = undo.enter_context(_bar())
                task = bar.add_task(label, total=total, completed=done)

        yield advance


def _bar() -> Any:
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    seen = console.is_terminal or console.is_jupyter  # elsewhere, as in a log, only blank lines would be left of it
    columns = rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn()
    return rich.Progress(*columns, console=console, transient=True, disable=not seen)
