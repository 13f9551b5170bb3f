"""load(): an explanation as it was saved."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from whence.core.explanation import Explanation
from whence.core.image_patches import PatchLayout
from whence.core.targets import Logit
from whence.core.trees import Tree
from whence.errors import LoadError, first_line
from whence.lrp.engine.conservation import Conservation


def load(path: str | Path) -> Explanation:
    """An explanation from the `.npz` or `.safetensors` that its `save` wrote: to draw it again, to compare, to go on.

    >>> whence.explain(model, x).save("e.npz")
    >>> whence.load("e.npz").relevance

    Its method is told in words, and so is a target that was a function. Raises `LoadError` for other files.
    """
    path = Path(path)
    read = {".npz": _npz, ".safetensors": _safetensors}.get(path.suffix)
    if read is None or not path.is_file():
        raise LoadError(f"{path} is no .npz or .safetensors of an explanation")
    try:
        numbers, about = read(path)
    except (OSError, ValueError, KeyError, SafetensorError, zipfile.BadZipFile) as error:
        raise LoadError(f"{path} cannot be read as an explanation: {first_line(error)}") from error
    if about is None or "output" not in numbers:
        raise LoadError(f"{path} holds no explanation; explanations are saved by e.save(path)")
    return _explanation(numbers, json.loads(about))


def _npz(path: Path) -> tuple[dict[str, Tensor], str | None]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        about = str(arrays["about"]) if "about" in arrays.files else None
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "about"}, about


def _safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get("about")  # noqa: SIM118


def _explanation(numbers: dict[str, Tensor], about: dict[str, Any]) -> Explanation:
    numbers |= {name: numbers[name].bfloat16() for name in about["bfloat16"]}
    return Explanation(
        relevance=_tree(numbers, "relevance", about),
        output=numbers["output"],
        target=_target(numbers, about["targets"]),
        conservation=_conservation(numbers, about["adds_up"]),
        layers=_layers(numbers, about["layers"]),
        inputs=_tree(numbers, "inputs", about),
        method=SavedRepr(about["method"]),
        classes={int(i): name for i, name in about["classes"].items()},
        features=about["features"],
        tokens=about["tokens"],
        standard_errors=_tree(numbers, "standard_errors", about),
        interactions=numbers.get("interactions"),
        root=_tree(numbers, "root", about),
        patches={
            name: PatchLayout(tuple(map(tuple, p["grids"])), p["frames"], p["merged"]) for name, p in about["patches"].items()
        },
        note=about["note"],
    )


def _with_prefix(numbers: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest."""
    return {name.removeprefix(f"{prefix}."): t for name, t in numbers.items() if name.startswith(f"{prefix}.")}


def _tree(numbers: Mapping[str, Tensor], prefix: str, about: dict[str, Any]) -> Tree:
    """What was saved in the structure of the inputs; None for parts that have none, and where there is nothing."""
    if about["structure"] == "tensor":
        return numbers.get(prefix)
    found = _with_prefix(numbers, prefix)
    whole = {name: found.get(name) for name in about["parts"]} if found else {}
    return (whole if about["structure"] == "dict" else tuple(whole.values())) or None


def _layers(numbers: Mapping[str, Tensor], several: dict[str, int]) -> dict[str, Any]:
    """By layer; a tuple of those that ran several times."""
    layers: dict[str, Any] = dict(_with_prefix(numbers, "layers"))
    return layers | {name: tuple(layers.pop(f"{name}.{i}") for i in range(count)) for name, count in several.items()}


def _conservation(numbers: Mapping[str, Tensor], adds_up: bool) -> Conservation:
    return Conservation(
        numbers["output"],
        numbers["relevance_sum"],
        numbers.get("absorbed"),
        _with_prefix(numbers, "absorbed_by"),
        numbers.get("baseline"),
        adds_up,
    )


def _target(numbers: Mapping[str, Tensor], told: list[str]) -> Any:
    if "target" not in numbers:
        return SavedRepr(told[0] if told else "")
    return Logit(numbers["target"], numbers["rather_than"]) if "rather_than" in numbers else numbers["target"]


class SavedRepr:
    """What is known of a method or a target once it was saved: how it was written."""

    def __init__(self, words: str):
        self.words = self.__name__ = words

    def __repr__(self) -> str:
        return self.words
