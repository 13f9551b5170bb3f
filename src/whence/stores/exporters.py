"""Conversion of stores to other formats: HDF5 as ViRelAy and CoRelAy read it, Parquet for tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from whence.core.files import atomic_write
from whence.errors import MissingPackageError, StoreError
from whence.stores.store import SCALE_COLUMN, Store, read_maps

STORE_SUFFIXES = (".h5", ".parquet")


def export_store(store: Store, path: str | Path) -> list[Path]:
    """Write a store as `.h5` (for ViRelAy and CoRelAy) or `.parquet`, and return the paths of the files.

    >>> export_store(whence.open_store("explanations"), "explanations.h5")

    HDF5 is written to two files: `NAME.h5` with `attribution` [n, C, H, W], `prediction`, `label`, `index`, and `NAME-input.h5`
    with the thumbnails as `data`, and `label`. Parquet has one row per sample, with maps as lists.
    """
    path = Path(path)
    if path.suffix not in STORE_SUFFIXES:
        raise StoreError(f"cannot export to {path.name!r}; choose a suffix from {', '.join(STORE_SUFFIXES)}")
    if not len(store):
        raise StoreError(f"{store.folder} holds no explanations yet")
    return _hdf5(store, path) if path.suffix == ".h5" else _parquet(store, path)


@contextmanager
def _hdf5_file(path: Path) -> Iterator[Any]:
    """Yield an HDF5 file, written by Python: HDF5's own driver aborts the process where a disk is full."""
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError("writing .h5 files needs h5py; pip install h5py") from error
    with atomic_write(path) as beside, beside.open("w+b") as raw, h5py.File(raw, "w") as file:
        yield file


def _hdf5(store: Store, path: Path) -> list[Path]:
    labels = store.column("label").numpy()
    with _hdf5_file(path) as file:
        shape = store.relevance.shape
        maps = file.create_dataset("attribution", (shape[0], 1, *shape[1:]), np.float32)
        start = 0
        for part in store.relevance.batches():
            maps[start : start + len(part)] = part.numpy()[:, None]
            start += len(part)
        file["label"], file["index"] = labels, store.index.numpy()
        if "prediction" in store.names:
            file["prediction"] = store.column("prediction").numpy()
    if "picture" not in store.names:
        return [path]
    inputs = path.with_name(f"{path.stem}-input.h5")
    with _hdf5_file(inputs) as file:
        file["data"], file["label"] = store.column("picture").numpy().astype(np.float32) / 255, labels
    return [path, inputs]


def _parquet(store: Store, path: Path) -> list[Path]:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("writing .parquet files needs pyarrow; pip install pyarrow") from error
    with atomic_write(path) as beside:
        _write_parquet(store, beside)
    return [path]


def _write_parquet(store: Store, path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    writer: Any = None
    try:
        for number in store.present:
            shard = store.shard(number)
            if not len(shard.tensors["index"]):
                continue
            columns = {**shard.tensors, "relevance": read_maps(shard)}
            table = pyarrow.table({name: _to_list(t) for name, t in columns.items() if name != SCALE_COLUMN})
            writer = writer or ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _to_list(t: Tensor) -> Any:
    return t.numpy() if t.dim() == 1 else list(t.flatten(1).numpy())
