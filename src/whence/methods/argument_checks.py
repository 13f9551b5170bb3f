"""Keywords of methods: an unknown one is an error that names the known one that is meant, in captum's names too."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from whence.errors import RuleError, suggest

CAPTUM_NAMES = {
    "internal_batch_size": "batch_size", "perturbations_per_eval": "batch_size", "nt_samples": "n_samples",
    "nt_samples_batch_size": "batch_size", "n_perturb_samples": "n_samples",
    "additional_forward_args": "a tuple or dict of inputs",
}  # fmt: skip


def checked_init(kind: type) -> Callable[..., None]:
    """The `__init__` of a method, with its keywords looked at first."""
    plain, known = kind.__init__, list(signature(kind).parameters)

    @wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        for keyword in kwargs:
            if keyword not in known:
                meant = CAPTUM_NAMES.get(keyword)
                hint = f"; here it is {meant}" if meant else suggest(keyword, known)
                takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
                raise RuleError(f"{kind.__name__} has no setting {keyword!r}{hint or takes}")
        plain(self, *args, **kwargs)

    return init
