"""Results that are looked at as one figure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whence.errors import WhenceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


class Drawable(ABC):
    """What has a figure can be saved, shown, and shows itself in notebooks."""

    @abstractmethod
    def figure(self) -> "Figure":
        """The picture, as matplotlib's."""

    def save(self, path: str | Path) -> Path:
        """Write the picture (.png, .jpg, .pdf, .svg); returns the path."""
        path = writable(path, PICTURES)
        self.figure().savefig(path)
        return path

    def show(self) -> None:
        """Show the picture: inline in a notebook, else in the system's image viewer."""
        from whence.show import heatmaps

        heatmaps.show(self, self.figure())

    def _repr_png_(self) -> bytes:
        from whence.show import heatmaps

        return heatmaps.png(self.figure())


def writable(path: str | Path, suffixes: Sequence[str]) -> Path:
    """The path, if its folder exists and its ending is one of `suffixes`."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise WhenceError(f"cannot save as {path.name!r}: choose {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise WhenceError(f"no folder {path.parent} to save {path.name} into")
    return path
