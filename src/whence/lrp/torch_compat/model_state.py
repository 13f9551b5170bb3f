"""The state of a model besides its weights: attributes set by a forward pass are restored, settings can be compared."""

import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain
from operator import is_
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.core.fingerprints import closure_values
from whence.errors import ModelError
from whence.lrp.torch_compat.module_tracker import all_modules
from whence.lrp.torch_compat.saved_tensors import version_of

MODULE_ATTRIBUTES = frozenset(vars(nn.Module())) - {"_buffers"}  # attributes of every module that no forward pass changes
MAX_DEPTH, MAX_LENGTH = 12, 1000  # of objects within the attributes of modules whose settings are compared
DATA = (int, float, str, bytes, Tensor, np.ndarray, list, tuple, dict, set)  # that a global may hold
_running = threading.local()


@contextmanager
def preserve_state(model: object) -> Iterator[None]:
    """Restore the attributes of modules that store tensors of a forward pass in attributes, buffers, lists or dicts.

    Stored tensors would keep the graph of an explanation alive and change the next one. Modules that store no tensors keep
    their changes, such as counters. A module that modifies a tensor of its own in place with values that depend on the input is
    refused, after its earlier values are restored.
    """
    memories = [
        ModuleState(module) for module in all_modules(model) if isinstance(module, nn.Module) and _may_hold_state(type(module))
    ]
    before, _running.overwritten = getattr(_running, "overwritten", None), {}
    try:
        yield
    finally:
        overwritten, _running.overwritten = _running.overwritten, before
        for memory in memories:
            memory.restore()
    for memory in memories if overwritten else ():
        memory.refuse_what_holds_a_graph(overwritten)


@lru_cache(maxsize=4096)
def _may_hold_state(kind: type) -> bool:
    """Return whether modules of a class may store tensors; torch's own do not in eval mode."""
    return not kind.__module__.startswith("torch.nn.modules.")


def save_before_overwrite(t: Tensor) -> None:
    """Save the values of a leaf tensor before an in-place operation: it may belong to the model."""
    overwritten = getattr(_running, "overwritten", None)
    owner = t if t._base is None else t._base
    if overwritten is not None and owner.is_leaf and id(owner) not in overwritten:
        overwritten[id(owner)] = owner, owner.detach().clone()


class ModuleState:
    """A snapshot of the attributes of a module and of the contents of lists and dicts among them."""

    __slots__ = ("_attributes", "_inside", "_module")

    def __init__(self, module: nn.Module):
        self._module = module
        self._attributes = attributes = vars(module).copy()
        self._inside: list[tuple[Any, Any]] = []
        for name in attributes.keys() - MODULE_ATTRIBUTES:
            value = attributes[name]
            if type(value) is dict or type(value) is list:
                self._inside.append((value, value.copy()))

    def restore(self) -> None:
        now, before = vars(self._module), self._attributes
        changed = [] if _unchanged(now, before) else [(now.get(k), before.get(k)) for k in now.keys() | before.keys()]
        containers = [(container, inside) for container, inside in self._inside if not _unchanged(container, inside)]
        kept = any(map(_has_tensors, (value for pair in changed for value in pair if pair[0] is not pair[1])))
        if not kept and not any(_has_tensors(part) for pair in containers for part in pair):
            return
        now.clear()
        now.update(before)
        for container, inside in containers:
            container.clear()
            container.update(inside) if isinstance(inside, dict) else container.extend(inside)

    def refuse_what_holds_a_graph(self, overwritten: dict[int, tuple[Tensor, Tensor]]) -> None:
        for name, t in (*self._attributes.items(), *self._module._buffers.items()):
            if isinstance(t, Tensor) and t.requires_grad and t.grad_fn is not None and id(t) in overwritten:
                _, values = overwritten[id(t)]
                with torch.no_grad():
                    t.detach_().copy_(values)
                raise ModelError(
                    f"the model modifies its buffer '{name}' in place with values that depend on the input; "
                    f"assign a new tensor (self.{name} = …) instead"
                )


def _has_tensors(value: Any, depth: int = 2) -> bool:
    if isinstance(value, Tensor):
        return True
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return depth > 0 and any(_has_tensors(part, depth - 1) for part in inside)


def _unchanged(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(map(is_, a.values(), b.values())) and a.keys() == b.keys()
    return all(map(is_, a, b))


def model_settings(model: object, without: Collection[str] = ()) -> Hashable:
    """Return the settings that a forward pass may depend on besides inputs and weights, in comparable form.

    These are the modules, their attributes, mode and hooks, and autocast; of a model that is another callable, whatever its
    closure, attributes and default arguments hold.
    """
    return _autocast_state(), _Settings(without).of(model)


class ModelSettings:
    """The settings of a model, as `model_settings` returns them, read again only if something may have changed.

    Comparing all values by identity takes microseconds where reading a large model takes milliseconds.
    """

    def __init__(self, model: object):
        self._model = model
        self._reader: _Settings | None = None
        self._found: Hashable = None

    def read(self) -> Hashable:
        """Return the current settings."""
        if self._reader is None or not self._reader.is_unchanged():
            reader = _Settings()
            self._found = reader.of(self._model)
            reader.remember()
            self._reader = reader  # not before: other threads may read it
        return _autocast_state(), self._found


def _autocast_state() -> Hashable:
    return tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda"))


class _Settings:
    """Reader of objects in comparable form: plain values and containers of them, modules, functions and other objects.

    Args:
        without: Attributes of modules to leave out.
    """

    def __init__(self, without: Collection[str] = ()):
        self._without = {*MODULE_ATTRIBUTES, "_buffers", *without}
        self._seen: set[int] = set()
        self._dicts: list[dict[Any, Any]] = []  # that were read
        self._lists: list[list[Any]] = []
        self._facts: list[tuple[Callable[[], Any], Any]] = []  # of values that can change in place, read by a function
        self._values: tuple[Any, ...] = ()

    def remember(self) -> None:
        """Remember everything that was read."""
        self._values = tuple(self._current())

    def is_unchanged(self) -> bool:
        """Return whether all that was read holds the same objects, unchanged."""
        try:
            return (
                sum(map(len, self._dicts)) + sum(map(len, self._lists)) == len(self._values)
                and all(map(is_, self._current(), self._values))
                and all(read() == value for read, value in self._facts)
            )
        except RuntimeError:  # changed by another thread meanwhile
            return False

    def _current(self) -> Iterator[Any]:
        return chain(chain.from_iterable(map(dict.values, self._dicts)), chain.from_iterable(self._lists))

    def of(self, value: Any, depth: int = 0) -> Hashable:
        if isinstance(value, int | float | str | bytes | None):
            return value
        if isinstance(value, Tensor):
            return self._fact(lambda: _tensor_summary(value))
        if isinstance(value, np.ndarray):
            return self._fact(lambda: _array_summary(value))
        if isinstance(value, type | ModuleType) or depth > MAX_DEPTH or id(value) in self._seen:
            return id(value)
        self._seen.add(id(value))
        return id(value), type(value), self._inside(value, depth + 1)

    def _fact(self, read: Callable[[], Any]) -> Any:
        value = read()
        self._facts.append((read, value))
        return value

    def _inside(self, value: Any, depth: int) -> Hashable:
        if isinstance(value, torch.jit.ScriptModule):
            return value.training
        if isinstance(value, nn.Module):
            return self._module(value, depth)
        if isinstance(value, list | tuple | set | frozenset) and len(value) <= MAX_LENGTH:
            if isinstance(value, list):
                self._lists.append(value)
            elif isinstance(value, set):
                self._fact(lambda: frozenset(map(id, value)))
            found = [self.of(part, depth) for part in value]
            return frozenset(found) if isinstance(value, set | frozenset) else tuple(found)
        if isinstance(value, dict):
            if len(value) > MAX_LENGTH:
                return self._fact(lambda: len(value))
            self._dicts.append(value)
            return tuple((str(name), self.of(v, depth)) for name, v in value.items())
        if isinstance(value, MethodType):
            return self.of(value.__func__, depth), self.of(value.__self__, depth)
        if isinstance(value, partial):
            return self.of([value.func, value.args, value.keywords], depth)
        if isinstance(value, FunctionType):
            self._fact(lambda: tuple(map(id, (value.__defaults__, value.__kwdefaults__, *closure_values(value)))))
            return self.of([value.__defaults__, value.__kwdefaults__, *closure_values(value)], depth)
        if type(value).__module__.partition(".")[0] in ("builtins", "torch", "threading", "logging"):
            return None
        return self.of(vars(value), depth) if hasattr(value, "__dict__") else None

    def _module(self, module: nn.Module, depth: int) -> Hashable:
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        self._dicts += [vars(module), module._parameters, module._buffers, module._modules, *hooks]
        weights = tuple(map(id, (*module._parameters.values(), *module._buffers.values())))
        attributes = [(name, self.of(v, depth)) for name, v in vars(module).items() if name not in self._without]
        children = [(name, self.of(child)) for name, child in module._modules.items()]
        globals_read = [self._global(found, name, depth) for found, name in _globals_of_forward(type(module))]
        return module.training, weights, tuple(chain(*hooks)), tuple(attributes), tuple(children), tuple(globals_read)

    def _global(self, found: dict[str, Any], name: str, depth: int) -> Hashable:
        self._fact(lambda: id(found.get(name)))
        return self.of(found.get(name), depth)


def _tensor_summary(t: Tensor) -> Hashable:
    return (t.data_ptr() if t.layout is torch.strided else id(t)), t.shape, version_of(t)


def _array_summary(array: np.ndarray) -> Hashable:
    contents = float(array.sum(dtype=np.float64)) if array.dtype.kind in "biuf" else None
    return id(array), array.shape, str(array.dtype), contents


@lru_cache(maxsize=4096)
def _globals_of_forward(kind: type) -> list[tuple[dict[str, Any], str]]:
    """Return the globals, as (dictionary, name), that the forward pass of a class of modules reads and that hold data."""
    function = getattr(kind, "forward", None)
    if not isinstance(function, FunctionType) or not _may_hold_state(kind):
        return []
    found = function.__globals__
    return [(found, name) for name in function.__code__.co_names if isinstance(found.get(name), DATA)]
