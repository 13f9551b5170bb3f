"""Activation checkpointing of layers: less memory for long inputs, at the cost of a second forward pass."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from whence.core.argument_checks import check_arguments
from whence.core.devices import drop_offloaded_weights, is_offloaded
from whence.errors import InputError
from whence.lrp.torch_compat.module_tracker import named_layers


@check_arguments
@contextmanager
def checkpointed(model: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """Checkpoint the activations of layers within a `with` block: only their inputs are stored, the rest is recomputed.

    >>> with whence.checkpointed(model, "model.layers.*"):
    ...     e = whence.explain(model, {"input_ids": ids, "use_cache": False})

    Instead of the activations of all layers, only those of one layer and the inputs of all layers are in memory at a time
    (Chen et al. 2016); the backward pass computes each layer a second time. Outputs and relevance stay the same. Key-value
    caches, which would be filled twice, are not filled. Layers of a model whose weights are offloaded by accelerate are
    checkpointed without this.

    Args:
        model: An `nn.Module`; its layers are restored when the block ends.
        layers: A module path, or several, with * for any one component: "model.layers.*".

    Returns:
        A context manager.

    Raises:
        SelectorError: A path matches no module.
        InputError: A layer is called with a key-value cache of earlier tokens.
    """
    with _checkpointed(named_layers(model, layers).values()):
        yield


@contextmanager
def offloaded_layers_checkpointed(model: nn.Module) -> Iterator[None]:
    """Checkpoint the layers of a model with offloaded weights, so that the weights of one layer are in memory at a time.

    The graph of the backward pass would hold the weights of all layers. Weights that a module which failed has left in memory
    are dropped.
    """
    try:
        with _checkpointed(_offloaded_layers(model)):
            yield
    finally:
        drop_offloaded_weights(model)


def _offloaded_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules in lists of modules that have offloaded weights."""
    for child in model.children():
        if isinstance(model, nn.ModuleList | nn.Sequential) and is_offloaded(child):
            yield child
        else:
            yield from _offloaded_layers(child)


@contextmanager
def _checkpointed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Checkpoint modules, and restore them afterwards."""
    with ExitStack() as undo:
        for module in set(layers):
            if (own := vars(module).get("forward")) is None:
                undo.callback(vars(module).pop, "forward", None)
            else:
                undo.callback(setattr, module, "forward", own)
            module.forward = _with_checkpoint(module.forward)
        yield


def _with_checkpoint(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward pass that is computed again for the backward pass, to its end, so that all hooks after it run too."""

    def checkpointed_forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, early_stop=False, **_without_cache(kwargs))

    return checkpointed_forward


def _without_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of a layer without an empty key-value cache of transformers."""
    caches = {name for name, value in kwargs.items() if callable(getattr(value, "get_seq_length", None))}
    if any(_is_filled(kwargs[name]) for name in caches):
        raise InputError("checkpointed layers cannot continue a key-value cache; pass the whole text and no past_key_values")
    return {name: None if name in caches else value for name, value in kwargs.items()}


def _is_filled(cache: Any) -> bool:
    """Return whether a key-value cache of transformers, or the states of its state-space layers, hold earlier tokens."""
    states = [getattr(layer, "has_previous_state", False) for layer in getattr(cache, "layers", ())]
    if any(any(state.values()) if isinstance(state, dict) else state is True for state in states):
        return True
    try:
        return bool(cache.get_seq_length())
    except ValueError:  # no layer of attention
        return False
