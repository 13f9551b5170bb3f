"""checkpointed(): less memory for long inputs, at the price of a second forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from whence.core.argument_checks import check_arguments
from whence.lrp.torch_compat.module_tracker import named_layers


@check_arguments
@contextmanager
def checkpointed(model: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """While entered, the layers keep their inputs alone and compute their inside again on the way back.

    >>> with whence.checkpointed(model, "model.layers.*"):
    ...     e = whence.explain(model, {"input_ids": ids, "use_cache": False})

    `layers` is a path, with * for any one part of it. Activations held at once fall from all of the layers' to one layer's
    and all layers' inputs (Chen et al. 2016); values and relevance stay the same. Caches of keys and values must be off:
    they would be filled twice. Raises `SelectorError` for a path that is not there.
    """
    with ExitStack() as undo:
        for module in set(named_layers(model, layers).values()):
            if (own := vars(module).get("forward")) is None:
                undo.callback(vars(module).pop, "forward", None)
            else:
                undo.callback(setattr, module, "forward", own)
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        yield
