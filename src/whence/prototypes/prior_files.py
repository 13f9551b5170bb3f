"""Files of priors: weights as .safetensors, with the settings of their constructors as metadata."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from whence.core.files import atomic_write, check_writable, write_safetensors
from whence.errors import LoadError, first_line


def save(tensors: Mapping[str, Tensor], described: Mapping[str, object], path: str | Path) -> Path:
    """Save tensors and metadata and return the path."""
    path = check_writable(path, (".safetensors",))
    with atomic_write(path) as beside:
        write_safetensors(beside, tensors, {key: str(v) for key, v in described.items()})
    return path


def load(path: str | Path, what: str, wanted: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Load tensors in single precision and their metadata, or raise `LoadError` if a wanted key is missing."""
    try:
        with safe_open(path, "pt") as file:
            described = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise LoadError(f"{path} is not a saved {what}: {first_line(error)}") from error
    missing = [key for key in wanted if key not in described and key not in tensors]
    if missing:
        raise LoadError(f"{path} is not a saved {what}: missing {missing[0]}")
    return {name: t.float() for name, t in tensors.items()}, described


def shape_of(described: Mapping[str, str]) -> tuple[int, ...]:
    """Return the shape in metadata such as "1,28,28"."""
    return tuple(int(n) for n in described["shape"].split(","))
