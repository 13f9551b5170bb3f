"""Models of transformers whose weights stay on disk and are read a layer at a time, by accelerate."""

import json
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from whence.errors import LoadError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
IN_PYTHON = "load it in Python: from_pretrained(…, device_map={'': 'disk'}, offload_folder=…)"

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
          "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip


@dataclass(frozen=True)
class StoredWeight:
    """A tensor in a safetensors file.

    Args:
        file: The file.
        start: The position of its first byte in the file.
        dtype: Its dtype.
        shape: Its shape.
    """

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Return the tensor in memory of its own, which is mapped to this part of the file until it is freed."""
        count = math.prod(self.shape)
        begin = self.start - self.start % mmap.ALLOCATIONGRANULARITY
        with self.file.open("rb") as file:
            length = self.start - begin + count * self.dtype.itemsize
            memory = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=begin)
        return torch.frombuffer(memory, dtype=self.dtype, count=count, offset=self.start - begin).view(self.shape)


@dataclass(frozen=True)
class WeightsOnDisk(Mapping[str, Tensor]):
    """The weights of a model by name, each read when it is asked for.

    Args:
        stored: Where each weight is stored.
        dtype: The dtype of floating-point weights.
    """

    stored: Mapping[str, StoredWeight]
    dtype: torch.dtype

    def __getitem__(self, name: str) -> Tensor:
        weight = self.stored[name].read()
        return weight.to(self.dtype) if weight.is_floating_point() else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


class EmptyOnMeta(TorchFunctionMode):
    """Create empty tensors, as those of new weights, without memory."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


def offloaded_model(kind: Any, config: Any, folder: Path, device: str) -> nn.Module:
    """Return a model of transformers whose weights are read from disk when a module runs, and dropped afterwards.

    Args:
        kind: The class of transformers, such as `AutoModelForCausalLM`.
        config: Its configuration.
        folder: A folder as of `save_pretrained`.
        device: The device on which the model runs.
    """
    from accelerate import cpu_offload, init_empty_weights

    if getattr(config, "quantization_config", None):
        raise LoadError(f"{folder} holds quantised weights, which cannot be offloaded; load it without offload=True")
    stored = {name: weight for file in _files(folder) for name, weight in _read_header(file).items()}
    floats = (weight.dtype for weight in stored.values() if weight.dtype.is_floating_point)
    dtype = config.dtype or next(floats, torch.float32)
    with EmptyOnMeta(), init_empty_weights(include_buffers=False):
        model = kind.from_config(config, dtype=dtype)
    model.tie_weights()
    weights = WeightsOnDisk(_stored_weights(model, stored, folder), dtype)
    buffers = {name: weights[name] for name, _ in model.named_buffers() if name in weights}
    model.load_state_dict(buffers, strict=False, assign=True)
    if unknown := next((name for name, buffer in model.named_buffers() if buffer.is_meta), None):
        raise LoadError(f"the buffer {unknown!r} of {type(model).__name__} is not stored in {folder}; {IN_PYTHON}")
    return cpu_offload(model.eval(), torch.device(device), state_dict=cast("dict[str, Tensor]", weights))


def _stored_weights(model: nn.Module, stored: Mapping[str, StoredWeight], folder: Path) -> dict[str, StoredWeight]:
    """Return where the weights of a model are stored: under their names, without the prefix of the head, or as tied weights."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    weights = model.state_dict(keep_vars=True)
    names = {name: next((n for n in (name, name.removeprefix(prefix)) if n in stored), None) for name in weights}
    found = {name: stored[other] for name, other in names.items() if other is not None}
    for name in weights.keys() - found.keys():
        twin = next((other for other in found if weights[other] is weights[name]), None)
        if twin is None:
            raise LoadError(f"{folder} has no weight {name!r} of {type(model).__name__}, or stores it otherwise; {IN_PYTHON}")
        found[name] = found[twin]
    if wrong := next((name for name, weight in weights.items() if weight.shape != found[name].shape), None):
        raise LoadError(f"{folder} stores {wrong!r} in another shape than {type(model).__name__} has it; {IN_PYTHON}")
    return found


def _files(folder: Path) -> set[Path]:
    """Return the safetensors files of a folder."""
    if (folder / WEIGHTS).is_file():  # an index beside it is left from an earlier version
        return {folder / WEIGHTS}
    if not (folder / INDEX).is_file():
        raise LoadError(f"{folder} has no {WEIGHTS}, from which weights can be read one at a time; {IN_PYTHON}")
    return {folder / file for file in json.loads((folder / INDEX).read_text())["weight_map"].values()}


def _read_header(path: Path) -> dict[str, StoredWeight]:
    """Return the tensors of a safetensors file: the length of the header in 8 bytes, the header as JSON, the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    try:
        return {
            name: StoredWeight(path, 8 + length + entry["data_offsets"][0], DTYPES[entry["dtype"]], tuple(entry["shape"]))
            for name, entry in header.items()
        }
    except KeyError as error:
        raise LoadError(f"{path} has weights of dtype {error}, which cannot be offloaded; {IN_PYTHON}") from error
