"""Saving and loading of explanations as `.npz` and `.safetensors` files."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from whence.core.columns import Column
from whence.core.detection import Detection
from whence.core.explanation_data import ExplanationData
from whence.core.files import write_npz, write_safetensors
from whence.core.fingerprints import fingerprint
from whence.core.image_patches import PatchLayout
from whence.core.region import Region
from whence.core.targets import Logit
from whence.core.time_axis import TimeAxis
from whence.core.trees import Tree, named_leaves, short_repr, with_leaves
from whence.errors import LoadError, first_line
from whence.lrp.engine.conservation import Conservation

E = TypeVar("E", bound=ExplanationData)
TREE_FIELDS = ("relevance", "inputs", "layers", "standard_errors", "root", "feature_mask")


def to_tensors(e: ExplanationData) -> dict[str, Tensor]:
    """Return all tensors of an explanation by name, on their devices."""
    named = named_leaves(e.relevance, "relevance") | named_leaves(e.inputs, "inputs") | named_leaves(e.layers, "layers")
    named |= {"output": e.output, "relevance_sum": e.conservation.relevance} | named_leaves(
        e.conservation.by_layer, "absorbed_by"
    )
    logit = Logit(e.target) if isinstance(e.target, Tensor) else e.target
    if isinstance(logit, Logit):
        named |= {key: t for key, t in (("target", logit.index), ("rather_than", logit.rather_than)) if isinstance(t, Tensor)}
    if isinstance(e.target, Region | Detection):
        named |= {f"target.{key}": t for key, t in _target_fields(e.target).items() if isinstance(t, Tensor)}
    account = {name: getattr(e.conservation, name) for name in ("absorbed", "baseline", "conditional_output")}
    named |= {name: t for name, t in (account | {"interactions": e.interactions}).items() if t is not None}
    for name in ("standard_errors", "root", "feature_mask"):
        named |= named_leaves(getattr(e, name), name)
    return named


def with_tensors(e: E, named: Mapping[str, Tensor]) -> E:
    """Return the explanation with other tensors, named as by `to_tensors`."""
    logit = Logit(e.target) if isinstance(e.target, Tensor) else e.target
    if isinstance(logit, Logit):
        logit = replace(logit, index=named.get("target"), rather_than=named.get("rather_than"))
    if isinstance(logit, Region | Detection):
        logit = replace(logit, **_with_prefix(named, "target"))
    account = replace(
        e.conservation,
        output=named["output"], relevance=named["relevance_sum"], absorbed=named.get("absorbed"),
        baseline=named.get("baseline"), conditional_output=named.get("conditional_output"),
        by_layer=with_leaves(e.conservation.by_layer, named, "absorbed_by"),
    )  # fmt: skip
    nests = {name: with_leaves(getattr(e, name), named, name) for name in TREE_FIELDS}
    return replace(
        e, output=named["output"], target=logit.index if isinstance(e.target, Tensor) else logit,
        conservation=account, interactions=named.get("interactions"), **nests,
    )  # fmt: skip


def cpu_tensors(e: ExplanationData) -> dict[str, Tensor]:
    """Return all tensors of an explanation by name, in CPU memory."""
    return {name: t.detach().cpu().contiguous() for name, t in to_tensors(e).items()}


KEYS = {
    "method", "targets", "target", "structure", "parts", "adds_up", "class_names", "feature_names", "columns", "tokens",
    "layers", "patches", "channel_dims", "time_axis", "bfloat16", "note",
}  # fmt: skip


def write_explanation(e: ExplanationData, path: Path) -> None:
    """Write an explanation to `.npz` or `.safetensors`."""
    tensors = cpu_tensors(e)
    if path.suffix == ".npz":
        write_npz(path, tensors, about=_metadata(e, tensors))
    else:
        write_safetensors(path, tensors, {"method": short_repr(e.method), "about": _metadata(e, tensors)})


def _metadata(e: ExplanationData, tensors: Mapping[str, Tensor]) -> str:
    """Return everything but the tensors as JSON."""
    classes = e.class_names if isinstance(e.class_names, Mapping) else dict(enumerate(e.class_names))
    described = {
        "method": short_repr(e.method),
        "targets": e.target_names(),
        "target": _described_target(e.target),
        "structure": "tensor" if isinstance(e.relevance, Tensor) else type(e.relevance).__name__,
        "parts": e.input_names,
        "adds_up": e.conservation.adds_up,
        "class_names": {str(i): name for i, name in classes.items()},
        "feature_names": {name: list(names) for name, names in e.feature_names.items()},
        "columns": {name: list(map(asdict, columns)) for name, columns in e.columns.items()},
        "tokens": e.tokens,
        "layers": {name: len(calls) for name, calls in e.layers.items() if isinstance(calls, tuple)},
        "patches": {name: asdict(patches) for name, patches in e.patches.items()},
        "channel_dims": dict(e.channel_dims),
        "time_axis": e.time_axis and asdict(e.time_axis),
        "bfloat16": [name for name, t in tensors.items() if t.dtype == torch.bfloat16],
        "note": e.note,
    }  # fmt: skip
    assert described.keys() == KEYS
    return json.dumps(described | {"checksum": _checksum(tensors, json.loads(json.dumps(described)))})


def _checksum(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> str:
    numbers = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in sorted(tensors.items())}
    return fingerprint(numbers, json.dumps(described, sort_keys=True))


def read_fields(path: str | Path) -> dict[str, Any]:
    """Read the fields of an explanation from a file that `write_explanation` wrote; raise `LoadError` for other files."""
    path = Path(path)
    read = {".npz": _npz, ".safetensors": _safetensors}.get(path.suffix.lower())
    if read is None:
        raise LoadError(f"{path} is not an .npz or .safetensors file of an explanation")
    try:
        if not path.is_file():
            raise LoadError(f"{path} is not a file")
        numbers, about = read(path)
        if about is None or "output" not in numbers:
            raise LoadError(f"{path} does not contain an explanation; save one with Explanation.save(path)")
        described = json.loads(about)
        checksum = described.pop("checksum", None)
        if checksum not in (None, _checksum(numbers, described)) or not described.keys() <= KEYS:
            raise LoadError(f"{path} is damaged: its checksum does not match")
        return _fields(numbers, described)
    except LoadError:
        raise
    except Exception as error:  # readers raise errors of many kinds for damaged files
        raise LoadError(f"{path} cannot be read as an explanation: {type(error).__name__}: {first_line(error)}") from error


def _npz(path: Path) -> tuple[dict[str, Tensor], str | None]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        about = str(arrays["about"]) if "about" in arrays.files else None
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "about"}, about


def _safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get("about")  # noqa: SIM118


def _fields(numbers: dict[str, Tensor], about: dict[str, Any]) -> dict[str, Any]:
    numbers |= {name: numbers[name].bfloat16() for name in about["bfloat16"]}
    return {
        "relevance": _tree(numbers, "relevance", about),
        "output": numbers["output"],
        "target": _target(numbers, about["targets"], about.get("target")),
        "conservation": _conservation(numbers, about["adds_up"]),
        "layers": _layers(numbers, about["layers"]),
        "inputs": _tree(numbers, "inputs", about),
        "method": SavedRepr(about["method"]),
        "class_names": {int(i): name for i, name in about["class_names"].items()},
        "feature_names": about["feature_names"],
        "columns": {name: list(map(_column, columns)) for name, columns in about.get("columns", {}).items()},
        "feature_mask": _tree(numbers, "feature_mask", about),
        "tokens": about["tokens"],
        "standard_errors": _tree(numbers, "standard_errors", about),
        "interactions": numbers.get("interactions"),
        "root": _tree(numbers, "root", about),
        "patches": {
            name: PatchLayout(tuple(map(tuple, p["grids"])), p["frames"], p["merged"]) for name, p in about["patches"].items()
        },
        "channel_dims": about.get("channel_dims", {}),
        "time_axis": _time_axis(about.get("time_axis")),
        "note": about["note"],
    }


def _time_axis(described: dict[str, Any] | None) -> TimeAxis | None:
    return None if described is None else TimeAxis(described["rate"], tuple(described["labels"]))


def _column(described: dict[str, Any]) -> Column:
    others: dict[str, Any] = described | {"categories": tuple(described["categories"])}
    return Column(**others)


def _with_prefix(numbers: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with the prefix, by the rest of their names."""
    return {name.removeprefix(f"{prefix}."): t for name, t in numbers.items() if name.startswith(f"{prefix}.")}


def _tree(numbers: Mapping[str, Tensor], prefix: str, about: dict[str, Any]) -> Tree:
    """Return saved tensors in the structure of the inputs, with None for missing parts; None if all are missing."""
    if about["structure"] == "tensor":
        return numbers.get(prefix)
    found = _with_prefix(numbers, prefix)
    whole = {name: found.get(name) for name in about["parts"]} if found else {}
    return (whole if about["structure"] == "dict" else tuple(whole.values())) or None


def _layers(numbers: Mapping[str, Tensor], several: dict[str, int]) -> dict[str, Any]:
    """Return the relevance by layer; a tuple for layers that ran several times."""
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
        numbers.get("conditional_output"),
    )


def _target(numbers: Mapping[str, Tensor], told: list[str], described: dict[str, Any] | None) -> Any:
    if described is not None and described["type"] == "Logit":
        return Logit(numbers["target"], numbers.get("rather_than"), described["position"], described["steps"])
    if described is not None:
        values: dict[str, Any] = described | _with_prefix(numbers, "target")
        return {"Region": Region, "Detection": Detection}[values.pop("type")](**values)
    if "target" not in numbers:
        return SavedRepr(told[0] if told else "")
    return Logit(numbers["target"], numbers["rather_than"]) if "rather_than" in numbers else numbers["target"]


def _described_target(target: Any) -> dict[str, Any] | None:
    """Return the fields of a region, detection or position that are no tensors, with its type; None for other targets."""
    if isinstance(target, Logit) and target.steps is not None:
        return {"type": "Logit", "position": target.position, "steps": target.steps}
    if not isinstance(target, Region | Detection):
        return None
    others = {key: value for key, value in _target_fields(target).items() if not isinstance(value, Tensor)}
    return {"type": type(target).__name__} | others


def _target_fields(target: Region | Detection) -> dict[str, Any]:
    return {field.name: getattr(target, field.name) for field in fields(target)}


class SavedRepr:
    """A method or target function of a saved explanation, of which only its repr is known."""

    def __init__(self, words: str):
        self.words = self.__name__ = words

    def __repr__(self) -> str:
        return self.words
