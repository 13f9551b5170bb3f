"""Tracking of the running module: the position of a call in the model, for selectors, error messages and inner layers."""

import fnmatch
import re
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from whence.errors import OpaqueError, SelectorError, suggest, value_repr
from whence.lrp.engine.model_outputs import first_tensor, with_first_tensor
from whence.lrp.torch_compat.saved_tensors import with_gradient_hook

MAX_NAMES = 8  # layers listed where one does not exist
INPUT_OF = "input of "  # prefix of a module path: the module's input rather than its output
MKLDNN = "torch.utils.mkldnn"
QUANTISED = re.compile(r"^torch(\.ao)?\.nn(\.intrinsic)?\.quantized\.(dynamic\.)?modules")

# Modules of bitsandbytes, HQQ, GPTQ, AWQ and BitNet, whose functions cannot be intercepted but are known to be linear
HIDDEN_LINEAR = frozenset({"Linear8bitLt", "Linear4bit", "LinearFP4", "LinearNF4", "HQQLinear", "BitLinear", "AutoBitLinear",
                           "QuantLinear", "WQLinear_GEMM", "WQLinear_GEMV", "FP8Linear", "EetqLinear", "QLinear"})  # fmt: skip

Tap = Callable[[Tensor], None]  # with an attribute `optional` that is true, not called for outputs that are no tensors
Leaving = Callable[[nn.Module, tuple, dict, object], object]  # (module, args, kwargs, output) -> another output, or None


class ModulePlace:
    """A running module and the modules that enclose its call."""

    def __init__(self, module: object = None, names: Sequence[str] = (), outer: "ModulePlace | None" = None):
        self.module, self.names, self.outer = module, names, outer
        self.within: dict[int, ModulePlace] = {}  # by id of the inner module, which its `ModulePlace` keeps alive
        self.decided: dict[Hashable, Any] = {}  # cached rules of calls from this module

    @cached_property
    def modules(self) -> "list[ModulePlace]":
        """The running modules, innermost first."""
        return [self, *self.outer.modules] if self.outer is not None else []

    @cached_property
    def hides_linear_map(self) -> bool:
        """Whether the module is a quantised layer that computes a linear map by functions that cannot be intercepted."""
        return not HIDDEN_LINEAR.isdisjoint(kind.__name__ for kind in type(self.module).__mro__)

    @cached_property
    def path(self) -> str:
        """The path of the innermost running module; its class name, or "(model)", if it has none."""
        running = self.modules
        named = next((place.names[0] for place in running if place.names), None)
        return (type(self.module).__name__ if running else "(model)") if named is None else named or "(model)"


class ModuleOutline:
    """The modules of a model by path, and the tree of all module calls so far."""

    def __init__(self, model: object):
        self._model = model
        self.modules = module_names(model)
        self._parts = all_modules(model)
        self._names: dict[int, list[str]] = {}
        for name, module in self.modules.items():
            reject_opaque_module(module, name or "(model)")
            self._names.setdefault(id(module), []).append(name)
        self.root = ModulePlace()

    @property
    def outdated(self) -> bool:
        """Whether a module was added, removed or replaced."""
        now = all_modules(self._model)
        return len(now) != len(self._parts) or not all(map(is_, now, self._parts))

    @property
    def has_backward_hooks(self) -> bool:
        """Whether hooks of the user see the gradients at a module."""
        if global_hooks._global_backward_hooks or global_hooks._global_backward_pre_hooks:
            return True
        return any(module._backward_hooks or module._backward_pre_hooks for module in self.modules.values())

    def names(self, module: object) -> list[str]:
        """Return all paths of a module: several if it is shared, none if it is not a part of the model."""
        return self._names.get(id(module), [])

    def within(self, outer: ModulePlace, module: nn.Module) -> ModulePlace:
        """Return the `ModulePlace` of a module that runs in another, cached if it is a part of the model."""
        names = self._names.get(id(module), ())
        place = ModulePlace(module, names, outer)
        if names:
            outer.within[id(module)] = place
        else:
            reject_opaque_module(module, place.path)
        return place


class ModuleTracker:
    """Tracker of the module calls of one thread while it is entered, without hooks on the model itself.

    Global module hooks are registered on entering and removed on leaving; calls of other threads are ignored.
    """

    def __init__(self, outline: ModuleOutline):
        self._outline = outline
        self.place = outline.root  # of the running module
        self._taps: dict[int, list[Tap]] = {}
        self._taps_of_inputs: dict[int, list[Tap]] = {}
        self.leaving: Leaving | None = None
        self.replacing: Callable[[Tensor, Tensor], None] = lambda t, original: None
        self._undo = ExitStack()
        self._entered = False

    def __enter__(self) -> "ModuleTracker":
        self._thread = threading.get_ident()
        with ExitStack() as undo:
            undo.callback(setattr, self, "place", self._outline.root)
            enter: Any = self._enter_module
            undo.callback(global_hooks.register_module_forward_pre_hook(enter).remove)
            leave: Any = self._leave_module
            handle = global_hooks.register_module_forward_hook(leave, with_kwargs=True, always_call=True)
            undo.callback(global_hooks._global_forward_hooks_with_kwargs.pop, handle.id)  # torch 2.13 does not remove it
            undo.callback(handle.remove)
            self._undo = undo.pop_all()
        self._entered = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered = False
        self._undo.close()

    @contextmanager
    def resumed(self, place: ModulePlace, tap: Tap) -> Iterator[None]:
        """Resume in this module, for a part that is recomputed in the backward pass; `tap` replaces all taps."""
        taps, before, thread = (self._taps, self._taps_of_inputs), self.place, getattr(self, "_thread", None)
        with nullcontext() if self._entered else self:
            self.place = place
            self._taps, self._taps_of_inputs = ({module: [tap] for module in tapped} for tapped in taps)
            self._thread = threading.get_ident()  # the backward pass may run in another thread
            try:
                yield
            finally:
                self.place, self._thread, (self._taps, self._taps_of_inputs) = before, thread, taps

    def tap(self, taps: dict[str, Tap]) -> None:
        """Register taps, each called with the output (or input) of the module that it is named after."""
        for name, tap in taps.items():
            tapped = self._taps_of_inputs if name.startswith(INPUT_OF) else self._taps
            tapped.setdefault(id(self._outline.modules[name.removeprefix(INPUT_OF)]), []).append(tap)

    def names(self, module: object) -> list[str]:
        return self._outline.names(module)

    @property
    def path(self) -> str:
        return self.place.path

    def _enter_module(self, module: nn.Module, args: tuple) -> tuple | None:
        if threading.get_ident() != self._thread:
            return None
        self.place = self.place.within.get(id(module)) or self._outline.within(self.place, module)
        taps = self._taps_of_inputs.get(id(module))
        return self._read_input(args, taps) if taps else None

    def _read_input(self, args: tuple, taps: list[Tap]) -> tuple | None:
        if not args or not isinstance(args[0], Tensor):
            raise SelectorError(
                f"'{INPUT_OF}{self.path}' is not a tensor passed as a positional argument; name a layer before it"
            )
        read = args[0]
        if read.requires_grad and read._is_view():  # the tap has to survive an in-place operation on the view
            read = with_gradient_hook(read, lambda g: g)
            self.replacing(read, args[0])
        with torch._C.DisableTorchFunction():
            for tap in taps:
                tap(read)
        return None if read is args[0] else (read, *args[1:])

    def _leave_module(self, module: nn.Module, args: tuple, *rest: Any) -> object:
        place = self.place
        if threading.get_ident() != self._thread or place.module is not module or place.outer is None:
            return None
        *kwargs, output = rest  # torch omits the keyword arguments if the module raised
        changed = None
        if output is not None and self.leaving is not None:
            changed = self.leaving(module, args, kwargs[0], output)
        self.place = place.outer
        if output is not None and (taps := self._taps.get(id(module))):
            return self._read_off(module, taps, output, changed)
        return changed

    def _read_off(self, module: nn.Module, taps: list[Tap], output: object, changed: object) -> object:
        if first_tensor(output) is None and all(getattr(tap, "optional", False) for tap in taps):
            return changed
        read = self._single(module, output if changed is None else changed)
        if read.requires_grad and read._is_view():  # the tap has to survive an in-place operation on the view
            held = with_gradient_hook(read, lambda g: g)
            self.replacing(held, read)
            changed = with_first_tensor(output if changed is None else changed, held, self.path)
            read = held
        with torch._C.DisableTorchFunction():
            for tap in taps:
                tap(read)
        return changed

    def _single(self, module: nn.Module, output: object) -> Tensor:
        """Return the tensor to read: the output, or the first of a tuple or dict (hidden states come first)."""
        first = first_tensor(output)
        if first is None:
            raise SelectorError(f"layer '{self.names(module)[0]}' returns {type(output).__name__}, expected a tensor")
        return first


def all_modules(model: object) -> list[object]:
    """Return the model and all modules within it."""
    found = [model]
    for part in found:  # extended in the loop
        if isinstance(part, nn.Module):
            found += [child for child in part._modules.values() if child is not None]
    return found


def module_names(model: object) -> dict[str, nn.Module]:
    """Return all modules by path, compiled ones by the path of the original."""
    modules = model.named_modules(remove_duplicate=False) if isinstance(model, nn.Module) else ()
    return {name.replace("_orig_mod.", "").removesuffix("._orig_mod"): module for name, module in modules}


def layer_path(model: object, layer: str | nn.Module) -> str:
    """Return the path of a layer that is given by its path or as the module itself."""
    if isinstance(layer, str):
        return layer
    if not isinstance(layer, nn.Module):
        raise SelectorError(f"a layer must be a module path, such as 'features.28', or a module, got {value_repr(layer)}")
    path = next((path for path, module in module_names(model).items() if module is layer), None)
    if path is None:
        what = "not part of the model; pass its path"
        if not isinstance(model, nn.Module):
            what = "a part of a function, whose layers have no paths; explain the module that the function calls"
        raise SelectorError(f"the {type(layer).__name__} that was given as a layer is {what}")
    return path


def check_paths(layers: Sequence[object]) -> None:
    """Raise `SelectorError` for layers of an objective that are not paths: an objective is made without the model."""
    for layer in layers:
        if not isinstance(layer, str):
            raise SelectorError(
                f"objectives name layers by their paths, such as 'features.28', got {value_repr(layer)}; the path is in "
                "model.named_modules()"
            )


def named_layers(model: object, layers: Sequence[str | nn.Module]) -> dict[str, nn.Module]:
    """Return the layers by path, or by "input of " and a path; layers may be given as modules.

    In patterns such as "model.layers.*" a * matches within one part between dots.
    """
    modules = module_names(model)
    inputs = {f"{INPUT_OF}{path}": module for path, module in modules.items() if path}
    found: dict[str, nn.Module] = {}
    for layer in (layers,) if isinstance(layers, str | nn.Module) else layers:
        name = layer_path(model, layer)
        among = inputs if name.startswith(INPUT_OF) else modules
        matching = {path: module for path, module in among.items() if path == name or (path and _matches(path, name))}
        if not matching:
            some = [path for path in among if path]
            shown = some if len(some) <= MAX_NAMES else [*some[: MAX_NAMES - 3], "…", *some[-3:]]
            there = f"; available layers: {', '.join(shown)}" if some else ""
            raise SelectorError(f"no layer '{name}' in the model{suggest(name, among) or there}")
        found |= matching
    return found


def _matches(path: str, pattern: str) -> bool:
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def reject_opaque_module(module: nn.Module, path: str) -> None:
    """Raise `OpaqueError` for modules that run without torch functions, or run other functions than their source."""
    changed = "quantised" if is_quantized(module) else "in the layout of MKL-DNN" if type(module).__module__ == MKLDNN else None
    if changed:
        raise OpaqueError(f"module '{path}' is {changed} and has no gradients; explain the original floating-point model")
    made = "scripted or traced" if isinstance(module, torch.jit.ScriptModule) else "exported" if is_exported(module) else None
    if made:
        raise OpaqueError(f"module '{path}' is {made} and its operations cannot be intercepted; explain the original nn.Module")


def is_quantized(module: nn.Module) -> bool:
    """Return whether the module is quantised, by torch's module classes; `FloatFunctional` is only prepared for it."""
    return type(module).__name__ != "FloatFunctional" and any(
        QUANTISED.search(kind.__module__) for kind in type(module).__mro__
    )


def is_exported(module: nn.Module) -> bool:
    """Return whether torch.export made the module: its graph calls operators, decomposed and with inlined constants."""
    if not isinstance(module, torch.fx.GraphModule):
        return False
    return any(isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes)
