"""Activation checkpointing of layers: less memory for long inputs, at the cost of a second forward pass."""

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
    """Checkpoint the activations of layers within a `with` block: only their inputs are stored, the rest is recomputed.

    >>> with whence.checkpointed(model, "model.layers.*"):
    ...     e = whence.explain(model, {"input_ids": ids, "use_cache": False})

    Instead of the activations of all layers, only those of one layer and the inputs of all layers are in memory at a time
    (Chen et al. 2016); the backward pass computes each layer a second time. Outputs and relevance stay the same. Key-value
    caches must be turned off (`use_cache=False`): they would be filled twice.

    Args:
        model: An `nn.Module`; its layers are restored when the block ends.
        layers: A module path, or several, with * for any one component: "model.layers.*".

    Returns:
        A context manager.

    Raises:
        SelectorError: A path matches no module.
    """
    with ExitStack() as undo:
        for module in set(named_layers(model, layers).values()):
            if (own := vars(module).get("forward")) is None:
                undo.callback(vars(module).pop, "forward", None)
            else:
                undo.callback(setattr, module, "forward", own)
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
        yield
