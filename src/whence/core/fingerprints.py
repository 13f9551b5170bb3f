"""Fingerprints (hashes) of settings, weights and data."""

from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import PurePath
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from whence.errors import ModelError

IGNORED_ATTRIBUTES = (
    "training",
    "_compiled_call_impl",
    "_is_full_backward_hook",
)  # module attributes that do not affect outputs in eval mode


LIBRARIES = ("builtins", "collections", "functools", "numpy", "torch", "typing", "whence")  # their code is fixed by versions


def fingerprint(*things: Any) -> str:
    """Return a hash of 16 hexadecimal digits, which differs if any object or any of its values differs.

    >>> fingerprint(whence.LRP(), torch.ones(2)) == fingerprint(whence.LRP(), torch.ones(2))
    True

    The hash covers the structure, weights, buffers and attributes of modules, the code, default arguments and closures of
    functions, the attributes of other objects, and the code of their classes unless torch or this library defines them.
    """
    made = Fingerprinter()
    for thing in things:
        made.add(thing)
    return made.letters.hexdigest()[:16]


class Fingerprinter:
    """An incremental fingerprint, to which objects are added."""

    def __init__(self):
        self.letters = sha256()
        self._seen: dict[int, Any] = {}  # keeps objects alive, so that their ids are not reused

    def add(self, thing: Any) -> None:
        self._say(f"{type(thing).__module__}.{type(thing).__qualname__}(")
        if isinstance(thing, Tensor) and thing.is_meta:
            raise ModelError("weights that are offloaded or on the meta device have no fingerprint; load them into memory")
        if isinstance(thing, Tensor | np.ndarray | np.generic):
            self._numbers(torch.as_tensor(thing) if not _is_plain(thing) else thing)
        elif isinstance(thing, str | bytes | bytearray | int | float | complex | bool | range | slice | None | type(...)):
            self._say(repr(thing))
        elif isinstance(thing, PurePath):
            self._say(str(thing))
        elif id(thing) in self._seen:
            self._say("again")
        else:
            self._seen[id(thing)] = thing
            self._parts(thing)
        self._say(")")

    def _parts(self, thing: Any) -> None:
        if isinstance(thing, Mapping):
            self._all(*(part for pair in thing.items() for part in pair))
        elif isinstance(thing, set | frozenset):
            self._all(*sorted(thing, key=repr))
        elif isinstance(thing, list | tuple):
            self._all(*thing)
        elif isinstance(thing, FunctionType):
            self._all(thing.__code__, thing.__defaults__, thing.__kwdefaults__)
            self._all(*closure_values(thing))
        elif isinstance(thing, CodeType):
            self._all(thing.co_code, thing.co_consts, thing.co_names)
        elif isinstance(thing, MethodType):
            self._all(thing.__func__, thing.__self__)
        elif isinstance(thing, partial):
            self._all(thing.func, thing.args, thing.keywords)
        elif isinstance(thing, nn.Module):
            self._module(thing)
        elif isinstance(thing, type | ModuleType | BuiltinFunctionType):
            self._say(f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing.__name__)}")
        elif hasattr(thing, "__dict__") or hasattr(type(thing), "__slots__"):
            slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
            self._all(vars(thing) if hasattr(thing, "__dict__") else {}, [getattr(thing, name, None) for name in slots])
            self._class_code(type(thing))
        else:
            words = repr(thing)
            self._say("" if " at 0x" in words else words)

    def _class_code(self, kind: type) -> None:
        """Add the methods and plain class attributes of classes that a user may edit between two runs."""
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] in LIBRARIES or id(base) in self._seen:
                continue
            self._seen[id(base)] = base
            for name, value in sorted(vars(base).items()):
                function = getattr(value, "__func__", getattr(value, "fget", value))  # of a static method or property
                if isinstance(function, FunctionType):
                    self._all(name, function)
                elif isinstance(value, int | float | complex | str | tuple | Tensor) and not name.startswith("__"):
                    self._all(name, value)

    def _module(self, module: nn.Module) -> None:
        own = {
            name: value for name, value in vars(module).items() if not name.endswith("hooks") and name not in IGNORED_ATTRIBUTES
        }
        forward = getattr(type(module), "forward", None)
        self._all(own, forward if isinstance(forward, FunctionType) else None)

    def _numbers(self, values: Any) -> None:
        if not isinstance(values, Tensor):  # an array of strings or objects
            self._all(*values.ravel().tolist())
            return
        self._say(f"{values.dtype}{tuple(values.shape)}")
        plain = values.detach().cpu()
        plain = plain.to_dense() if plain.layout != torch.strided else plain
        self.letters.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    def _all(self, *things: Any) -> None:
        for thing in things:
            self.add(thing)

    def _say(self, words: str) -> None:
        self.letters.update(words.encode())


def _is_plain(thing: Any) -> bool:
    return isinstance(thing, np.ndarray | np.generic) and thing.dtype.kind not in "biufc"


def closure_values(function: Any) -> list[Any]:
    """Return the values in the closure of a function; None for a cell that is still empty."""
    cells = getattr(function, "__closure__", None) or ()
    return [None if cell == CellType() else cell.cell_contents for cell in cells]
