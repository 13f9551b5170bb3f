"""A model that remembers (`self.memory = …`) is left with what it remembered before."""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

from torch import Tensor, nn

TORCHS = frozenset(vars(nn.Module())) - {"_buffers"}  # what every module has, and no forward pass changes


@contextmanager
def left_as_it_was(model: object) -> Iterator[None]:
    """Tensors that a forward pass sets as attributes or buffers, or puts into lists and dicts, are gone, and what they replaced
    is back. They would hold the graph of an explanation, and change the next one. Counts and notes stay.
    """
    before = [Memory(module) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        for memory in before:
            memory.restore()


class Memory:
    """The attributes of a module, and what is in those that are lists or dicts."""

    __slots__ = ("_attributes", "_inside", "_module")

    def __init__(self, module: nn.Module):
        self._module = module
        self._attributes = attributes = vars(module).copy()
        self._inside: list[tuple[Any, Any]] = []
        for name in attributes.keys() - TORCHS:
            value = attributes[name]
            if type(value) is dict or type(value) is list:
                self._inside.append((value, value.copy()))

    def restore(self) -> None:
        now, before = vars(self._module), self._attributes
        if not _same(now, before):
            for name in [name for name, value in now.items() if value is not before.get(name)]:
                if isinstance(now[name], Tensor) or isinstance(before.get(name), Tensor):
                    now.pop(name)
            now.update({name: value for name, value in before.items() if name not in now})
        for container, inside in self._inside:
            if not _same(container, inside) and any(map(_of_tensors, _values(container))):
                container.clear()
                container.update(inside) if isinstance(inside, dict) else container.extend(inside)


def _values(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _of_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(part, Tensor) for part in value))


def _same(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(map(is_, a.values(), b.values())) and a.keys() == b.keys()
    return all(map(is_, a, b))
