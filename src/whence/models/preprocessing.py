"""Preprocessing of image files into model inputs, and the bounds of the normalised pixels."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.pixel_bounds import Box
from whence.errors import InputError, value_repr
from whence.lrp.rules.presets import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Preprocessing:
    """Image preprocessing: resize the shorter side, crop the centre, scale to [0, 1], normalise by channel.

    >>> shown = whence.Preprocessing((64, 64), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    >>> shown.read("photo.png").shape
    torch.Size([1, 3, 64, 64])

    `size` is height and width, `channels` 3 or 1 (grey); `mean` and `std` are of pixels in [0, 1], one for each channel, as the
    model was trained. `resize` is what the shorter side becomes before the centre is cropped, or, with `size` None, in the
    whole picture. Without `crop` the whole picture is resized to `size` regardless of its aspect ratio, as torchvision's
    `Resize((64, 64))` does.
    """

    size: tuple[int, int] | None  # None: as the picture is
    channels: int = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: int | None = None  # of the shorter side, before cropping
    crop: bool = True
    bounds_known: bool = True  # False: nobody says how the model's pixels are scaled

    def __post_init__(self):
        size = self.size
        if size is not None and not (
            isinstance(size, tuple | list) and len(size) == 2 and all(int(side) >= 1 for side in size)
        ):
            raise InputError(
                f"size={value_repr(size)}; give height and width in pixels, as in (224, 224), or None for no resizing"
            )
        if self.channels not in (1, 3):
            raise InputError(f"channels={value_repr(self.channels)}; expected 3 (RGB) or 1 (grey)")
        for name in ("mean", "std"):  # lists, arrays and tensors too
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if len(self.box.mean) not in (0, self.channels):
            raise InputError(f"mean and std of {len(self.mean)} numbers for {self.channels} channels; give one per channel")
        if self.resize is not None and size is not None and not self.crop:
            raise InputError(f"resize={self.resize} is the size before cropping; it requires crop=True")

    @classmethod
    @check_arguments
    def imagenet(cls, size: int = 224, resize: int = 256) -> "Preprocessing":
        return cls((size, size), 3, IMAGENET_MEAN, IMAGENET_STD, resize)

    def of_size(self, size: int) -> "Preprocessing":
        """Return the preprocessing for square images of another size."""
        return replace(self, size=(size, size), resize=None)

    def read(self, path: str | Path) -> Tensor:
        """Return the image in a file as a batch of one, `[1, C, H, W]`."""
        from whence.models.image_files import read_image, to_8bit

        return self.of_image(to_8bit(read_image(path), path))

    def of_image(self, image: "Image") -> Tensor:
        """Return an opened image as a batch of one, `[1, C, H, W]`."""
        from whence.models.image_files import resize_and_crop, resize_shorter_side, resize_to

        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.size is not None:
            image = resize_and_crop(image, self.size, self.resize) if self.crop else resize_to(image, self.size)
        elif self.resize is not None:
            image = resize_shorter_side(image, self.resize)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        pixels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
        return self.normalise(pixels)[None].contiguous()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1], normalised as the model expects them."""
        return (pixels - _column(self.mean)) / _column(self.std) if self.mean else pixels

    @property
    def box(self) -> Box:
        """The bounds and normalisation of the pixels, for attacks."""
        return Box(mean=self.mean, std=self.std)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The values of black and white pixels after normalisation, as the z^B rule takes them."""
        count = max(len(self.mean), 1)
        return self.normalise(torch.zeros(count, 1, 1)), self.normalise(torch.ones(count, 1, 1))


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)
