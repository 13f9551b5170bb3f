"""checkpointed(): less memory for long inputs, at the price of a second forward pass."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from whence.errors import SelectorError
from whence.lrp.scope import matching_names, module_names


@contextmanager
def checkpointed(model: nn.Module, layers: str) -> Iterator[None]:
    """While entered, the layers keep their inputs alone and compute their inside again on the way back.

    >>> with whence.checkpointed(model, "model.layers.*"):
    ...     e = whence.explain(model, {"input_ids": ids, "use_cache": False})

    `layers` is a path, with * for any one part of it. Activations held at once fall from all of the layers' to one layer's
    and all layers' inputs (Chen et al. 2016); values and relevance stay the same. Caches of keys and values must be off:
    they would be filled twice.
    """
    found = matching_names(model, layers)
    if not found:
        raise SelectorError(f"no layer of the model matches '{layers}'")
    modules = module_names(model)
    with ExitStack() as undo:
        for module in {id(modules[name]): modules[name] for name in found}.values():
            own = vars(module).get("forward")
            undo.callback(_restore, module, own)
            module.forward = partial(_again, module.forward)
        yield


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _restore(module: nn.Module, own: Callable[..., Any] | None) -> None:
    if own is not None:
        module.forward = own
    elif "forward" in vars(module):
        del module.forward
