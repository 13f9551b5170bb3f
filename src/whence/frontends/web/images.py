"""Uploaded images: limited in bytes, pixels and formats, and never written to disk."""

import base64
import binascii
import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from whence.errors import InputError, first_line
from whence.models.preprocessing import Preprocessing

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 8 * 2**20
MAX_PIXELS = 24_000_000
MAX_UNRESIZED_PIXELS = 512 * 512  # for models that take images in their own size: activations take hundreds of times as much


def decode_base64(encoded: str) -> bytes:
    """Return the decoded bytes, or raise `InputError`."""
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise InputError("the image upload is incomplete; send it again") from error


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image of a known format, rotated as its EXIF data says."""
    if len(data) > MAX_BYTES:
        raise InputError(f"the image has {len(data) / 2**20:.0f} MiB; send one of at most {MAX_BYTES // 2**20} MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    size, limit = f"{image.width} × {image.height}", f"{max_pixels:,}"
                    raise InputError(f"the image has {size} pixels; send one of at most {limit} pixels")
                image.load()
                return ImageOps.exif_transpose(image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"the file is not an image that can be read; send one of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise many kinds of errors
        raise InputError(f"not a readable image ({', '.join(FORMATS)}): {first_line(error)}") from error


def drawing_to_tensor(encoded: str) -> Tensor:
    """Return a drawing of 28 × 28 bytes as a digit, `[1, 1, 28, 28]` in [0, 1]."""
    data = decode_base64(encoded)
    if len(data) != 28 * 28:
        raise InputError(f"expected a drawing of {28 * 28} bytes, got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(1, 1, 28, 28) / 255


def tensor_to_png(x: Tensor, preprocessing: Preprocessing) -> str:
    """Return an input image `[C, H, W]` as a PNG in base64."""
    low, high = (bound.to(x) for bound in preprocessing.bounds)
    pixels = ((x - low) / (high - low)).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    written = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def pack_tensor(t: Tensor) -> dict:
    """Return the shape, and the values as float32 in base64."""
    array = t.detach().float().cpu().contiguous().numpy().astype("<f4")
    return {"shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}
