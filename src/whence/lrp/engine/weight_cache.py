"""What is made of constants alone, weights above all, and serves again while they stay as they are."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from whence.lrp.torch_compat.saved_tensors import version_of

T = TypeVar("T")


class WeightCache:
    """Values by what they were made of. What an explanation did not use is let go when the next one begins.

    A constant is known by its memory and its version; the memory is held, so that nothing else can come to lie there.

    >>> kept = Kept()
    >>> kept("fold", (weight, scale), lambda: weight * scale)
    """

    def __init__(self, lasting: bool = True):
        self.lasting = lasting
        self._earlier: dict[Hashable, tuple[Any, Any]] = {}
        self._used: dict[Hashable, tuple[Any, Any]] = {}

    def __call__(self, name: Hashable, constants: Sequence[Tensor | None], make: Callable[[], T]) -> T:
        """`make()`, or what it gave when it was last made of these constants under this name."""
        if not self.lasting:
            return make()
        key = (name, *[_identity(constant) for constant in constants])
        found = self._used.get(key) or self._earlier.get(key)
        if found is None:
            found = make(), [None if constant is None else constant.detach() for constant in constants]
        self._used[key] = found
        return found[0]

    def begin(self) -> None:
        self._earlier, self._used = self._used, {}


def _identity(t: Tensor | None) -> Hashable:
    return None if t is None else (t.data_ptr(), version_of(t), t.dtype, t.shape, t.stride())
