"""Methods as the explanation functions of Quantus."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from whence.core.devices import first_weight
from whence.core.explain import explain
from whence.methods.registry import Method, resolve_method


def quantus_explain_func(method: Method | str | None = None) -> Callable[..., np.ndarray]:
    """Return a method as an explanation function for the metrics of Quantus.

    >>> func = whence.adapters.quantus_explain_func("lrp")
    >>> quantus.Sparseness()(model=model, x_batch=x, y_batch=y, explain_func=func)

    Args:
        method: A method or its name; LRP by default.

    Returns:
        A function from model, inputs and targets (arrays or tensors) to the relevance as an array.
    """
    resolved = resolve_method(method)

    def explained(model: Any, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        weight = first_weight(model)
        x, y = torch.as_tensor(inputs), torch.as_tensor(targets).long().reshape(-1)
        x = x.float() if weight is None else x.to(weight)
        return explain(model, x, y, method=resolved, progress=False).relevance.detach().cpu().numpy()

    return explained
