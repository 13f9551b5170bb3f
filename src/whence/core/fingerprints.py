"""Fingerprints (hashes) of settings, weights and data."""

import dis
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path, PurePath
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


PLAIN = (int, float, complex, str, bytes, tuple, list, dict, set, frozenset, Tensor)  # class attributes that are hashed
HOOKS = ("_forward_pre_hooks", "_forward_hooks")  # module attributes that do affect outputs
PROCESS_STATE = ("_io", "_thread", "logging", "threading", "weakref")  # objects of these modules never decide an output
LIBRARIES = ("builtins", "collections", "functools", "numpy", "torch", "typing", "whence")  # their code is fixed by versions


def fingerprint(*things: Any) -> str:
    """Return a hash of 16 hexadecimal digits, which differs if any object or any of its values differs.

    >>> fingerprint(whence.LRP(), torch.ones(2)) == fingerprint(whence.LRP(), torch.ones(2))
    True

    The hash covers the structure, weights, buffers, attributes and forward hooks of modules, the code, default arguments and
    closures of functions, the attributes of other objects, and the code of their classes unless torch or this library defines
    them. Of code that is not part of an installed package it also covers the functions, classes and values that it names.
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
        self._classes: set[type] = set()

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
            if not _is_installed(thing.__module__):
                self._all(*(part for pair in _globals(thing) for part in pair))
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
            if isinstance(thing, ModuleType):
                self._say(str(getattr(thing, "__version__", "")))
            elif isinstance(thing, type) and not _is_installed(thing.__module__):
                self._class_code(thing)
        elif type(thing).__module__ in PROCESS_STATE:
            pass
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
            if base.__module__.partition(".")[0] in LIBRARIES or base in self._classes:
                continue
            self._classes.add(base)
            for name, value in sorted(vars(base).items()):
                function = getattr(value, "__func__", getattr(value, "fget", value))  # of a static method or property
                if isinstance(function, FunctionType):
                    self._all(name, function)
                elif isinstance(value, PLAIN) and not name.startswith("__"):
                    self._all(name, value)

    def _module(self, module: nn.Module) -> None:
        own = {
            name: value for name, value in vars(module).items() if not name.endswith("hooks") and name not in IGNORED_ATTRIBUTES
        }
        forward = getattr(type(module), "forward", None)
        self._all(own, forward if isinstance(forward, FunctionType) else None)
        self._all(*(hook for name in HOOKS for hook in vars(module).get(name, {}).values()))
        self._class_code(type(module))

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


@cache
def _is_installed(module: str | None) -> bool:
    """Return whether a module belongs to Python or to an installed package, whose code changes with its version alone."""
    top = (module or "").partition(".")[0]
    if top in LIBRARIES:
        return True
    found = sys.modules.get(top)
    files = [getattr(found, "__file__", None), *getattr(found, "__path__", ())]
    return any(_in_installation(file) for file in files if file) or top in sys.builtin_module_names


def _in_installation(file: str) -> bool:
    path = Path(file)
    return {"site-packages", "dist-packages"} & set(path.parts) != set() or path.is_relative_to(sysconfig.get_path("stdlib"))


def _globals(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the global variables that the code of a function names, those of modules as `module.name`, and its imports."""
    names, imports = [], []
    codes: list[Any] = [function.__code__]
    for code in codes:  # grows: functions within the function are constants of its code
        names += code.co_names
        imports += [step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"]
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    yield from _named(dict.fromkeys(names), function.__globals__, set())
    for name in dict.fromkeys(imports):
        yield name, _source(name, function.__globals__.get("__package__"))


def _named(names: Sequence[str] | Mapping[str, None], space: Mapping[str, Any], visited: set[int]) -> Iterator[tuple[str, Any]]:
    for name in names:
        if name not in space:
            continue
        value = space[name]
        yield name, value
        if isinstance(value, ModuleType) and id(value) not in visited and not _is_installed(value.__name__):
            visited.add(id(value))
            yield from _named(names, vars(value), visited)


def _source(module: str, package: str | None) -> bytes | None:
    """Return the source of a module that a function imports itself, None for modules of installed packages."""
    for name in (module, f"{package}.{module}") if package else (module,):
        try:
            origin = getattr(find_spec(name), "origin", None)
        except (ImportError, AttributeError, ValueError):
            continue
        if origin and Path(origin).is_file():
            return None if _in_installation(origin) else Path(origin).read_bytes()
    return None
