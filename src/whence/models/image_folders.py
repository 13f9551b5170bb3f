"""Datasets from a folder of images, or from arrays in an .npz file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import InputError, LoadError, first_line
from whence.models.preprocessing import Preprocessing

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class ImageFolder:
    """A dataset of the images in a folder, read on access; images in subfolders are labelled by the subfolder's name.

    >>> data = ImageFolder.of(Path("photos"), loaded.preprocessing, loaded.class_names)
    >>> x, label = data[0]                         # only x if there are no subfolders
    """

    paths: Sequence[Path]
    labels: Sequence[int] | None
    preprocessing: Preprocessing

    @classmethod
    def of(cls, folder: Path, preprocessing: Preprocessing, classes: Sequence[str] = ()) -> "ImageFolder":
        """Return the images in a folder; subfolders are classes by name or number, or by their order if `classes` is empty."""
        paths = sorted(
            path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        )
        if not paths:
            raise LoadError(f"no images in {folder}; expected files with suffix {', '.join(IMAGE_SUFFIXES)}")
        within = [path.parent.relative_to(folder).parts for path in paths]
        if not all(within):
            return cls(paths, None, preprocessing)
        names = [parts[0] for parts in within]
        numbers = _label_numbers(sorted(set(names)), classes)
        return cls(paths, None if numbers is None else [numbers[name] for name in names], preprocessing)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        x = self.preprocessing.read(self.paths[index])[0]
        return x if self.labels is None else (x, self.labels[index])

    def first(self, count: int) -> "ImageFolder":
        """Return the first `count` images."""
        labels = None if self.labels is None else self.labels[:count]
        return ImageFolder(self.paths[:count], labels, self.preprocessing)

    def name(self, index: int) -> str:
        """Return the path of a sample."""
        return str(self.paths[index])


def read_arrays(path: Path, preprocessing: Preprocessing) -> tuple[Tensor, Tensor | None]:
    """Return the inputs (`images`, as pixels if uint8, or `x`) and the labels (`labels` or `y`) in an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files if name in ("images", "x", "labels", "y")}
            names = arrays.files
    except (OSError, ValueError, EOFError) as error:
        raise LoadError(f"{path} cannot be read: {first_line(error)}") from error
    given = next((found[name] for name in ("images", "x") if name in found), None)
    labels = next((torch.from_numpy(found[name]).long() for name in ("labels", "y") if name in found), None)
    if given is None:
        raise LoadError(f"{path} contains {', '.join(names)}, but neither 'images' nor 'x'")
    return _inputs(given, preprocessing), labels


def _inputs(given: Any, preprocessing: Preprocessing) -> Tensor:
    x = torch.from_numpy(given)
    if x.dtype != torch.uint8:
        return x.float() if x.is_floating_point() else x
    if x.dim() == 3:
        x = x[:, None]
    elif x.dim() == 4 and x.shape[-1] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    else:
        raise InputError(f"uint8 images have shape {tuple(x.shape)}, expected [N, H, W] or [N, H, W, 3]")
    if preprocessing.size is not None and tuple(x.shape[2:]) != preprocessing.size:
        raise InputError(f"the images have size {tuple(x.shape[2:])}, but the model takes {preprocessing.size}; resize them")
    return preprocessing.normalise(x.float() / 255)


def _label_numbers(names: Sequence[str], classes: Sequence[str]) -> dict[str, int] | None:
    if all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}
    lower = [name.lower() for name in classes]
    if all(name.lower() in lower for name in names):
        return {name: lower.index(name.lower()) for name in names}
    return None if classes else {name: number for number, name in enumerate(names)}
