"""Checks for unknown keyword arguments, with suggestions of the intended argument."""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar

import torch

from whence.errors import UnknownArgumentError, suggest

P = ParamSpec("P")
T = TypeVar("T")
SYNONYMS = {  # names that captum, SHAP and others use, or that whence used before 1.0
    "internal_batch_size": "batch_size", "perturbations_per_eval": "batch_size", "nt_samples_batch_size": "batch_size",
    "nt_samples": "n_samples", "n_perturb_samples": "n_samples", "nsamples": "n_samples", "samples": "n_samples",
    "steps": "n_steps", "n_iterations": "n_steps", "additional_forward_args": "inputs", "data": "inputs", "x": "inputs",
    "dataset": "inputs", "examples": "inputs", "x_batch": "inputs", "y_batch": "target", "baseline": "baselines",
    "baselines": "background", "classes": "class_names", "names": "feature_names", "labels": "class_names",
    "random_state": "seed", "random_seed": "seed", "verbose": "progress", "show_progress": "progress", "composite": "rules",
    "eps": "epsilon", "target": "concept",
}  # fmt: skip


def check_keywords(owner: str, given: Sequence[str], known: Sequence[str] | None) -> None:
    """Raise `UnknownArgumentError` for the first keyword that is not in `known`; None accepts all."""
    for keyword in given:
        if known is None or keyword in known:
            continue
        meant = SYNONYMS.get(keyword)
        hint = f"; use {meant} here" if meant is not None and meant in known else suggest(keyword, known)
        takes = f"; its arguments are {', '.join(known)}" if known else "; it takes no arguments"
        raise UnknownArgumentError(f"{owner} has no argument {keyword!r}{hint or takes}")


def check_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a public function so that unknown keywords raise `UnknownArgumentError`.

    Exceptions leave torch's grad mode as it was: an interrupt while `torch.no_grad` ends would leave gradients disabled.
    """
    known = _keywords(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        check_keywords(f"{function.__qualname__}()", list(kwargs), known)
        grad_enabled = torch.is_grad_enabled()
        try:
            return function(*args, **kwargs)
        except BaseException:
            torch.set_grad_enabled(grad_enabled)
            raise

    return checked


def check_init(kind: type) -> None:
    """Make the constructor of a class raise `UnknownArgumentError` for unknown keywords."""
    plain: Callable[..., None] = kind.__init__
    if hasattr(plain, "__wrapped__"):  # already wrapped
        return
    known = _keywords(kind)

    @wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is kind:  # a subclass may have more arguments
            check_keywords(kind.__name__, list(kwargs), known)
        plain(self, *args, **kwargs)

    setattr(kind, "__init__", init)  # noqa: B010


def _keywords(function: Callable[..., Any]) -> list[str] | None:
    parameters = signature(function).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return [name for name, parameter in parameters.items() if parameter.kind in kinds and name not in ("self", "cls")]
