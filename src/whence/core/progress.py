"""Progress bars, which are shown for long runs only."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    seen = console.is_terminal or console.is_jupyter  # a transient bar leaves blank lines in log files
    columns = rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeRemainingColumn()
    return rich.Progress(*columns, console=console, transient=True, disable=not seen)
