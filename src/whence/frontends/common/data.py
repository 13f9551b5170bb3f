"""Data of commands that read many samples: a folder of images, a file of arrays or texts, or the bundled digits."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.core.trees import map_leaves
from whence.data.dataset_rows import DatasetRows
from whence.errors import InputError, LoadError, missing_path
from whence.frontends.common.terminal import warn

if TYPE_CHECKING:
    from whence.models.loaded_model import LoadedModel

MOST_NAMED = 10


def read_data(given: str | None, loaded: "LoadedModel", command: str, limit: int | None = None) -> Any:
    """Return samples, with labels if they are known: a dataset or `(x, y)`."""
    from whence.models.image_folders import ImageFolder, read_arrays

    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}; expected at least 1")
    if given is None:
        return _limit(_bundled_digits(loaded, command), limit)
    path = Path(given)
    if path.is_dir():
        found = ImageFolder.of(path, loaded.preprocessing, loaded.class_names)
        return found if limit is None else found.first(limit)
    if not path.is_file():
        raise LoadError(f"{given} does not exist")
    if loaded.text is not None:
        return _read_texts(path, loaded, limit)
    if is_array_file(given):
        return _limit((read_array(path), None), limit)
    if path.suffix == ".npz":
        return _limit(read_arrays(path, loaded.preprocessing), limit)
    raise LoadError(f"{given} is not a folder of images, an .npz or an .npy file")


def sample_name(samples: Any, number: int) -> str:
    """Return the file name of a sample, or its index if it has none."""
    from whence.models.image_folders import ImageFolder

    return samples.name(number) if isinstance(samples, ImageFolder) else str(number)


def warn_about_failures(failures: Sequence[str]) -> None:
    """Print the first failures as warnings, and the number of further ones."""
    for failure in failures[:MOST_NAMED]:
        warn(failure)
    if len(failures) > MOST_NAMED:
        warn(f"{len(failures) - MOST_NAMED} more samples failed")


def read_images(samples: Any) -> Tensor:
    """Return all images as one tensor, or raise `InputError` after naming those that cannot be read."""
    rows = DatasetRows.of(samples)
    found, failed = rows.read(range(rows.count), rows.shape)
    for failure in failed:
        warn(f"{sample_name(samples, failure.index)}: {failure.message}")
    if found is None or failed:
        raise InputError("reference samples are addressed by index; remove the images that cannot be read")
    if not isinstance(found.inputs.nest, torch.Tensor):
        raise InputError("reference samples must be images")
    return found.inputs.nest


def first_sample(samples: Any) -> Any:
    """Return the first sample as a batch, from which methods infer the kind of input."""
    if isinstance(samples, tuple):
        return map_leaves(lambda t: t[:1], samples[0])
    return DatasetRows.of(samples).first.inputs.nest


def is_array_file(given: str | None) -> bool:
    """Return whether the input is a .npy file rather than an image."""
    return given is not None and given.endswith(".npy")


def read_array(path: Path) -> Tensor:
    """Return the tensor in a .npy file, or raise `LoadError`."""
    import numpy as np

    if not path.is_file():
        raise LoadError(missing_path(path))
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise LoadError(f"{path} is not a readable .npy file") from error


def _bundled_digits(loaded: "LoadedModel", command: str) -> tuple[Tensor, Tensor]:
    from whence.models.bundled import DIGIT_MODELS
    from whence.models.digits import digit_samples

    if loaded.name not in DIGIT_MODELS:
        raise InputError(f"nothing to {command}: pass data, as in `whence {command} --model {loaded.name} --data FOLDER`")
    return digit_samples()


def _read_texts(path: Path, loaded: "LoadedModel", limit: int | None) -> Any:
    """Return the texts of a file, one per line, padded to the longest."""
    import torch

    assert loaded.text is not None
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:limit]
    if not lines:
        raise LoadError(f"{path} contains no text")
    read = [loaded.text.read(line) for line in lines]
    longest = max(text["input_ids"].shape[1] for text in read)
    for text in read:
        text.setdefault("attention_mask", torch.ones_like(text["input_ids"]))

    def padded(name: str) -> Tensor:
        fill = loaded.text.blank_id if name == "input_ids" else 0  # type: ignore[union-attr]
        rows = [torch.nn.functional.pad(text[name], (0, longest - text[name].shape[1]), value=fill) for text in read]
        return torch.cat(rows)

    return {name: padded(name) for name in read[0]}, None


def _limit(data: tuple[Any, Any], limit: int | None) -> tuple[Any, Any]:
    x, y = data
    return x[:limit], None if y is None else y[:limit]
