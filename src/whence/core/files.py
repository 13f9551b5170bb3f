"""Files that results are written to: whole or not at all, in the formats of NumPy, safetensors, CSV and JSON."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from math import isfinite
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.errors import WhenceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
Rows = Sequence[Mapping[str, Any]]


def check_writable(path: str | Path, suffixes: Sequence[str]) -> Path:
    """Return the path, or raise if its folder does not exist or its suffix is not one of `suffixes`."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise WhenceError(f"cannot save as {path.name!r}: choose {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise WhenceError(f"no folder {path.parent} to save {path.name} into")
    return path


def figure_to_png(figure: "Figure") -> bytes:
    """Return a figure of matplotlib as the bytes of a PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` that replaces it once it is complete: a full disk leaves the old file.

    >>> with atomic_write(Path("heat.png")) as temporary:
    ...     figure.savefig(temporary)
    """
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{token_hex(3)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def text_writer(make: Callable[[], str]) -> Callable[[Path], object]:
    """Return a function that writes the text that `make` returns to a path."""
    return lambda path: path.write_text(make(), encoding="utf-8")


def write_npz(path: Path, tensors: Mapping[str, Tensor], **strings: Any) -> None:
    """Write tensors, bfloat16 as float32, and strings or lists of them."""
    import numpy as np

    arrays: dict[str, Any] = {
        name: (t.float() if t.dtype == torch.bfloat16 else t).detach().cpu().numpy() for name, t in tensors.items()
    }
    np.savez_compressed(path, **arrays, **strings)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, each in memory of its own, and strings as metadata."""
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path, dict(metadata))


def write_csv(path: Path, rows: Rows) -> None:
    """Write rows under the names of their columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def to_json(value: Any) -> Any:
    """Return the value as JSON can hold it: tensors as lists, None for numbers that are not finite."""
    if isinstance(value, Tensor):
        return to_json(value.tolist())
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(to_json(value), indent=1), encoding="utf-8")
