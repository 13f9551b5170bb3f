"""Fingerprints (hashes) of settings, code, weights and data."""

import dis
import random
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from hashlib import sha256
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path, PurePath
from types import BuiltinFunctionType, BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, ModuleType
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
HOOKS = ("_forward_pre_hooks", "_forward_hooks")  # module attributes that do affect outputs
ALL_HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith("hooks"))
PROCESS_STATE = ("_io", "_thread", "_weakref", "logging", "threading", "weakref")  # objects of these never decide an output
LIBRARIES = ("builtins", "collections", "functools", "numpy", "torch", "typing", "whence")  # their code is fixed by versions
PLAIN = str | bytes | bytearray | int | float | complex | bool | range | slice | None | type(...)


def fingerprint(*things: Any) -> str:
    """Return a hash of 16 hexadecimal digits, which differs if any object or any of its values differs.

    >>> fingerprint(whence.LRP(), torch.ones(2)) == fingerprint(whence.LRP(), torch.ones(2))
    True

    The hash covers the structure, weights, buffers, attributes and forward hooks of modules, the code, default arguments and
    closures of functions, the attributes of other objects, and the code of their classes unless torch or this library defines
    them. Of code that is not part of an installed package it also covers the functions, classes, values and modules that it
    names, and the versions of the packages that it names. Patches of the code of packages, and names that are put together at
    run time, are not noticed.
    """
    made = Fingerprinter()
    for thing in things:
        made.add(thing)
    return made.hexdigest()[:16]


class Fingerprinter:
    """An incremental fingerprint, to which objects are added.

    Objects with parts are numbered in the order in which they are met, and their parts follow one object at a time: an object
    that occurs twice is told from two equal objects, and long chains need no deep recursion.
    """

    def __init__(self):
        self._letters = sha256()
        self._numbers: dict[int, int] = {}  # of objects by id
        self._seen: list[Any] = []  # keeps objects alive, so that their ids are not reused
        self._waiting: deque[Any] = deque()
        self._classes: set[type] = set()  # whose members were added

    def hexdigest(self) -> str:
        """Return the hash of all that was added."""
        while self._waiting:
            self._say("[")
            self._parts(self._waiting.popleft())
            self._say("]")
        return self._letters.hexdigest()

    def add(self, thing: Any) -> None:
        self._say(f"{type(thing).__module__}.{type(thing).__qualname__}(")
        if isinstance(thing, Tensor | np.ndarray | np.generic):
            self._array(thing)
        elif isinstance(thing, PurePath):
            self._say(str(thing))
        elif isinstance(thing, PLAIN):
            self._say(repr(thing))
            if not _is_library(type(thing).__module__):  # of an enumeration or a subclass of str
                self._number(type(thing))
        else:
            self._number(thing)
        self._say(")")

    def _number(self, thing: Any) -> None:
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self._seen)
            self._seen.append(thing)
            self._waiting.append(thing)
        self._say(f"#{self._numbers[id(thing)]}")

    def _parts(self, thing: Any) -> None:
        if isinstance(thing, Mapping):
            self._all(*(part for pair in thing.items() for part in pair))
        elif isinstance(thing, set | frozenset):
            self._say(" ".join(sorted(fingerprint(each) for each in thing)))  # in an order that memory does not decide
        elif isinstance(thing, list | tuple | deque):
            self._all(*thing)
        elif isinstance(thing, FunctionType):
            self._function(thing)
        elif isinstance(thing, CodeType):
            self._all(thing.co_code, thing.co_consts, thing.co_names)
        elif isinstance(thing, MethodType | BuiltinMethodType) and not isinstance(thing.__self__, ModuleType | type(None)):
            self._all(thing.__name__, thing.__self__, getattr(thing, "__func__", None))
        elif isinstance(thing, partial):
            self._all(thing.func, thing.args, thing.keywords)
        elif isinstance(thing, nn.Module):
            self._module(thing)
        elif isinstance(thing, type | ModuleType | BuiltinFunctionType):
            self._named(thing)
        elif isinstance(thing, torch.Generator):
            self.add(thing.get_state())
        elif isinstance(thing, random.Random):
            self.add(thing.getstate())
        elif type(thing).__module__ not in PROCESS_STATE:
            self._object(thing)
        if not isinstance(thing, type):
            self._class_code(type(thing))

    def _function(self, function: FunctionType) -> None:
        self._all(function.__code__, function.__defaults__, function.__kwdefaults__, vars(function))
        self._all(*closure_values(function))
        if not _is_installed(function.__module__):
            self._all(*(part for pair in _globals(function) for part in pair))

    def _named(self, thing: Any) -> None:
        """Add what is known by its name: a class, a module or a built-in function, with the version of its package."""
        module = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
        self._say(f"{module}.{getattr(thing, '__qualname__', thing.__name__)}")
        if _is_installed(module):
            self._say(str(getattr(sys.modules.get((module or "").partition(".")[0]), "__version__", "")))
        elif isinstance(thing, type):
            self._class_code(thing)

    def _object(self, thing: Any) -> None:
        """Add an object of another kind: its attributes, and what it is pickled from if its class is not written in Python."""
        slots = [name for kind in type(thing).__mro__ for name in _slots(kind)]
        attributes = vars(thing) if hasattr(thing, "__dict__") else {}
        if attributes or slots:
            self._all(attributes, [getattr(thing, name, None) for name in slots])
        state = _reduced(thing) if _is_installed(type(thing).__module__) else None
        if state is not None:
            self._all(*state)
        elif not attributes and not slots:
            words = repr(thing)
            self._say("" if " at 0x" in words else words)

    def _class_code(self, kind: type) -> None:
        """Add the members of classes that a user may edit between two runs."""
        for base in kind.__mro__:
            if _is_library(base.__module__) or base in self._classes:
                continue
            self._classes.add(base)
            for name, value in sorted(vars(base).items()):
                function = getattr(value, "__func__", value)  # of a static method or class method
                if isinstance(value, property):
                    self._all(name, value.fget)
                elif isinstance(function, FunctionType) or not (name.startswith("__") or name == "_abc_impl"):
                    self._all(name, function)
        if not _is_library(type(kind).__module__):
            self._number(type(kind))

    def _module(self, module: nn.Module) -> None:
        own = {name: value for name, value in vars(module).items() if name not in ALL_HOOKS and name not in IGNORED_ATTRIBUTES}
        forward = getattr(type(module), "forward", None)
        self._all(own, forward if isinstance(forward, FunctionType) else None)
        self._all(*(hook for name in HOOKS for hook in vars(module).get(name, {}).values()))
        if isinstance(module, torch.jit.ScriptModule):
            self._all(module.code, *module.state_dict().values())
        elif type(module).__module__.startswith("torch.ao"):  # packed weights of quantised layers
            self._all(*module.state_dict().items())

    def _array(self, values: Any) -> None:
        if isinstance(values, np.ndarray | np.generic) and values.dtype.kind not in "biufc":
            self._all(*np.asarray(values).ravel().tolist())  # strings or objects
            return
        plain = torch.as_tensor(values).detach()
        if plain.is_meta:
            raise ModelError("weights that are offloaded or on the meta device have no fingerprint; load them into memory")
        if plain.is_nested:
            self._all(*plain.unbind())
            return
        self._say(f"{plain.dtype}{tuple(plain.shape)}")
        plain = plain.cpu().resolve_conj().resolve_neg()
        plain = plain.dequantize() if plain.is_quantized else plain
        plain = plain.to_dense() if plain.layout != torch.strided else plain
        self._letters.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

    def _all(self, *things: Any) -> None:
        for thing in things:
            self.add(thing)

    def _say(self, words: str) -> None:
        self._letters.update(words.encode())


def closure_values(function: Any) -> list[Any]:
    """Return the values in the closure of a function; None for a cell that is still empty."""
    cells = getattr(function, "__closure__", None) or ()
    return [None if cell == CellType() else cell.cell_contents for cell in cells]


def _is_library(module: object) -> bool:
    """Return whether a module, the name of one, is of a library whose code counts by its version; of C code, it is no name."""
    return not isinstance(module, str) or module.partition(".")[0] in LIBRARIES


@cache
def _is_installed(module: str | None) -> bool:
    """Return whether a module belongs to Python or to an installed package, whose code changes with its version alone."""
    top = (module or "").partition(".")[0]
    if _is_library(module) or top in sys.builtin_module_names:
        return True
    found = sys.modules.get(top)
    return any(_in_installation(file) for file in [getattr(found, "__file__", None), *getattr(found, "__path__", ())] if file)


def _in_installation(file: str) -> bool:
    path = Path(file)
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or path.is_relative_to(sysconfig.get_path("stdlib"))


def _slots(kind: type) -> Iterator[str]:
    """Yield the names of the attributes in the slots of a class, as they are looked up."""
    slots = vars(kind).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        private = name.startswith("__") and not name.endswith("__")
        yield f"_{kind.__name__.lstrip('_')}{name}" if private else name


def _reduced(thing: Any) -> tuple | None:
    """Return what an object is pickled from, or None if it cannot be pickled."""
    try:
        reduced = thing.__reduce_ex__(4)
    except Exception:
        return None
    if isinstance(reduced, str):
        return (reduced,)
    return tuple(list(part) if isinstance(part, Iterator) else part for part in reduced)


def _globals(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what the code of a function names: globals, strings that are names of globals, imports, and members of modules."""
    names: dict[str, None] = {}
    modules = [value for value in closure_values(function) if isinstance(value, ModuleType)]
    codes: list[Any] = [function.__code__]
    for code in codes:  # grows: functions within the function are constants of its code
        names |= dict.fromkeys(code.co_names)
        names |= dict.fromkeys(word for word in code.co_consts if isinstance(word, str) and word.isidentifier())
        modules += _imports(code, function.__globals__.get("__package__"))
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    visited: set[int] = set()
    yield from _members(names, function.__globals__, visited)
    for module in modules:
        yield module.__name__, module
        if not _is_installed(module.__name__):
            yield from _members(names, vars(module), visited)


def _members(names: Iterable[str], space: Mapping[str, Any], visited: set[int]) -> Iterator[tuple[str, Any]]:
    for name in names:
        if name not in space:
            continue
        value = space[name]
        yield name, value
        if isinstance(value, ModuleType) and id(value) not in visited and not _is_installed(value.__name__):
            visited.add(id(value))
            yield from _members(names, vars(value), visited)


def _imports(code: CodeType, package: str | None) -> Iterator[ModuleType]:
    """Yield the modules that a function imports itself, those of a package with what is imported from it."""
    steps = list(dis.get_instructions(code))
    for i, step in enumerate(steps):
        if step.opname != "IMPORT_NAME":
            continue
        level, wanted = steps[i - 2].argval, steps[i - 1].argval or ()
        for name in (step.argval, *(f"{step.argval}.{part}".lstrip(".") for part in wanted)):
            try:
                found = import_module(resolve_name("." * level + name, package)) if level else import_module(name)
            except Exception:  # optional packages, and names that are no modules
                continue
            yield found
