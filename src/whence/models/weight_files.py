"""Reading weights from files and fitting them into a model."""

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import LoadError, first_line, missing_path

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")  # of the weights, in checkpoints of more


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a state dict into `model`; all keys must match.

    The weights are a file .safetensors, .npz, or a weights-only .pt, .pth, .ckpt or .bin, or a folder of .safetensors or .bin
    files that share them. A prefix that all names have and none of the model (of DataParallel, Lightning) is removed.

    >>> load_weights(torchvision.models.squeezenet1_0(), "squeezenet.npz")
    """
    path = Path(path)
    own = model.state_dict()
    state = _strip_prefixes(read_state_dict(path), own)
    lacking, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [
        f"{k} {list(state[k].shape)} for {list(own[k].shape)}"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    problems = [
        f"{label} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for label, keys in (("missing", lacking), ("unexpected", unexpected), ("with a different shape", sorted(wrong)))
        if keys
    ]
    if problems:
        raise LoadError(f"{path.name} does not fit the model: {'; '.join(problems)}")
    parameters = {name for name, _ in model.named_parameters()}
    for name, t in state.items():
        if (problem := _tensor_problem(t, own[name], name in parameters)) is not None:
            raise LoadError(f"{path.name}: {name} {problem}")
    model.load_state_dict(state)


def reject_nan(model: nn.Module, name: str) -> None:
    """Raise `LoadError` for a model that has NaN among its weights."""
    for parameter, t in model.named_parameters():
        if not t.is_meta and t.is_floating_point() and bool(t.isnan().any()):
            raise LoadError(f"{name}: {parameter} contains NaN; training has probably diverged")


def _tensor_problem(t: Tensor, own: Tensor, is_parameter: bool) -> str | None:
    """Return why a tensor cannot take the place of the model's own; `copy_` would convert some of these silently."""
    if t.is_meta:
        return "has a shape but no values (device meta); save the model after its weights are loaded"
    if t.is_quantized:
        return "is quantized; save tensor.dequantize()"
    if t.layout != torch.strided:
        return f"is sparse ({t.layout}); save tensor.to_dense()"
    if own.is_floating_point() and not t.is_floating_point():
        return f"is {t.dtype}, but the model's is {own.dtype}; save the tensor as floating-point numbers"
    if not own.is_floating_point() and (t.is_floating_point() or t.is_complex()):
        return f"is {t.dtype}, but the model's is {own.dtype}; save the tensor as {own.dtype}"
    if not t.is_floating_point():
        return None
    t = t.to(own.dtype) if own.is_floating_point() else t  # eight-bit floats have no `isinf`
    if t.isnan().any():
        return "contains NaN; training has probably diverged"
    if is_parameter and t.isinf().any():  # buffers may: masks of attention
        return "contains infinite values; training has probably diverged, or a narrow dtype overflowed"
    return None


def _strip_prefixes(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names of the model, without prefixes that all names have."""
    while state:
        prefix = next(iter(state)).partition(".")[0] + "."
        if any(name.startswith(prefix) for name in own) or not all(name.startswith(prefix) for name in state):
            break
        state = {name.removeprefix(prefix): t for name, t in state.items()}
    return state


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the named tensors in a file, or in the files of a folder."""
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise LoadError(missing_path(path, "weights file"))
    if path.suffix.lower() not in READERS:
        raise LoadError(f"{path.name}: weights must be {', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}")
    state = READERS[path.suffix.lower()](path)
    if isinstance(state, Mapping):
        state = next((state[name] for name in STATE_DICT_KEYS if isinstance(state.get(name), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise LoadError(f"{path.name} does not contain a state dict; save model.state_dict()")
    return dict(state)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the files that share them, as the folder's index lists them, or else of all such files."""
    index = next(folder.glob("*.index.json"), None)
    if index is None:
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    else:
        try:
            files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{index.name} is not an index of weights: {first_line(error)}") from error
    if not files:
        raise LoadError(f"the folder {folder} has no .safetensors or .bin files; pass a weights file")
    state: dict[str, Tensor] = {}
    for file in files:
        found = read_state_dict(file)
        if twice := state.keys() & found.keys():
            raise LoadError(f"{file.name} and an earlier file of {folder.name} both have {min(twice)}; pass one of the files")
        state |= found
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{path.name} is not a readable safetensors file: {first_line(error)}") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # damaged files raise many kinds of errors
        raise LoadError(f"{path.name} is not a readable .npz file: {first_line(error)}") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # torch warns of pickles that it then refuses
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"{path.name} is not a weights-only file and could run code when loaded; save model.state_dict() as .safetensors"
        ) from error
    except Exception as error:  # damaged files raise many kinds of errors
        raise LoadError(f"{path.name} is not a readable torch file: {first_line(error)}") from error


READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors, ".npz": _read_npz, ".pt": _read_torch, ".pth": _read_torch, ".ckpt": _read_torch,
    ".bin": _read_torch,
}  # fmt: skip
