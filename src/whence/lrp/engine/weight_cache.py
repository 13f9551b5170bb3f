"""Cache of values computed from constants alone, such as modified weights, valid until the constants are modified."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from whence.lrp.torch_compat.tensor_identity import tensor_identity

T = TypeVar("T")


class WeightCache:
    """Cache whose keys are a name and the constants that a value is computed from.

    Entries that one explanation did not use are dropped when the next one begins. A constant is identified by its memory
    address, version counter and contents; the cache holds the memory, so that the address cannot be reused.

    >>> cache = WeightCache()
    >>> cache("fold", (weight, scale), lambda: weight * scale)

    Args:
        lasting: False disables the cache.
    """

    def __init__(self, lasting: bool = True):
        self.lasting = lasting
        self._earlier: dict[Hashable, tuple[Any, Any]] = {}
        self._used: dict[Hashable, tuple[Any, Any]] = {}

    def __call__(self, name: Hashable, constants: Sequence[Tensor | None], make: Callable[[], T]) -> T:
        """Return the cached value of this name and these constants, or `make()`."""
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
    return None if t is None else tensor_identity(t)
