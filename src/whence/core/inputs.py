"""Inputs of a model (a tensor, a tuple of tensors, or a dict of keyword arguments), and checks of inputs and models."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from whence.core.devices import to_device_of
from whence.core.diagnosis import COLOURS, describe_non_model, diagnose
from whence.core.fingerprints import closure_values
from whence.core.tables import TableFormat, is_pandas, is_row_of_frame
from whence.core.trees import Tree
from whence.errors import (
    FLEX_ATTENTION,
    TOO_NARROW,
    InputError,
    ModelError,
    TrainingModeError,
    WhenceError,
    first_line,
    is_out_of_memory,
)
from whence.lrp.torch_compat.deferred_checks import check_holds
from whence.lrp.torch_compat.interrupts import raise_pending
from whence.lrp.torch_compat.model_state import preserve_state
from whence.lrp.torch_compat.module_tracker import MKLDNN, is_exported, is_quantized

DISPATCH = "__torch_dispatch__"  # overridden by tensors that are no plain memory (fake, distributed)
NEEDS_GRADIENTS = "does not require grad and does not have a grad_fn"  # in torch's message


@dataclass(frozen=True)
class Inputs:
    """The parts of an input in order, and the structure (tensor, tuple or dict) that they were given in."""

    parts: tuple[Any, ...]
    names: tuple[str, ...] | None = None  # keys, if the input is a dict
    single: bool = False
    features: Any = None  # column names, if the input is a data frame
    arrays: bool = False  # the model is a function of NumPy arrays
    table: TableFormat | None = None  # how to make the data frame that the model takes from an array of numbers
    array_dtype: Any = None  # of the array, if it is one
    whole: frozenset[int] = frozenset()  # parts all of whose rows belong to a single sample: stored as `[1, rows, …]`

    @classmethod
    def of(cls, inputs: Tree) -> "Inputs":
        """Return checked inputs: they contain tensors that can be explained, which are finite and not empty.

        >>> Inputs.of({"pixels": torch.rand(2, 3, 8, 8)}).batch_size
        2
        """
        if is_pandas(inputs):
            table = TableFormat.of(inputs)
            return replace(cls.of(table.encode(inputs)), features=list(map(str, inputs.columns)), table=table)
        if _is_frame(inputs):
            return replace(cls.of(inputs.to_numpy()), features=list(inputs.columns))
        if isinstance(inputs, np.ndarray):
            found = cls((as_tensor(_as_numbers(inputs)),), single=True, arrays=True, array_dtype=inputs.dtype)
        elif isinstance(inputs, Tensor):
            found = cls((inputs,), single=True)
        elif isinstance(inputs, Mapping):
            found = cls(tuple(inputs.values()), tuple(map(str, inputs)))
        elif isinstance(inputs, list | tuple):
            found = cls(tuple(inputs))
        else:
            unread = type(inputs).__module__.startswith("PIL") or isinstance(inputs, str | PathLike)
            how = (
                "; read images by whence.Preprocessing(…).read(path), and encode texts by the model's tokenizer"
                if unread
                else ""
            )
            if is_row_of_frame(inputs):
                how = "; pass one row of a data frame as a frame, frame.iloc[:1]"
            raise InputError(
                "inputs must be a tensor, an array, a data frame, or a tuple or dict of tensors, got "
                f"{type(inputs).__name__}{how}"
            )
        found = replace(found, parts=tuple(map(_plain_tensor, found.parts)))
        found._check()
        return found.as_one_sample() if found.shared and found.batch_size == 1 else found

    @property
    def explained(self) -> tuple[int, ...]:
        """The positions of the floating-point tensors, which receive relevance, except those named "…mask"."""
        names = self.names or ("",) * len(self.parts)
        return tuple(
            i
            for i, (part, name) in enumerate(zip(self.parts, names, strict=True))
            if isinstance(part, Tensor) and part.is_floating_point() and not name.endswith("mask")
        )

    @property
    def ids(self) -> dict[int, Tensor]:
        """The integer tensors by position; those that an embedding looks up receive one relevance score per id."""
        wanted = (torch.int32, torch.int64)
        tensors = {i: part for i, part in enumerate(self.parts) if isinstance(part, Tensor) and part.dim()}
        found = {i: part for i, part in tensors.items() if part.dtype in wanted}
        if found or self.explained:
            return found
        return {i: part for i, part in tensors.items() if part.dtype == torch.bool}  # a table of conditions that hold or not

    @property
    def first(self) -> Tensor:
        """The first tensor that is explained: floating-point values, or token ids."""
        return self.parts[min((*self.explained, *self.ids))]

    @property
    def batch_size(self) -> int:
        """The number of samples.

        Where the sizes of dimension 0 differ between parts, those without a row for each sample are shared by all samples. The
        batch size is then that of `input_ids`, but 1 for a single image, however many texts it is compared with. Without names
        it is that of the first part; if all parts are one-dimensional ids (bags and their offsets), that of the shortest.
        """
        parts = [self.parts[i] for i in sorted((*self.explained, *self.ids))]
        text = self.named("input_ids") if self.names else None
        if isinstance(text, Tensor):
            pictures = [self.parts[i] for i in self.explained if self.parts[i].dim() > 1]
            return 1 if any(picture.shape[0] == 1 for picture in pictures) else text.shape[0]
        return next(
            (part.shape[0] for part in parts if part.dim() > 1 or part.is_floating_point()),
            min(part.shape[0] for part in parts),
        )

    @property
    def shared(self) -> bool:
        """Whether some part is shared by all samples, without a row for each; one-dimensional integer parts are not counted."""
        several = [i for i, part in self.ids.items() if part.dim() > 1]
        return any(self.parts[i].shape[0] != self.batch_size for i in [*self.explained, *several] or self.ids)

    def picture_size(self, dims: int) -> tuple[int, ...]:
        """Return the size of the largest explained input `[N, C, …]` with this number of dimensions behind its channels."""
        shapes = [self.parts[i].shape for i in self.explained if self.parts[i].dim() == dims + 2]
        if not shapes:
            return ()
        shape = max(shapes, key=prod)  # others are points, boxes
        return tuple(shape[1:-1] if dims > 1 and has_colours_last(shape) else shape[2:])

    def admits(self, count: int) -> bool:
        """Return whether outputs may have `count` rows: one per sample, one per row of a part, or one in total."""
        counts = (1, self.batch_size, *(self.parts[i].shape[0] for i in (*self.explained, *self.ids)))
        return count in counts

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the parts, or else their positions; an empty string for a single tensor."""
        return ("",) if self.single else self.names or tuple(map(str, range(len(self.parts))))

    def named(self, name: str) -> Any:
        """Return the part with a name, or None."""
        return dict(zip(self.names or (), self._as_given(dict(enumerate(self.parts))).values(), strict=False)).get(name)

    def together(self, values: dict[int, Any]) -> Tree:
        """Return values of the explained parts in the structure of the inputs, with None for the others."""
        values = self._as_given(values)
        if self.single:
            return values[0]
        filled = tuple(values.get(i) for i in range(len(self.parts)))
        return filled if self.names is None else dict(zip(self.names, filled, strict=True))

    @property
    def nest(self) -> Tree:
        """All parts in the structure that they were given in."""
        return self.together(dict(enumerate(self.parts)))

    def apart(self, nest: Tree) -> dict[int, Any]:
        """Return the values of a tree by position: the inverse of `together`."""
        if self.single:
            return {0: nest}
        values = dict(enumerate(nest.values() if self.names else nest))
        return {i: self._of_sample(i, value) for i, value in values.items() if value is not None}

    def copied(self) -> dict[int, Any]:
        """Return all parts by position, with tensors and caches copied, because a network may modify its inputs in place."""
        return {i: _copy_part(part) for i, part in enumerate(self.parts)}

    def detached(self) -> "Inputs":
        """Return the inputs detached from autograd graphs, with inference tensors cloned to normal ones."""
        with torch.inference_mode(False):
            parts = (p.clone() if isinstance(p, Tensor) and p.is_inference() else p for p in self.parts)
            return replace(self, parts=tuple(p.detach() if isinstance(p, Tensor) else p for p in parts))

    def beside(self, model: Any) -> "Inputs":
        """Return the inputs on the device of the model's weights."""
        return replace(self, parts=tuple(to_device_of(p, model) if isinstance(p, Tensor) else p for p in self.parts))

    def repeated(self, times: int, replaced: Mapping[int, Tensor]) -> "Inputs":
        """Return the whole batch repeated `times` times, with some parts replaced by those of the repeated batch.

        >>> Inputs.of((torch.zeros(2, 3), torch.ones(2, 1))).repeated(5, {0: torch.rand(10, 3)}).batch_size
        10
        """
        parts = (replaced[i] if i in replaced else self._repeated(part, times) for i, part in enumerate(self.parts))
        return replace(self, parts=tuple(parts))

    def of_samples(self, samples: Tensor) -> "Inputs":
        """Return the inputs of some samples, by index."""
        return replace(self, parts=tuple(part[samples.to(part.device)] if self.of_batch(part) else part for part in self.parts))

    def of_batch(self, part: Any) -> bool:
        """Return whether a part has as many rows as there are samples (a shared table of that length counts too)."""
        return isinstance(part, Tensor) and part.dim() > 0 and part.shape[0] == self.batch_size

    def _repeated(self, part: Any, times: int) -> Any:
        return part.repeat(times, *[1] * (part.dim() - 1)) if self.of_batch(part) else part

    def as_one_sample(self) -> "Inputs":
        """Return the inputs with all rows of all parts as those of a single sample: edges, the nodes of a graph."""
        rows = frozenset(i for i in (*self.explained, *self.ids) if self.parts[i].shape[0] != 1)
        one = replace(self, whole=rows)
        return replace(one, parts=tuple(one._of_sample(i, part) for i, part in enumerate(self.parts)))

    def run(self, model: Callable[..., Any]) -> Any:
        """Return the model's outputs for copies of the inputs, which it may modify."""
        return self.call(model, tuple(self.copied().values()))

    def call(self, model: Callable[..., Any], parts: tuple[Any, ...]) -> Any:
        """Return the model's outputs; raise `ModelError` with a hint if the model fails on the inputs."""
        parts = tuple(self._as_given(dict(enumerate(parts))).values())
        raise_pending()
        try:
            with preserve_state(model):
                if self.arrays:
                    (array,) = (part.detach().cpu().numpy() for part in parts)
                    if self.table is not None:
                        return _arrays_to_tensors(_run_on_table(model, array, self.table))
                    return _arrays_to_tensors(model(_in_dtype(array, self.array_dtype)))
                if self.names is None:
                    return _run(model, *parts)
                return _run(model, **dict(zip(self.names, parts, strict=True)))
        except WhenceError:
            raise
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            if "FlexAttention" in str(error):
                raise ModelError(FLEX_ATTENTION) from error
            shapes = ", ".join(str(tuple(p.shape)) for p in parts if isinstance(p, Tensor))
            problem = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(
                f"the model cannot run on an input of shape {shapes}: {problem}{diagnose(model, parts, self.arrays, error)}"
            ) from error

    def _of_sample(self, i: int, value: Any) -> Any:
        return value[None] if i in self.whole and isinstance(value, Tensor) and value.dim() else value

    def _as_given(self, values: dict[int, Any]) -> dict[int, Any]:
        """Return values with the added batch dimension of `whole` parts removed."""
        return {i: value[0] if i in self.whole and isinstance(value, Tensor) else value for i, value in values.items()}

    def _check(self) -> None:
        if not self.explained and not self.ids:
            nested = next((i for i, p in enumerate(self.parts) if isinstance(p, Mapping | list | tuple)), None)
            if nested is not None:
                what = f"{self.labels[nested]!r}" if self.names else f"number {nested}"
                raise InputError(
                    f"input {what} is a {type(self.parts[nested]).__name__}; inputs are a tensor, or a tuple or dict of "
                    "tensors without further nesting: wrap the model in a function of the tensors alone"
                )
            given = ", ".join(str(p.dtype) if isinstance(p, Tensor) else type(p).__name__ for p in self.parts) or "nothing"
            raise InputError(
                f"nothing to explain in inputs of {given}; expected floating-point tensors or token ids (images: x.float() "
                "/ 255)"
            )
        for i in (*self.explained, *self.ids):
            x = self.parts[i]
            if x.is_nested:
                raise InputError("the input is a nested tensor; pad it: torch.nested.to_padded_tensor(x, 0.0)")
            if x.layout != torch.strided or x.is_meta:
                raise InputError(
                    f"the input is {'on the meta device' if x.is_meta else 'sparse'}; pass a dense tensor with values"
                )
            if x.dim() == 0 or x.numel() == 0:
                raise InputError(
                    f"the input of shape {tuple(x.shape)} is empty or has no dimensions; pass a batch [N, …] with N ≥ 1"
                )
        for i in self.explained:
            x = self.parts[i]
            if not check_holds(~torch.isinf(x) if self.arrays else torch.isfinite(x)):
                raise InputError(
                    "the input has NaN or infinite values; replace them, for example with torch.nan_to_num(x) (a function of "
                    "NumPy arrays or data frames may take NaN)"
                )
            if x.dtype == torch.float16:
                raise InputError(f"the input has dtype float16, {TOO_NARROW}; use bfloat16 or float32")
        mask = self.named("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and not check_holds(mask.bool().any(1)):
            raise InputError("attention_mask masks all tokens of a sample; remove empty texts from the batch")


def has_colours_last(shape: Sequence[int]) -> bool:
    """Return whether the last dimension of pictures `[N, …]` may be their channels, and the first one not."""
    return shape[-1] in COLOURS and shape[1] not in COLOURS


def as_tensor(array: Any) -> Any:
    """Return a data frame or an array as a tensor, and anything else as it is."""
    array = array.to_numpy() if _is_frame(array) else array
    if not isinstance(array, np.ndarray):
        return array
    try:
        return torch.from_numpy(np.ascontiguousarray(array))
    except TypeError:
        kind = "dtype object" if array.dtype == object else str(array.dtype)
        raise InputError(
            f"the inputs are an array of {kind}; pass an array of numbers, with categories as one-hot columns"
        ) from None


def _plain_tensor(part: Any) -> Any:
    """Return a tensor of a subclass that only adds metadata (MONAI's MetaTensor) as a plain tensor."""
    kind = type(part)
    if not isinstance(part, Tensor) or kind is Tensor or getattr(kind, DISPATCH) is not getattr(Tensor, DISPATCH):
        return part
    with torch._C.DisableTorchFunctionSubclass():
        return part.as_subclass(Tensor)


def _is_frame(data: Any) -> bool:
    return hasattr(data, "columns") and hasattr(data, "to_numpy")


def _run(model: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Return the outputs of a model that may differentiate in its forward pass (forces), also where no gradients are needed."""
    try:
        return model(*args, **kwargs)
    except RuntimeError as error:
        if torch.is_grad_enabled() or NEEDS_GRADIENTS not in str(error):
            raise
    with torch.inference_mode(False), torch.enable_grad():
        return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, model(*args, **kwargs))


def _as_numbers(array: np.ndarray) -> np.ndarray:
    """Return an array of integers, conditions or a foreign byte order as numbers that a mean or a baseline can replace."""
    if array.dtype.kind in "iub" or not array.dtype.isnative:
        return array.astype(np.float64 if array.dtype.kind in "iub" else array.dtype.newbyteorder("="))
    return array


def _in_dtype(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Return numbers in the array's original dtype, where that changes none of them."""
    if dtype is None or dtype == array.dtype or dtype.kind not in "iub":
        return array
    cast = array.astype(dtype)
    return cast if np.array_equal(cast, array) else array


def _run_on_table(model: Callable[..., Any], array: np.ndarray, table: TableFormat) -> Any:
    """Return the outputs for a data frame, or for the array if the model fails on the frame and all columns are numbers."""
    try:
        return model(table.decode(array))
    except Exception as error:
        if table.categories:
            raise
        try:
            return model(array)
        except Exception:
            raise error from None


def _arrays_to_tensors(outputs: Any) -> Any:
    """Return an array or a data frame as a tensor; labels are refused."""
    outputs = outputs.to_numpy() if hasattr(outputs, "to_numpy") else outputs
    if not isinstance(outputs, np.ndarray):
        return outputs
    if outputs.dtype.kind not in "iuf":
        raise ModelError(
            f"the model returned an array of {outputs.dtype}; expected numbers: explain predict_proba or decision_function, "
            "not predict"
        )
    return torch.from_numpy(np.array(outputs))


def _copy_part(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.clone()
    return deepcopy(part) if hasattr(part, "get_seq_length") else part  # Hugging Face's caches of keys and values


def called_modules(function: Any) -> list[torch.nn.Module]:
    """Return a module itself, the modules that a bound method belongs to, or those that a function reads from its closure."""
    if isinstance(function, torch.nn.Module):
        return [function]
    values: list[Any] = []
    if isinstance(function, partial):
        values, function = [*function.args, *function.keywords.values()], function.func
    values += [getattr(function, "__self__", None), *closure_values(function)]
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    values += [names.get(name) for name in (code.co_names if code is not None else ())]
    return [value for value in values if isinstance(value, torch.nn.Module)]


def _reads_mode(module: torch.nn.Module) -> bool:
    """Return whether a module may differ between its modes, by its class or by its hooks, such as those of spectral_norm."""
    if isinstance(module, torch.nn.RNNBase) and not module.dropout:
        return False
    return _depends_on_mode(type(module)) or bool(module._forward_hooks or module._forward_pre_hooks)


@cache
def _depends_on_mode(kind: type) -> bool:
    """Return whether modules of a class may differ between training and eval mode: their methods read `training`.

    `net[:3]` of a network in eval mode is a Sequential in training mode, for which that makes no difference.
    """
    if issubclass(kind, torch.jit.ScriptModule):
        return True
    classes = [base for base in kind.__mro__ if base not in (torch.nn.Module, object)]
    methods = [value for base in classes for value in vars(base).values() if callable(value) or isinstance(value, property)]
    code = [_code_of(method) for method in methods if not isinstance(method, type)]
    return any(one is None or "training" in _names_in(one) for one in code)


def _code_of(method: Any) -> Any:
    """Return the code object of a function or method; None for one without Python code."""
    inner = method.fget if isinstance(method, property) else inspect.unwrap(method)
    return getattr(getattr(inner, "__func__", inner), "__code__", None)


def _names_in(code: Any) -> set[str]:
    """Return the names and strings that a function reads, functions defined in it included."""
    inner = (constant for constant in code.co_consts if hasattr(constant, "co_names"))
    words = {constant for constant in code.co_consts if isinstance(constant, str)}
    return set(code.co_names).union(words, *map(_names_in, inner))


def check_model(model: object) -> None:
    """Raise `ModelError` if a model is not callable, or if it is a module with a part in training mode or uninitialised.

    Modules that are the same in both modes, such as a bare nn.Linear, may be in training mode.
    """
    if isinstance(model, type) or not callable(model):
        raise ModelError(describe_non_model(model))
    found = called_modules(model)
    for module in found:  # grows during iteration
        if isinstance(module, torch.fx.GraphModule) and is_exported(module):  # its mode was fixed at export
            continue
        if is_quantized(module) or type(module).__module__ == MKLDNN:  # their mode was fixed at conversion
            continue
        if getattr(module, "training", False) and _reads_mode(module):
            named = dict(model.named_modules()) if isinstance(model, torch.nn.Module) else {}
            name = next((name for name, part in named.items() if part is module), None)
            what = f"the {type(module).__name__} that the model calls" if name is None else repr(name) if name else "the model"
            raise TrainingModeError(f"{what} is in training mode; call model.eval() before explaining")
        for name, parameter in module._parameters.items():
            if parameter is not None and is_lazy(parameter):
                raise ModelError(
                    f"parameter '{name}' is uninitialised (lazy); run the model once on an input before explaining"
                )
        if module._modules:
            found += [child for child in module._modules.values() if child is not None]
