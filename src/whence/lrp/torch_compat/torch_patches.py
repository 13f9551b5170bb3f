"""Patches of torch around a forward pass, so that the mode intercepts all functions.

Compiled parts run eagerly, vmapped parts sample by sample, and checkpointed parts are intercepted again when recomputed.

All are process-wide in torch: the first user applies the patch, the last one reverts it.
"""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch._functorch import apis, vmap
from torch.utils import checkpoint
from torch.utils._pytree import _broadcast_to_and_flatten, tree_leaves, tree_structure, tree_unflatten
from torch.utils.hooks import RemovableHandle

from whence.lrp.torch_compat.interrupts import defer_interrupts

ContextFn = Callable[[], tuple[AbstractContextManager, AbstractContextManager]]
Recompute = Callable[[Callable[..., Any], tuple], tuple[Callable[..., Any], Callable[[], AbstractContextManager]]]
VMAP_IMPL = "vmap_impl"  # looked up by a vmapped function at each call
CHECKPOINT_GENERATOR = "_checkpoint_without_reentrant_generator"  # looked up by checkpoint() at each call


class SharedPatch:
    """A process-wide patch that several threads may need at once."""

    def __init__(self, change: Callable[[], AbstractContextManager]):
        self._change, self._lock, self._users, self._undo = change, threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._undo.enter_context(self._change())
            self._users += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._undo.close()


class ReentrantContext:
    """A context manager that can be entered repeatedly: a checkpointed part is recomputed in each backward pass."""

    def __init__(self, make: Callable[[], AbstractContextManager]):
        self._make = make
        self._entered: list[AbstractContextManager] = []

    def __enter__(self) -> None:
        context = self._make()
        context.__enter__()
        self._entered.append(context)

    def __exit__(self, *exception: Any) -> None:
        self._entered.pop().__exit__(*exception)


_recompute = threading.local()


@contextmanager
def recompute_with(recompute: Recompute) -> Iterator[None]:
    """Use `recompute(function, arguments)` to choose how parts checkpointed by this thread are recomputed."""
    before = getattr(_recompute, "value", None)
    _recompute.value = recompute
    try:
        yield
    finally:
        _recompute.value = before


@contextmanager
def _checkpoints_carried() -> Iterator[None]:
    original = getattr(checkpoint, CHECKPOINT_GENERATOR, None)
    if original is None:  # renamed in this torch version: recomputation then fails with torch's own error
        yield
        return

    def generator(function: Callable[..., Any], preserve: bool, context_fn: ContextFn, *rest: Any, **kwargs: Any) -> Any:
        recompute: Recompute | None = getattr(_recompute, "value", None)
        if recompute is None:
            return original(function, preserve, context_fn, *rest, **kwargs)
        function, recomputing = recompute(function, (rest, kwargs))

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            forward, backward = context_fn()
            return forward, ReentrantContext(lambda: enter_all(backward, recomputing()))

        return original(function, preserve, contexts, *rest, **kwargs)

    setattr(checkpoint, CHECKPOINT_GENERATOR, generator)
    try:
        yield
    finally:
        setattr(checkpoint, CHECKPOINT_GENERATOR, original)


@contextmanager
def _vmaps_looped() -> Iterator[None]:
    """Run functions vmapped over data as a loop, which can be intercepted; values are equal up to rounding."""
    original = getattr(apis, VMAP_IMPL, None)
    if original is None:  # renamed in this torch version: vmapped results are then refused as opaque
        yield
        return

    def looped(
        function: Callable[..., Any], in_dims: Any, out_dims: Any, randomness: str, chunk_size: Any, *args: Any, **named: Any
    ) -> Any:
        seen = getattr(_recompute, "value", None) is not None
        if not seen or not any(isinstance(t, torch.Tensor) and t.requires_grad for t in tree_leaves(args)):
            return original(function, in_dims, out_dims, randomness, chunk_size, *args, **named)
        count, dims, values, structure = vmap._process_batched_inputs(in_dims, args, function)
        results = []
        for i in range(count):
            of_one = [value if d is None else value.select(d, i) for value, d in zip(values, dims, strict=True)]
            results.append(function(*tree_unflatten(of_one, structure), **named))
        leaves, structure = [tree_leaves(result) for result in results], tree_structure(results[0])
        placed = _broadcast_to_and_flatten(out_dims, structure) or []
        columns = zip(zip(*leaves, strict=True), placed, strict=True)
        stacked = [parts[0] if d is None else torch.stack(parts, d) for parts, d in columns]
        return tree_unflatten(stacked, structure)

    setattr(apis, VMAP_IMPL, looped)
    try:
        yield
    finally:
        setattr(apis, VMAP_IMPL, original)


class enter_all:
    """Context that enters all given ones, each within the one before; interrupts wait for the next function of torch."""

    def __init__(self, *contexts: AbstractContextManager):
        self._contexts, self._undo, self._deferred = contexts, ExitStack(), defer_interrupts()

    def __enter__(self) -> None:
        self._deferred.__enter__()
        try:
            for context in self._contexts:
                self._undo.enter_context(context)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, *exception: Any) -> bool | None:
        try:
            suppressed = self._undo.__exit__(*exception)
        except BaseException as error:
            self._deferred.__exit__(type(error))
            raise
        self._deferred.__exit__(None if suppressed else exception[0])
        return suppressed


def temporary_hook(register: Callable[[], RemovableHandle]) -> enter_all:
    """Return a context in which a hook is registered; an interrupt does not leave it on the module."""

    @contextmanager
    def hook() -> Iterator[None]:
        handle = register()
        try:
            yield
        finally:
            handle.remove()

    return enter_all(hook())


@contextmanager
def _eagerly() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import is slow
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", message=".*when there are global hooks on modules")
        yield


LOOPED_VMAP = SharedPatch(_vmaps_looped)
TRACKED_CHECKPOINTS = SharedPatch(_checkpoints_carried)
FORCE_EAGER = SharedPatch(_eagerly)
