"""Results that are looked at as one figure."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from whence.explanation import PICTURES, writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
