"""Atomic writing of result files in the formats of NumPy, safetensors, CSV and JSON."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from math import isfinite
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.errors import InputError, WhenceError, first_line, value_repr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
Rows = Sequence[Mapping[str, Any]]


def check_writable(path: str | Path, suffixes: Sequence[str]) -> Path:
    """Return the path, or raise if its folder does not exist or its suffix is not one of `suffixes`."""
    path = Path(path)
    if "\0" in str(path):
        raise WhenceError(f"cannot save as {str(path)!r}: paths cannot contain NUL")
    if path.suffix.lower() not in suffixes:
        raise WhenceError(f"cannot save as {path.name!r}: the suffix must be one of {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise WhenceError(f"no folder {path.parent}; create it before saving {path.name}")
    return path


def make_cache_dir(path: Any) -> Path:
    """Return the folder, made if it does not exist; raise `InputError` if it cannot be one."""
    if not isinstance(path, str | Path):
        raise InputError(f"cache_dir={value_repr(path)}; expected the path of a folder")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache_dir={str(folder)!r} cannot be used as a folder: {first_line(error)}") from error
    return folder


def figure_to_bytes(figure: "Figure", suffix: str = ".png") -> bytes:
    """Return a matplotlib figure as the bytes of a file.

    Written to a file itself, a PDF that does not fit on the disk raises errors of other kinds than `OSError`.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format=suffix.lower().removeprefix("."))
    return buffer.getvalue()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, and rename it to `path` if the block succeeds.

    >>> with atomic_write(Path("heat.png")) as temporary:
    ...     figure.savefig(temporary)

    An error, such as a full disk, leaves the old file as it was. Errors of the file system are raised as `WhenceError`.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary = path.with_name(f".{token_hex(8)}{path.suffix.lower()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise WhenceError(f"{path} cannot be written: {error.strerror or first_line(error)}") from error
    finally:
        with suppress(OSError):  # it is missing after the rename, or cannot have been written
            temporary.unlink()


def text_writer(make: Callable[[], str]) -> Callable[[Path], object]:
    """Return a function that writes the text that `make` returns to a path."""
    return lambda path: path.write_text(make(), encoding="utf-8")


def write_npz(path: Path, tensors: Mapping[str, Tensor], **strings: Any) -> None:
    """Write tensors (bfloat16 as float32) and strings or lists of strings to an `.npz` file."""
    import numpy as np

    arrays: dict[str, Any] = {
        name: (t.float() if t.dtype == torch.bfloat16 else t).detach().cpu().numpy() for name, t in tensors.items()
    }
    np.savez_compressed(path, **arrays, **strings)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, without shared memory, and strings as metadata to a `.safetensors` file.

    They are serialised in memory first: the file then has the permissions of the user's umask, and a full disk is an `OSError`.
    """
    from safetensors.torch import save

    path.write_bytes(save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, dict(metadata)))


def write_csv(path: Path, rows: Rows) -> None:
    """Write rows to a CSV file with a header of column names."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def to_json(value: Any) -> Any:
    """Return the value with types that JSON supports: tensors as lists, non-finite numbers as None."""
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
    """Write a value to a JSON file."""
    path.write_text(json.dumps(to_json(value), indent=1), encoding="utf-8")
