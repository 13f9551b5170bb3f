"""Paths of stores: folders, and URLs of object stores through fsspec."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from whence.core.files import atomic_write
from whence.errors import LoadError, MissingPackageError, StoreError, first_line


def store_path(given: str | Path) -> Any:
    """Return the path of a store: a `Path`, or for a URL such as s3://bucket/folder the `UPath` of universal-pathlib."""
    if "://" not in str(given):
        return Path(given)
    try:
        from upath import UPath
    except ImportError as error:
        raise MissingPackageError("stores on object stores need universal-pathlib; pip install 'whence[cloud]'") from error
    try:
        path = UPath(given)
        _ = path.fs
    except ImportError as error:  # the package of this protocol
        raise MissingPackageError(f"{given}: {first_line(error)}") from error
    except ValueError as error:
        raise LoadError(f"{given}: {first_line(error)}") from error
    return path


def is_local(path: Any) -> bool:
    """Return whether a path of a store is a folder of this machine."""
    return isinstance(path, Path)


@contextmanager
def readable(path: Any) -> Iterator[Path]:
    """Yield a path on this machine with the content of a file of a store."""
    if is_local(path):
        yield path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


@contextmanager
def writable(path: Any) -> Iterator[Path]:
    """Yield a path on this machine, whose file becomes that of a store as a whole once the block has ended."""
    if is_local(path):
        with atomic_write(path) as temporary:
            yield temporary
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        yield copy
        try:
            path.write_bytes(copy.read_bytes())  # object stores show a file once it is complete
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {first_line(error)}") from error
