"""The options that name a part of a picture: a detected box, a class of a segmentation, a pixel."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from whence.errors import TargetError

if TYPE_CHECKING:
    from whence.core.detection import Detection
    from whence.core.region import Region
    from whence.models.loaded_model import LoadedModel


@dataclass(frozen=True)
class PictureTarget:
    """The values of --detection, --score, --region, --point and --box."""

    detection: str | None = None
    score: float = 0.5
    region: str | None = None
    point: str | None = None
    box: str | None = None

    def check(self, target: str | None, rather_than: str | None) -> None:
        """Raise `TargetError` for options that contradict each other."""
        places = self.region is not None or self.point is not None or self.box is not None
        if self.detection is not None and places:
            raise TargetError(
                "--detection explains a box that was detected; it cannot be combined with --region, --point or --box"
            )
        if (self.detection is not None or places) and (target is not None or rather_than is not None):
            raise TargetError("--target and --rather-than are of classifiers; name the class in --detection or --region")

    def read(self, loaded: "LoadedModel") -> "Detection | Region | None":
        """Return the target that the options name, or None."""
        from whence.core.detection import Detection
        from whence.core.region import Region

        if self.detection is not None:
            name, _, number = self.detection.rpartition(":")
            if not number.isdecimal():  # a class alone
                name, number = self.detection, "0"
            return Detection(int(number), loaded.class_index(name) if name else None, self.score)
        if self.region is None and self.point is None and self.box is None:
            return None
        index = None if self.region in (None, "predicted") else loaded.class_index(self.region)
        return Region(index, point=_numbers(self.point, "--point", 2), box=_numbers(self.box, "--box", 4))


def _numbers(given: str | None, option: str, count: int) -> tuple[float, ...] | None:
    """Return numbers that are separated by commas."""
    if given is None:
        return None
    try:
        values = tuple(float(part) for part in given.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise TargetError(f"{option} {given}: expected {count} numbers of pixels, separated by commas")
    return values
