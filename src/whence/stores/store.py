"""A store of explanations: a folder of shards and a manifest of the settings they were computed with."""

import json
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.files import write_safetensors
from whence.core.fingerprints import fingerprint
from whence.errors import LoadError, StoreError, count_noun, first_line
from whence.stores.store_paths import is_local, readable, store_path, writable

FORMAT = 1
MANIFEST = "manifest.json"
ALL = slice(None)
SCALE_COLUMN = "relevance_scale"  # factor by which half-precision maps are multiplied


@dataclass(frozen=True)
class Manifest:
    """The settings of a store; runs whose manifests differ cannot share a store."""

    count: int  # samples
    shard_size: int
    model: str  # fingerprints; `method_words` is the readable form
    method: str
    method_words: str
    data: str
    target: str
    layers: Sequence[str]
    reduce: str
    pictures: bool
    library: str
    map_size: int | None = None
    channel_dim: int | None = None  # of relevance that is stored with channels
    class_names: Sequence[str] = ()
    format: int = FORMAT

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    @property
    def settings(self) -> str:
        """The fingerprint of all settings."""
        return fingerprint(self._plain)

    def class_name(self, number: int) -> str:
        """Return the name of a class, or its number if it has no name."""
        return self.class_names[number] if number < len(self.class_names) else str(number)

    def rows(self, shard: int) -> range:
        """Return the indices of the samples in a shard."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def differs(self, other: "Manifest") -> list[str]:
        """Return descriptions of the settings in which two manifests differ."""
        mine, its = self._json_values, other._json_values
        names = [name for name in mine if name != "class_names" and mine[name] != its[name]]
        return [f"{name} ({_shorten(its[name])} there, {_shorten(mine[name])} now)" for name in names]

    @property
    def _json_values(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    @property
    def _plain(self) -> dict[str, Any]:
        plain = self._json_values
        del plain["class_names"]  # names do not change any value
        for name in ("map_size", "channel_dim"):
            if plain[name] is None:  # as in stores of versions that had no such setting
                del plain[name]
        return plain

    def create(self, folder: Path) -> None:
        """Write the manifest unless another job has just written one, which then stays."""
        if not is_local(folder):
            (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
            return
        beside = folder / f".{token_hex(8)}.json"
        try:
            beside.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
            os.link(beside, folder / MANIFEST)  # fails, as a rename would not, where there is a manifest
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            beside.replace(folder / MANIFEST)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        path = folder / MANIFEST
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise LoadError(f"{folder} is not a store: it has no {MANIFEST}") from error
        except (OSError, ValueError, TypeError) as error:
            raise LoadError(f"{path} cannot be read: {first_line(error)}") from error


@dataclass(frozen=True)
class Shard:
    """Some samples of a store: tensors `[n, …]` by name, and the samples that failed."""

    tensors: Mapping[str, Tensor]
    failures: Sequence[Mapping[str, Any]] = ()

    def write(self, path: Path, settings: str) -> None:
        """Write the shard to a temporary file and rename it, so that an existing file is always complete."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        about = {"settings": settings, "checksum": _checksum(tensors), "failures": list(self.failures)}
        with writable(path) as beside:
            write_safetensors(beside, tensors, {"about": json.dumps(about)})  # a single entry: the order of several would vary

    @classmethod
    def read(cls, path: Path, settings: str, rows: range) -> "Shard":
        """Read the shard of some rows of the dataset.

        Raises:
            DamagedShardError: The file is proven to be damaged, or to hold another shard of this store.
            StoreError: The file belongs to another store, or cannot be read, for want of permissions or because of the file
                system.
        """
        from safetensors import SafetensorError, safe_open

        try:
            path.open("rb").close()
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
        try:
            with readable(path) as local, safe_open(local, "pt") as file:
                about = _shard_metadata((file.metadata() or {}).get("about", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {first_line(error)}") from error
        except (SafetensorError, ValueError, RecursionError) as error:
            raise DamagedShardError(f"{path} is damaged: {first_line(error)}; run explain_dataset again") from error
        if about.get("settings") != settings:
            raise StoreError(f"{path} belongs to another store; move it to another folder, and run explain_dataset again")
        if about.get("checksum") != _checksum(tensors):
            raise DamagedShardError(f"{path} is damaged: its checksum does not match; run explain_dataset again")
        found = [*tensors["index"].tolist(), *(int(failure["index"]) for failure in about["failures"])]
        if sorted(found) != list(rows):
            raise DamagedShardError(f"{path} is another shard than its number says; run explain_dataset again")
        return cls(tensors, about["failures"])


class DamagedShardError(StoreError):
    """A file that is not the shard that its name says, and is computed again."""


@dataclass(frozen=True, eq=False)
class Store:
    """Explanations of a dataset, read from disk on demand.

    >>> store = whence.open_store("explanations")
    >>> len(store), store[17]["relevance"].shape
    >>> store.relevance[:100]                       # of the first hundred samples
    >>> store.column("prediction")                  # [n]; output, label, target, confidence, index, relevance_sum, …
    >>> store.channels("features.10")               # [n, C], for the layers that were stored
    >>> store.failures, store.missing

    Samples that failed have no row; `index` holds the dataset index of each row.

    Args:
        folder: The folder of the store.
        manifest: The settings of the store.
    """

    folder: Path
    manifest: Manifest
    _shards: dict[int, Shard] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        there = f"{len(self)} of {count_noun(self.manifest.count, 'sample')}"
        missing = f", {len(self.missing)} of {self.manifest.shards} shards missing" if self.missing else ""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"Store of {there} by {self.manifest.method_words} in {self.folder}{missing}{failed}"

    def path(self, shard: int) -> Path:
        """Return the path of a shard."""
        return shard_path(self.folder, shard)

    @cached_property
    def present(self) -> list[int]:
        """The shards that exist."""
        return [shard for shard in range(self.manifest.shards) if self.path(shard).is_file()]

    @property
    def missing(self) -> list[int]:
        """The shards that are not computed yet."""
        return sorted(set(range(self.manifest.shards)) - set(self.present))

    @cached_property
    def failures(self) -> list[Mapping[str, Any]]:
        """The samples that failed: `index` and `message` of each."""
        return [failure for shard in self.present for failure in self.shard(shard).failures]

    @cached_property
    def index(self) -> Tensor:
        """The dataset index of each row, `[n]`."""
        return self.column("index")

    @property
    def names(self) -> list[str]:
        """The names of all columns."""
        return sorted(self._filled[0].tensors) if self._filled else []

    @property
    def _filled(self) -> list[Shard]:
        """The first shard with at least one explained sample, as a list."""
        return next(([found] for number in self.present if len((found := self.shard(number)).tensors["index"])), [])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Return all columns of one row."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} is out of range for a store of {len(self)} rows")
        number = int(self.index[row])
        shard = self.shard(number // self.manifest.shard_size)
        at = int((shard.tensors["index"] == number).nonzero()[0])
        found = {name: t[at] for name, t in shard.tensors.items() if name != SCALE_COLUMN}
        return found | {"relevance": read_maps(shard, slice(at, at + 1))[0]}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    def shard(self, number: int) -> Shard:
        """Read and check a shard; the last few are cached."""
        if number not in self._shards:
            if len(self._shards) >= 4:
                self._shards.pop(next(iter(self._shards)))
            self._shards[number] = Shard.read(self.path(number), self.manifest.settings, self.manifest.rows(number))
        return self._shards[number]

    def column(self, name: str) -> Tensor:
        """Return one column, `[n, …]`.

        Args:
            name: One of `names`.
        Raises:
            StoreError: There is no such column, or no shard yet.
        """
        return self.columns([name])[name]

    def columns(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return several columns, `[n, …]` by name, reading each shard once.

        Args:
            names: Some of `names`.
        Raises:
            StoreError: There is no such column, or no shard yet.
        """
        if not self.present:
            raise StoreError(f"{self.folder} contains no shards yet")
        if unknown := [name for name in names if name not in self.names]:
            raise StoreError(f"the store has no column {unknown[0]!r}; it has {', '.join(self.names)}")
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for shard in self.present:
            tensors = self.shard(shard).tensors
            for name in parts if len(tensors["index"]) else ():
                parts[name].append(tensors[name])
        return {name: torch.cat(found) for name, found in parts.items()}

    def channels(self, layer: str) -> Tensor:
        """Return the relevance of every channel of a layer, `[n, C]`.

        Args:
            layer: The name of a layer that was stored.
        Raises:
            StoreError: The layer was not stored.
        """
        return torch.cat(list(self.channel_column(layer).batches()))

    def channel_column(self, layer: str) -> "StoreColumn":
        """Return the relevance of every channel of a layer by row, read on slicing, as `relevance`.

        Args:
            layer: The name of a layer that was stored.
        Raises:
            StoreError: The layer was not stored.
        """
        name = f"layers.{layer}"
        if name not in self.names:
            known = [name.removeprefix("layers.") for name in self.names if name.startswith("layers.")]
            raise StoreError(f"the store has no relevance of layer {layer!r}; it has {', '.join(known) or 'no layers'}")
        return StoreColumn(self, lambda shard: shard.tensors[name])

    @property
    def relevance(self) -> "StoreColumn":
        """Relevance by row, read on slicing: `store.relevance[100:200]`, `[100, …]`, or `np.asarray(store.relevance)`."""
        return StoreColumn(self, read_maps)


@dataclass(frozen=True, eq=False)
class StoreColumn:
    """A column of a store, read on demand because it may not fit into memory."""

    store: Store
    of: Callable[[Shard], Tensor]

    def __len__(self) -> int:
        return len(self.store)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.of(self.store._filled[0]).shape[1:])

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Tensor:
        if hasattr(rows, "__index__") and not isinstance(rows, Tensor):
            return self[[operator.index(rows)]][0]  # type: ignore[arg-type]
        numbers = torch.arange(len(self))[rows] if isinstance(rows, slice) else torch.as_tensor(rows)
        wanted, size = self.store.index[numbers], self.store.manifest.shard_size
        found: dict[int, Tensor] = {}
        for shard in (wanted // size).unique().tolist():
            part = self.store.shard(shard)
            position = {int(number): i for i, number in enumerate(part.tensors["index"])}
            here = wanted[wanted // size == shard].tolist()
            maps = self.of(part)[[position[number] for number in here]]
            found |= dict(zip(here, maps, strict=True))
        return torch.stack([found[number] for number in wanted.tolist()]) if len(wanted) else torch.zeros(0, *self.shape[1:])

    def batches(self) -> Iterator[Tensor]:
        """Yield the rows of one shard at a time."""
        shards = (self.store.shard(shard) for shard in self.store.present)
        return (self.of(shard) for shard in shards if len(shard.tensors["index"]))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return torch.cat(list(self.batches())).numpy().astype(dtype or np.float32)


@check_arguments
def open_store(path: str | Path) -> Store:
    """Open the store in a folder, finished or not.

    >>> whence.open_store("explanations")
    Store of 10000 of 10000 samples by LRP() in explanations

    Args:
        path: The folder of the store, or its URL.
    Returns:
        The `Store`.
    Raises:
        LoadError: The folder does not exist or does not hold a store.
        MissingPackageError: A URL is given, and universal-pathlib or the package of its protocol is not installed.
    """
    folder = store_path(path)
    if not folder.is_dir():
        raise LoadError(f"folder {folder} does not exist")
    return Store(folder, Manifest.read(folder))


def claim_store(folder: Path, manifest: Manifest) -> Store:
    """Return the store with this manifest in a folder, new or existing; raise `StoreError` if its settings differ."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).is_file():
            if any(not path.name.startswith(".") for path in folder.iterdir()):  # another job may be writing its manifest
                raise StoreError(f"{folder} is neither empty nor a store; choose another folder")
            manifest.create(folder)
    except OSError as error:
        raise StoreError(f"{folder} cannot be used as a store: {error.strerror or first_line(error)}") from error
    there = Manifest.read(folder)
    if differences := manifest.differs(there):
        raise StoreError(
            f"{folder} was written with different settings: {'; '.join(differences)}; choose another folder or delete it"
        )
    return Store(folder, there)


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def to_half_precision(relevance: Tensor) -> dict[str, Tensor]:
    """Convert maps to half precision, each divided by its largest value, which prevents overflow and underflow."""
    scale = relevance.flatten(1).abs().amax(1).float()
    shares = relevance.float() / scale.clamp(min=1e-30).view(-1, *[1] * (relevance.dim() - 1))
    return {"relevance": shares.half(), SCALE_COLUMN: scale}


def _shard_metadata(text: str) -> dict[str, Any]:
    about = json.loads(text)
    if not isinstance(about, dict) or not isinstance(about.get("failures", []), list):
        raise ValueError("its metadata is not that of a shard")
    return about


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return fingerprint(dict(sorted(tensors.items())))


def read_maps(shard: Shard, rows: slice = ALL) -> Tensor:
    """Return the relevance of some rows of a shard, with its scale restored."""
    maps = shard.tensors["relevance"][rows]
    if SCALE_COLUMN not in shard.tensors:
        return maps
    return maps.float() * shard.tensors[SCALE_COLUMN][rows].view(-1, *[1] * (maps.dim() - 1))


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
