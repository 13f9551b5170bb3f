"""Exceptions and warnings that whence raises. Each message says what was given, what was expected and what to do.

WhenceError
├── ModelError              the model cannot be explained as it is
│   ├── TrainingModeError   dropout and batch norm would disturb the explanation
│   ├── OpaqueError         a scripted, exported or custom autograd part cannot be traced
│   └── UnknownFunctionError  the model calls a torch function that has no propagation rule
├── InputError              inputs have the wrong type, shape or values
├── TargetError             the target is not one of the model's outputs
├── RuleError               a rule or method has invalid or incompatible settings
├── SelectorError           a selector or layer name matches nothing
├── UnknownArgumentError    a function or class has no such keyword argument
├── LoadError               a model, weights file or image cannot be read
│   └── StoreError          a store of explanations is missing, damaged or was written with different settings
└── MissingPackageError     an optional package is not installed
"""

import difflib
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "AuditWarning",
    "ConservationWarning",
    "ContextWarning",
    "CostWarning",
    "InputError",
    "LoadError",
    "MaskedGradientWarning",
    "MissingPackageError",
    "ModelError",
    "OpaqueError",
    "RuleError",
    "SelectorError",
    "StoreError",
    "TargetError",
    "TrainingModeError",
    "UnknownArgumentError",
    "UnknownFunctionError",
    "WhenceError",
]

TOO_NARROW = "whose range is too narrow for the gradients from which relevance is computed"


class WhenceError(Exception):
    """The base class of all exceptions of this library."""


class ModelError(WhenceError):
    """The model cannot be explained as it is."""


class TrainingModeError(ModelError):
    """The model, or one of its modules, is in training mode."""


class OpaqueError(ModelError):
    """A part of the model hides its torch functions: a scripted or exported module, or a custom autograd function."""


class UnknownFunctionError(ModelError):
    """A nonlinear torch function between input and output has no propagation rule."""


class InputError(WhenceError, ValueError):
    """The inputs have the wrong type, shape or values."""


class TargetError(WhenceError, ValueError):
    """The target is not one of the model's outputs."""


class RuleError(WhenceError, ValueError):
    """A rule or a method has invalid or incompatible settings."""


class SelectorError(WhenceError, LookupError):
    """A selector or a layer name matches nothing in the model."""


class UnknownArgumentError(WhenceError, TypeError):
    """The function or class has no such keyword argument."""


class LoadError(WhenceError):
    """A model, a weights file or an image cannot be read."""


class StoreError(LoadError):
    """A store of explanations is missing or damaged, lacks the requested entry, or was written with different settings."""


class MissingPackageError(WhenceError, ImportError):
    """An optional package is not installed."""


class AuditWarning(UserWarning):
    """A network relies on a mark: it has begun to in training, or a cure takes back less than half of its effect."""


class ConservationWarning(UserWarning):
    """Relevance and the absorbed share do not add up to the output, by more than rounding error."""


class CostWarning(UserWarning):
    """A call evaluates the model very often for every sample, because of the size of the input."""


class ContextWarning(UserWarning):
    """A response hardly depends on its context, so that a ranking of the sources means little."""


class MaskedGradientWarning(UserWarning):
    """A gradient-based attack found gradients of zero, so that its failure is not evidence of robustness."""


FLEX_ATTENTION = (
    "flex_attention is not supported, because its operations cannot be traced; load the model with attn_implementation='sdpa'"
)


ATTENTION_KERNEL = re.compile(r"flash.?(attn|attention)|xformers|memory_efficient_attention|sage.?attn", re.IGNORECASE)


def describe_attention_kernel(name: str) -> str:
    """Return what to do about a function that is an attention kernel of another package; empty for other functions."""
    if not ATTENTION_KERNEL.search(name):
        return ""
    return f"{name} is an attention kernel, whose operations cannot be traced; load the model with attn_implementation='sdpa'"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or the class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the accelerator or the machine ran out of memory."""
    import torch  # here alone, so that the command line reads this module without torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def suggest_or_list(name: str, known: Iterable[str], otherwise: str = "choose from") -> str:
    """Return a hint for the end of a message: the most similar known names, or all of them if none is similar."""
    known = list(known)
    return suggest(name, known) or f"; {otherwise} {', '.join(known)}"


class _ValueRepr(reprlib.Repr):
    """Short reprs for messages: a tensor as its shape, other values on one line and within some 200 characters."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = 200

    def repr_instance(self, x: object, level: int) -> str:
        shape = getattr(x, "shape", None)
        if isinstance(shape, tuple) and shape:
            return f"{type(x).__name__}{list(shape)}"
        text = " ".join(super().repr_instance(x, level).split())
        return text if len(text) < self.maxother else f"<{type(x).__name__}>"


def value_repr(value: object) -> str:
    """Return a short repr of a value that a caller passed, for messages; tensors are shown as their shapes."""
    text = _ValueRepr().repr(value)
    return text if len(text) <= 250 else text[:247] + "..."


def count_noun(count: int, noun: str) -> str:
    """Return a count with its noun: "1 sample", "2 samples"."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def missing_path(path: Path, what: str = "file") -> str:
    """Return the message that a path does not exist, with similar file names in the same folder."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"no {what} {path}{suggest(path.name, beside)}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a hint for the end of a message: the most similar known names, or an empty string."""
    others = [k for k in known if k and k != name]
    similar = difflib.get_close_matches(name.lower(), {k.lower() for k in others}, n=3, cutoff=0.4)
    near = [k for match in similar for k in others if k.lower() == match]
    return f"; did you mean {', '.join(repr(n) for n in near)}?" if near else ""
