"""Everything whence raises on purpose. Each message says what was given, what was expected and what to do.

WhenceError
├── ModelError              the model cannot be explained as it stands
│   ├── TrainingModeError   dropout and batch norm would disturb the explanation
│   ├── OpaqueError         a scripted, exported or hand-written autograd part cannot be seen into
│   └── UnknownFunctionError  a torch function on the path has no known treatment
├── InputError              inputs of the wrong kind, shape or content
├── TargetError             a target that is not there
├── RuleError               a rule or method configured against its definition
├── SelectorError           a selector or layer name that matches nothing
├── UnknownArgumentError    a keyword argument that a function or class does not have
├── LoadError               a model, weights or image file that cannot be read
│   └── StoreError          a store of explanations that is of other settings, damaged or not there
└── MissingPackageError     an optional package is not installed
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

import torch

TOO_NARROW = "whose range is too narrow for the gradients that relevance is made of"


class WhenceError(Exception):
    """The root of the hierarchy: `except whence.errors.WhenceError` catches them all."""


class ModelError(WhenceError):
    """The model cannot be explained as it stands."""


class TrainingModeError(ModelError):
    """The model, or a part of it, is in training mode."""


class OpaqueError(ModelError):
    """A part of the model hides its torch functions."""


class UnknownFunctionError(ModelError):
    """A nonlinear torch function without a known treatment lies between input and output."""


class InputError(WhenceError, ValueError):
    """The inputs are of the wrong kind, shape or content."""


class TargetError(WhenceError, ValueError):
    """The target is not one of the model's outputs."""


class RuleError(WhenceError, ValueError):
    """A rule or a method is configured against its definition."""


class SelectorError(WhenceError, LookupError):
    """A selector or a layer name matches nothing in the model."""


class UnknownArgumentError(WhenceError, TypeError):
    """A keyword argument that the function or class does not have."""


class LoadError(WhenceError):
    """A model, a weights file or an image cannot be read."""


class StoreError(LoadError):
    """A store of explanations is of other settings, damaged, or lacks what is asked for."""


class MissingPackageError(WhenceError, ImportError):
    """An optional package is not installed."""


class ConservationWarning(UserWarning):
    """Relevance and what was absorbed do not add up to the output, by more than rounding does."""


class MaskedGradientWarning(UserWarning):
    """An attack by gradients met gradients of zero: its failure is no robustness."""


FLEX_ATTENTION = "flex attention hides what it computes; load the model with attn_implementation='sdpa'"


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of an accelerator or of the machine."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def suggest_or_list(name: str, known: Iterable[str], otherwise: str = "choose from") -> str:
    """A closing hint with the nearest known names, or with all where none is near."""
    known = list(known)
    return suggest(name, known) or f"; {otherwise} {', '.join(known)}"


def count_noun(count: int, noun: str) -> str:
    """ "1 sample", "2 samples"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def missing_path(path: Path, what: str = "file") -> str:
    """That it is not there, with the nearest names that are."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"no {what} {path}{suggest(path.name, beside)}"


def suggest(name: str, known: Iterable[str]) -> str:
    """A closing hint with the nearest known names, or nothing."""
    near = difflib.get_close_matches(name, [k for k in known if k], n=3, cutoff=0.4)
    return f"; did you mean {', '.join(repr(n) for n in near)}?" if near else ""
