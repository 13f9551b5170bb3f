"""What goes into a model: a tensor, a tuple of tensors, or a dict of keyword arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from whence.errors import TOO_NARROW, InputError, ModelError, TrainingModeError, WhenceError, first_line, out_of_memory
from whence.lrp.scope import exported
from whence.nests import Nest


@dataclass(frozen=True)
class Inputs:
    """The parts of an input in order, and how to put things of the same number together in the same structure."""

    parts: tuple[Any, ...]
    names: tuple[str, ...] | None = None  # of a dict
    single: bool = False

    @classmethod
    def of(cls, inputs: Nest) -> "Inputs":
        """Checked inputs: something to explain, finite, not empty, one batch size.

        >>> Inputs.of({"pixels": torch.rand(2, 3, 8, 8)}).batch_size
        2
        """
        if isinstance(inputs, Tensor):
            found = cls((inputs,), single=True)
        elif isinstance(inputs, Mapping):
            found = cls(tuple(inputs.values()), tuple(map(str, inputs)))
        elif isinstance(inputs, list | tuple):
            found = cls(tuple(inputs))
        else:
            raise InputError(f"inputs must be a tensor, a tuple or a dict of tensors, not {type(inputs).__name__}")
        found._check()
        return found

    @property
    def explained(self) -> tuple[int, ...]:
        """The positions of the floating-point tensors: those that relevance is given to. Masks by their names are none."""
        names = self.names or ("",) * len(self.parts)
        return tuple(
            i
            for i, (part, name) in enumerate(zip(self.parts, names, strict=True))
            if isinstance(part, Tensor) and part.is_floating_point() and not name.endswith("mask")
        )

    @property
    def ids(self) -> dict[int, Tensor]:
        """The integer tensors by position: those that are looked up in a table get one score an id."""
        wanted = (torch.int32, torch.int64)
        return {
            i: part for i, part in enumerate(self.parts) if isinstance(part, Tensor) and part.dtype in wanted and part.dim()
        }

    @property
    def batch_size(self) -> int:
        return len(self.parts[min([*self.explained, *self.ids])])

    def named(self, name: str) -> Any:
        """The part of a dict of that name, or None."""
        return dict(zip(self.names or (), self.parts, strict=False)).get(name)

    def together(self, values: dict[int, Any]) -> Nest:
        """Values of the explained parts in the structure of the inputs; None for the others."""
        if self.single:
            return values[0]
        filled = tuple(values.get(i) for i in range(len(self.parts)))
        return filled if self.names is None else dict(zip(self.names, filled, strict=True))

    def apart(self, nest: Nest) -> dict[int, Any]:
        """What `together` put together, by position."""
        if self.single:
            return {0: nest}
        values = nest.values() if self.names else nest
        return {i: value for i, value in enumerate(values) if value is not None}

    def copied(self) -> dict[int, Any]:
        """All parts by position, tensors as copies: a network may overwrite what it is given."""
        return {i: part.clone() if isinstance(part, Tensor) else part for i, part in enumerate(self.parts)}

    def detached(self) -> "Inputs":
        """Without the graphs they may have come by, and outside of the inference mode they may have been made in."""
        with torch.inference_mode(False):
            parts = (p.clone() if isinstance(p, Tensor) and p.is_inference() else p for p in self.parts)
            return replace(self, parts=tuple(p.detach() if isinstance(p, Tensor) else p for p in parts))

    def repeated(self, times: int, replaced: Mapping[int, Tensor]) -> "Inputs":
        """The samples `times` over, one round after the other, with `replaced` in place of some parts of all rounds.

        >>> Inputs.of((torch.zeros(2, 3), torch.ones(2, 1))).repeated(5, {0: torch.rand(10, 3)}).batch_size
        10
        """
        parts = (replaced[i] if i in replaced else self._repeated(part, times) for i, part in enumerate(self.parts))
        return replace(self, parts=tuple(parts))

    def of_samples(self, samples: Tensor) -> "Inputs":
        """Some of the samples, by their numbers."""
        return replace(self, parts=tuple(part[samples.to(part.device)] if self.of_batch(part) else part for part in self.parts))

    def of_batch(self, part: Any) -> bool:
        """Whether the part has a row for each sample. A table of as many rows as there are samples passes for one."""
        return isinstance(part, Tensor) and part.dim() > 0 and len(part) == self.batch_size

    def _repeated(self, part: Any, times: int) -> Any:
        return part.repeat(times, *[1] * (part.dim() - 1)) if self.of_batch(part) else part

    def call(self, model: Callable[..., Any], parts: tuple[Any, ...]) -> Any:
        """The model's outputs, its own complaints about the input turned into one clear line."""
        try:
            return model(*parts) if self.names is None else model(**dict(zip(self.names, parts, strict=True)))
        except WhenceError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            shapes = ", ".join(str(tuple(p.shape)) for p in parts if isinstance(p, Tensor))
            problem = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(f"the model cannot run on an input of shape {shapes}: {problem}") from error

    def _check(self) -> None:
        if not self.explained and not self.ids:
            given = ", ".join(str(p.dtype) if isinstance(p, Tensor) else type(p).__name__ for p in self.parts) or "nothing"
            raise InputError(f"nothing to explain in inputs of {given}; images must be floating point: x.float() / 255")
        for i in (*self.explained, *self.ids):
            x = self.parts[i]
            if x.layout != torch.strided or x.is_meta:
                raise InputError(
                    f"the input is {'on the meta device' if x.is_meta else 'sparse'}; pass a dense tensor with values"
                )
            if x.dim() == 0 or x.numel() == 0:
                raise InputError(f"the input of shape {tuple(x.shape)} is empty; pass a batch [N, …] with N ≥ 1")
        for i in self.explained:
            x = self.parts[i]
            if len(x) != self.batch_size:
                raise InputError(f"inputs disagree about the batch size: {self.batch_size} and {len(x)}")
            if not torch.isfinite(x).all():
                raise InputError("the input has NaN or infinite values; replace them, for example with torch.nan_to_num(x)")
            if x.dtype == torch.float16:
                raise InputError(f"the input is in float16, {TOO_NARROW}; use bfloat16 or float32")
        mask = self.named("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and not mask.bool().any(1).all():
            raise InputError("attention_mask masks a whole sample; drop empty texts from the batch")


def check_model(model: object) -> None:
    """A callable, and in eval mode throughout if it is a module."""
    if not callable(model):
        raise ModelError(f"a model must be callable, not {type(model).__name__}")
    if not isinstance(model, torch.nn.Module):
        return
    found = [model]
    for module in found:  # grows as it is read
        if isinstance(module, torch.fx.GraphModule) and exported(module):  # it is in the mode it was exported in
            continue
        if module.training:
            name = next(name for name, part in model.named_modules() if part is module) or "the model"
            raise TrainingModeError(f"{name!r} is in training mode; call model.eval() before explaining")
        for name, parameter in module._parameters.items():
            if parameter is not None and is_lazy(parameter):
                raise ModelError(f"parameter '{name}' is uninitialised; run the model once on an input before explaining")
        if module._modules:
            found += [child for child in module._modules.values() if child is not None]
