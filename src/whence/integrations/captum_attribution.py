"""Methods behind captum's interface: objects with `attribute`, for code and metrics that expect one."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.explain import explain
from whence.errors import InputError
from whence.integrations.fixed_arguments import FixedArguments
from whence.methods.registry import Method, resolve_method


class Attribution:
    """A method with captum's interface.

    >>> lrp = whence.adapters.Attribution(model, "lrp")
    >>> relevance = lrp.attribute(x, target=3)
    >>> captum.attr.NoiseTunnel(lrp).attribute(x, target=3)
    >>> captum.metrics.sensitivity_max(lrp.attribute, x, target=3)

    Args:
        forward_func: Any callable made of torch functions.
        method: A method or its name; LRP by default.
    """

    def __init__(self, forward_func: Callable[..., Any], method: Method | str | None = None):
        self.forward_func, self.method = forward_func, resolve_method(method)
        self.multiplies_by_inputs = True  # captum's NoiseTunnel reads it

    def has_convergence_delta(self) -> bool:
        """Return whether `attribute` can return a convergence delta."""
        return True

    @check_arguments  # captum's NoiseTunnel calls the wrapped function
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Compute the relevance of the inputs.

        >>> Attribution(model).attribute(x, target=3).shape == x.shape

        Args:
            inputs: Tensor or tuple of tensors.
            target: Target as for `whence.explain`.
            additional_forward_args: Other arguments of the model, which are held fixed; one or a tuple. Where a method repeats
                the batch, tensors with a row for each sample are repeated with it.
            return_convergence_delta: Whether to return too the sum of relevance minus the amount that it explains: the output,
                or its difference from the baseline.

        Returns:
            The relevance, structured like the inputs; with `return_convergence_delta` a pair of it and the delta `[N]`.

        Raises:
            WhenceError: As `whence.explain`.
        """
        single = isinstance(inputs, Tensor)
        parts: tuple[Tensor, ...] = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise InputError(f"inputs must be a tensor or a tuple of tensors, got {type(inputs).__name__}")
        given = additional_forward_args
        others = () if given is None else given if isinstance(given, tuple) else (given,)
        model = FixedArguments.of(self.forward_func, others, count=len(parts[0])) if others else self.forward_func
        e = explain(model, parts[0] if single else parts, target, method=self.method, progress=False)
        if not return_convergence_delta:
            return e.relevance
        baseline = 0.0 if e.conservation.baseline is None else e.conservation.baseline
        return e.relevance, e.conservation.relevance - (e.conservation.explained - baseline)
