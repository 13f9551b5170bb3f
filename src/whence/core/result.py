"""The base class of results, with a figure and a table that can be saved and shown."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.core.argument_checks import check_arguments
from whence.core.files import PICTURE_SUFFIXES, Rows, atomic_write, check_writable, figure_to_bytes, write_csv, write_json
from whence.core.optional_packages import import_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

RESULT_SUFFIXES = (*PICTURE_SUFFIXES, ".csv", ".json")


class Result(ABC):
    """The base class of results: a figure and a table, which can be saved and shown.

    >>> result.save("result.png")                   # or .pdf, .svg, .csv, .json
    >>> result.to_frame()                           # a pandas.DataFrame of its table
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in ("figure", "save", "show", "to_frame"):
            if name in vars(cls):
                setattr(cls, name, check_arguments(vars(cls)[name]))

    @property
    @abstractmethod
    def table(self) -> Rows:
        """The result as rows, each a dict from column name to value."""

    @abstractmethod
    def figure(self) -> "Figure":
        """Return the result as a matplotlib figure."""

    def to_frame(self) -> "DataFrame":
        """Return the table as a `pandas.DataFrame`; raise `MissingPackageError` if pandas is not installed."""
        return rows_to_frame(self.table)

    def save(self, path: str | Path) -> Path:
        """Save the figure (.png, .jpg, .pdf, .svg) or the table (.csv, .json), and return the path.

        A binary file object, such as `io.BytesIO()`, gets the figure as PNG.
        """
        return self._save(path, {})

    def _save(self, path: Any, others: Mapping[str, Callable[[Path], object]]) -> Path:
        """Write a file by its suffix: a figure, the table, or a format that `others` writes; a figure to a file object."""
        if hasattr(path, "write"):
            path.write(figure_to_bytes(self.figure()))
            return path
        writers = {".csv": lambda file: write_csv(file, self.table), ".json": lambda file: write_json(file, list(self.table))}
        writers |= dict(others)
        path = check_writable(path, (*PICTURE_SUFFIXES, *writers))
        write: Any = writers.get(path.suffix.lower()) or self._savefig
        with atomic_write(path) as temporary:
            write(temporary)
        return path

    def _savefig(self, path: Path) -> None:
        path.write_bytes(figure_to_bytes(self.figure(), path.suffix))

    def show(self) -> None:
        """Show the figure: inline in a notebook, else in the system's image viewer; without a display say how to save it."""
        if _in_notebook():
            from IPython.display import display

            display(self)
            return
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            print("there is no display to show the figure on; save it: .save('figure.png')", file=sys.stderr)
            return
        from PIL import Image

        Image.open(BytesIO(figure_to_bytes(self.figure()))).show()

    def _repr_png_(self) -> bytes:
        return figure_to_bytes(self.figure())


def rows_to_frame(rows: Rows) -> "DataFrame":
    """Return rows as a `pandas.DataFrame`; raise `MissingPackageError` if pandas is not installed."""
    return import_package("pandas").DataFrame(list(rows))


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return get_ipython() is not None
