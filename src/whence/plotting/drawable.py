"""Results that are looked at as one figure."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from whence.errors import WhenceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


class Result(ABC):
    """What has a figure can be saved, shown, and shows itself in notebooks."""

    @abstractmethod
    def figure(self) -> "Figure":
        """The picture, as matplotlib's."""

    def save(self, path: str | Path) -> Path:
        """Write the picture (.png, .jpg, .pdf, .svg); returns the path."""
        return self._saved(path, {})

    def _saved(self, path: str | Path, others: Mapping[str, Callable[[Path], object]]) -> Path:
        """Written aside and renamed: the picture, or by `others`, by the ending."""
        path = check_writable(path, (*PICTURE_SUFFIXES, *others))
        write = others.get(path.suffix) or self.figure().savefig
        with atomic_write(path) as beside:
            write(beside)
        return path

    def show(self) -> None:
        """Show the picture: inline in a notebook, else in the system's image viewer."""
        if _in_notebook():
            from IPython.display import display

            display(self)
            return
        from PIL import Image

        Image.open(BytesIO(figure_to_png(self.figure()))).show()

    def _repr_png_(self) -> bytes:
        return figure_to_png(self.figure())


def figure_to_png(drawn: "Figure") -> bytes:
    """The figure as PNG bytes."""
    buffer = BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file beside, which takes the place of `path` once it is whole: a full disk leaves what was there.

    >>> with written(Path("heat.png")) as beside:
    ...     figure.savefig(beside)
    """
    beside = path.with_name(f".{path.stem}-{os.getpid()}-{token_hex(3)}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def text_writer(make: Callable[[], str]) -> Callable[[Path], object]:
    """Writes what `make` gives."""
    return lambda path: path.write_text(make(), encoding="utf-8")


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return get_ipython() is not None


def check_writable(path: str | Path, suffixes: Sequence[str]) -> Path:
    """The path, if its folder exists and its ending is one of `suffixes`."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise WhenceError(f"cannot save as {path.name!r}: choose {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise WhenceError(f"no folder {path.parent} to save {path.name} into")
    return path
