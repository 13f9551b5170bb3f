"""Library functions with a rule of their own, which propagates relevance; plain gradients are those of autograd."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from whence.lrp.engine.function_calls import Call
from whence.lrp.engine.op_context import OpContext

Distribute = Callable[..., Tensor]  # (relevance of the value, x, value, *constants) -> relevance of x


def custom_op(distribute: Distribute) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Turn a function of `(x, *constants)` into one op with its own rule, intercepted by function modes like torch functions.

    >>> @custom_op(lambda relevance, x, value, weights: relevance * weights)
    ... def weighted_sum(x, weights): ...
    """

    def decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def treatment(bench: OpContext, call: Call) -> Any:
            x, *constants = call.args
            if len(call.data) != 1 or call.data[0] is not x:
                return bench.unknown_function(call)
            back = lambda relevance, source, value: distribute(relevance, source, value, *constants)  # noqa: E731
            return bench.distributed(x, call.run, back)

        @wraps(function)
        def seen(x: Tensor, *constants: Any) -> Tensor:
            if has_torch_function((x,)):
                return handle_torch_function(seen, (x,), x, *constants)  # type: ignore[no-any-return]
            return function(x, *constants)

        seen.treatment = treatment  # type: ignore[attr-defined]
        return seen

    return decorated
