"""Models with further arguments that are held fixed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.inputs import check_model


class FixedArguments(nn.Module):
    """A module with further arguments that are held fixed, and with the layers of the module under their own paths.

    >>> FixedArguments.of(model, (edge_index,))(x)                # model(x, edge_index)
    """

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any] | None = None,
        count: int = -1,
    ) -> Callable[..., Any]:
        """Return a module or function with its last arguments fixed.

        Tensors with `count` rows are repeated where a method repeats the batch.
        """

        def call(*changed: Tensor) -> Any:
            others = (_repeated(argument, count, len(changed[0])) for argument in arguments)
            return function(*changed, *others, **keywords or {})

        check_model(function)
        if not isinstance(function, nn.Module):
            return call
        fixed = cls()
        for shared in ("_modules", "_parameters", "_buffers"):  # the module's own, by which layers have their paths
            fixed.__dict__[shared] = function.__dict__[shared]
        fixed.__dict__["_call"], fixed.training = call, function.training
        return fixed

    def forward(self, *changed: Tensor) -> Any:
        return self.__dict__["_call"](*changed)


def _repeated(argument: Any, count: int, rows: int) -> Any:
    """Return an argument with its rows repeated as the batch is."""
    if not isinstance(argument, Tensor) or not argument.dim() or len(argument) != count or rows == count:
        return argument
    return torch.cat([argument] * (rows // count))
