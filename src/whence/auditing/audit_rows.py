"""The rows of a store that are audited: their columns and relevance maps, read without holding the whole store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from whence.auditing.candidates import shares
from whence.core.inputs import has_colours_last
from whence.errors import InputError, value_repr
from whence.stores.shard_worker import sum_over_cells
from whence.stores.store import Store

MIN_SAMPLES = 12  # samples of a class, below which it is not clustered
MAP_SIDE = 64  # larger maps are summed over cells
ROWS_READ = 256  # at once
COLUMNS = ("label", "prediction", "confidence")


@dataclass(frozen=True, eq=False)
class AuditedRows:
    """The rows of a store that are audited.

    Args:
        store: The store.
        rows: Row numbers in the store, `[n]`, ascending.
        indices: Sample numbers in the dataset, `[n]`.
        classes: The class of each row, `[n]`.
        columns: Labels, predictions and confidences, as far as they are stored.
        maps: The relevance of the inputs, summed over channels, `[n, …]`; pictures of at most 64 cells a side.
        on_masks: The share of the relevance on each of the user's masks, `[n]` by name.
        map_shape: The shape of the stored maps.
    """

    store: Store
    rows: Tensor
    indices: Tensor
    classes: Tensor
    columns: Mapping[str, Tensor]
    maps: Tensor
    on_masks: Mapping[str, Tensor]
    map_shape: tuple[int, ...]

    @classmethod
    def of_store(cls, store: Store, group_by: str, masks: Mapping[str, Tensor], max_samples: int, seed: int) -> "AuditedRows":
        """Read the rows of a store, a random part of them if there are more than `max_samples`."""
        columns = store.columns([group_by, "index", *(name for name in COLUMNS if name in store.names)])
        rows = (columns[group_by] >= 0).nonzero()[:, 0]  # samples without a label belong to no class
        if not len(rows):
            raise InputError(f"the samples have no {group_by}; choose group_by='prediction'")
        if len(rows) > max_samples:
            random = torch.Generator().manual_seed(seed)
            rows = rows[torch.randperm(len(rows), generator=random)[:max_samples]].sort().values
        columns = {name: column[rows] for name, column in columns.items()}
        maps, on_masks, shape = [], {name: [] for name in masks}, ()
        for numbers, found in _maps(store, rows, columns["index"]):
            for name, mask in masks.items():
                on_masks[name].append(_share_on_mask(name, mask, found, numbers, store.manifest.count))
            shape = tuple(found.shape[1:])
            maps.append(sum_over_cells(found, MAP_SIDE) if found.dim() == 3 else found)
        return cls(
            store, rows, columns["index"], columns[group_by], {name: columns[name] for name in COLUMNS if name in columns},
            torch.cat(maps), {name: torch.cat(parts) for name, parts in on_masks.items()}, shape,
        )  # fmt: skip

    @cached_property
    def compared_classes(self) -> list[int]:
        """The classes that others are compared with: those with 12 samples or more."""
        numbers, counts = self.classes.unique(return_counts=True)
        large = numbers[counts >= MIN_SAMPLES]
        return (large if len(large) > 1 else numbers).tolist()

    def channels(self, layer: str) -> Tensor:
        """Return the relevance of the channels of a stored layer, `[n, C]`."""
        return self.store.channel_column(layer)[self.rows]


def _maps(store: Store, rows: Tensor, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the dataset numbers and the relevance, summed over channels, of some rows at a time."""
    for some, numbers in zip(rows.split(ROWS_READ), indices.split(ROWS_READ), strict=True):
        maps = store.relevance[some]
        if store.manifest.reduce != "channels" and maps.dim() > 2:
            last = has_colours_last(maps.shape) if store.manifest.channel_dim is None else store.manifest.channel_dim > 1
            maps = maps.sum(-1 if last else 1)
        yield numbers, maps


def _share_on_mask(name: str, given: Tensor, maps: Tensor, numbers: Tensor, count: int) -> Tensor:
    """Return the share of relevance of each sample on a mask, `[n]`."""
    try:
        mask = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"mask {name!r} is {value_repr(given)}; expected a boolean tensor [H, W] or [n, H, W]") from error
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise InputError(f"mask {name!r} has values other than 0 and 1; give a boolean tensor, such as mask > 0.5")
    if maps.dim() != 3 or tuple(mask.shape) not in (tuple(maps.shape[1:]), (count, *maps.shape[1:])):
        raise InputError(
            f"mask {name!r} has shape {tuple(mask.shape)}, but the relevance maps have shape {tuple(maps.shape[1:])} for "
            f"{count} samples; give a mask [H, W], or [n, H, W] with one for each sample of the dataset"
        )
    return (shares(maps) * (mask.bool() if mask.dim() == 2 else mask.bool()[numbers])).sum((1, 2))
