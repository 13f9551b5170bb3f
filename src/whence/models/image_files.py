"""Image files: reading with EXIF rotation, resizing and cropping."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from whence.errors import LoadError, first_line, missing_path

MAX_ENLARGEMENT = 64  # of the pixels of the result, in a resized picture of which most is cut off


def read_image(path: str | Path) -> Image.Image:
    """Return the image in a file, rotated as its EXIF data says; raise `LoadError` if it cannot be read."""
    if not Path(path).is_file():
        raise LoadError(missing_path(Path(path)))
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)  # phones turn pictures by a note beside the pixels
    except UnidentifiedImageError as error:
        raise LoadError(f"{path} is not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise LoadError(f"{path} cannot be read: {first_line(error)}") from error


def to_8bit(image: Image.Image, path: str | Path) -> Image.Image:
    """Scale a greyscale image of more than 8 bits (16, 32 or floating point) to 8 bits, which Pillow would clip to white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    scales = (65535,) if image.mode.startswith("I;16") else (1, 255, 65535) if image.mode == "F" else (255, 65535)
    top = next((top for top in scales if high <= top), None)
    if low < 0 or top is None:
        raise LoadError(f"{path} has grey values from {low:g} to {high:g}; save it with 8 or 16 bits")
    return Image.fromarray((values / top * 255).round().astype(np.uint8))


def resize_and_crop(image: Image.Image, size: tuple[int, int], resize: int | None) -> Image.Image:
    height, width = size
    ratio = max((resize or height) / min(image.size), height / image.height, width / image.width)
    whole = (max(width, round(image.width * ratio)), max(height, round(image.height * ratio)))
    if whole[0] * whole[1] > MAX_ENLARGEMENT * width * height:  # of a thin picture, only the part that is kept is resized
        spans = [(n * (full - kept) / 2 / full, n * (full + kept) / 2 / full)
                 for n, full, kept in zip(image.size, whole, (width, height), strict=True)]  # fmt: skip
        (left, right), (top, bottom) = spans
        return image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    image = image.resize(whole, Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def resize_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Resize the whole image so that its shorter side has a length; a thin one, so that the longer is at most 4 times that."""
    ratio = min(side / min(image.size), MAX_ENLARGEMENT * side / max(image.size))
    return image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), Image.Resampling.BILINEAR)


def resize_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the whole image to a height and width, without cropping."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR)
