"""Outputs of models and modules: the representative tensor of an output with several tensors, and its logits."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from whence.errors import SelectorError


def logits_of(outputs: Any) -> Any:
    """Return the `logits` attribute of an output that has one, as those of transformers do, else the output itself."""
    return getattr(outputs, "logits", outputs)


def output_field(outputs: Any, name: str) -> Any:
    """Return a field of a model's outputs, of a mapping or an object, or None."""
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def describe_outputs(outputs: Any) -> str:
    """Return what a model's outputs are: their fields with shapes."""
    if isinstance(outputs, Tensor):
        return f"a tensor of shape {tuple(outputs.shape)}"
    if isinstance(outputs, Mapping):
        parts = [f"{name}: {describe_outputs(value)}" for name, value in outputs.items()]
    elif isinstance(outputs, list | tuple):
        parts = [describe_outputs(value) for value in outputs[:3]] + (["…"] if len(outputs) > 3 else [])
    elif hasattr(outputs, "__dict__") and any(isinstance(value, Tensor) for value in vars(outputs).values()):
        parts = [f"{name}: {describe_outputs(value)}" for name, value in vars(outputs).items()]
    else:
        return f"a {type(outputs).__name__}"
    return f"a {type(outputs).__name__} of {'; '.join(parts) or 'nothing'}"


def first_tensor(output: object) -> Tensor | None:
    """Return the representative tensor of a module's output: itself, or the first of a tuple or dict."""
    first = next(iter(output.values()), None) if isinstance(output, dict) else output
    first = first[0] if isinstance(first, list | tuple) and first else first
    return first if isinstance(first, Tensor) else None


def with_first_tensor(output: Any, t: Tensor, path: str) -> Any:
    """Return the output with another tensor in place of the one that `first_tensor` returns."""
    if isinstance(output, Tensor):
        return t
    if isinstance(output, dict):
        first = next(iter(output))
        if type(output) is dict:
            return output | {first: with_first_tensor(output[first], t, path)}
        rest = {name: value for name, value in output.items() if name != first}
        return type(output)(**{first: with_first_tensor(output[first], t, path)}, **rest)
    if type(output) in (list, tuple):
        return type(output)([with_first_tensor(output[0], t, path), *output[1:]])
    if isinstance(output, tuple) and hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: with_first_tensor(output[0], t, path)})  # type: ignore[attr-defined]
    raise SelectorError(
        f"layer '{path}' returns a view within a {type(output).__name__}, whose gradient cannot be read; pass a layer inside it"
    )
