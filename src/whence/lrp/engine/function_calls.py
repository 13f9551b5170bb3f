"""A call of a torch function: the tensors it reads and writes, and copies of the call with other arguments."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from whence.lrp.ops.function_facts import FunctionFacts, function_facts

# types of arguments that hold no tensor: most arguments are of one of them
INERT_TYPES = frozenset({
    int, float, bool, complex, str, type(None), slice, type(...), torch.Size, torch.dtype, torch.device, torch.memory_format,
    torch.layout,
})  # fmt: skip


@dataclass(slots=True, eq=False)
class Call:
    """A call of a torch function, with parameters among the arguments already replaced by constants."""

    function: Callable[..., Any]
    facts: FunctionFacts
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data: Sequence[Tensor] = ()  # the tensors that depend on the input
    constants: Sequence[Tensor] = ()  # the other tensors
    overwrites: bool = False  # whether it modifies its first argument in place

    @classmethod
    def of(cls, function: Callable[..., Any], args: tuple, kwargs: dict, data: tuple[Tensor, ...] = ()) -> "Call":
        return cls(function, function_facts(function), args, kwargs, data)

    @property
    def name(self) -> str:
        return self.facts.name

    def run(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    def out_of_place(self) -> "Call":
        """Return the out-of-place form of the call."""
        function = self.function

        def on_a_copy(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            copy = target.clone()
            function(copy, *args, **kwargs)
            return copy

        on_a_copy.__name__ = getattr(function, "__name__", "")
        return replace(self, function=on_a_copy, overwrites=False)

    def bind(self, names: str, **defaults: Any) -> Sequence[Any]:
        """Return the arguments in the order of `names`, by position, keyword (`self` for `input`) or default."""
        if not self.kwargs and len(self.args) == names.count(" ") + 1:
            return self.args
        keys = names.split()
        given = list(self.args[: len(keys)])
        if not self.kwargs:
            return given + [defaults[key] for key in keys[len(given) :]]
        by_keyword = {("input" if key == "self" else key): value for key, value in self.kwargs.items()}
        found = dict(zip(keys, given, strict=False)) | by_keyword
        return [found[key] if key in found else defaults[key] for key in keys]

    def with_replaced(self, replacement: dict[int, Tensor]) -> "Call":
        """Return the call with tensors replaced by identity, `data` included."""
        args, kwargs = self._replaced(replacement)
        return replace(self, args=args, kwargs=kwargs, data=[replacement.get(id(t), t) for t in self.data])

    def run_with(self, replacement: dict[int, Tensor]) -> Any:
        """Run the call with tensors replaced by identity: {id(old): new}."""
        args, kwargs = self._replaced(replacement)
        return self.function(*args, **kwargs)

    def held_constant(self) -> Any:
        """Return the call's value without a gradient."""
        return self.run_with({id(t): t.detach() for t in self.data})

    def _replaced(self, replacement: dict[int, Tensor]) -> tuple[tuple, dict]:
        return map_tensors(lambda t: replacement.get(id(t), t), self.args, self.kwargs)


def overwrites(facts: FunctionFacts, kwargs: dict[str, Any]) -> bool:
    """Return whether the call writes its result into its first argument."""
    return facts.overwrites or ("inplace" in kwargs and bool(kwargs["inplace"]))


def constant_parameters(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Return the arguments with every `nn.Parameter` detached, so that the model need not be frozen and restored."""
    if not kwargs and all(type(a) is Tensor or type(a) in INERT_TYPES for a in args):
        return args, kwargs
    return map_tensors(lambda t: t.detach() if isinstance(t, nn.Parameter) else t, args, kwargs)


def undetached(out: Any, given: Any, read: Any) -> Any:
    """Return the parameter itself where a call such as `parameter.to(device)` returned its detached alias unchanged.

    Some models assign the result back.
    """
    untouched = given[0] is read[0] and given[1] is read[1]
    if untouched or not isinstance(out, Tensor) or out.requires_grad:  # then not a constant
        return out
    return next((t for t, constant in zip(iter_tensors(given), iter_tensors(read), strict=True) if constant is out), out)


def map_tensors(change: Callable[[Tensor], Any], args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return tuple([_map_value(change, a) for a in args]), {k: _map_value(change, v) for k, v in kwargs.items()}


def _map_value(change: Callable[[Tensor], Any], value: Any) -> Any:
    kind = type(value)
    if kind in INERT_TYPES:
        return value
    if isinstance(value, Tensor):
        return change(value)
    if kind is list or kind is tuple:
        return kind([_map_value(change, v) for v in value])
    return value


def iter_tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in a tree of lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for v in value:
            if type(v) not in INERT_TYPES:
                yield from iter_tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            if type(v) not in INERT_TYPES:
                yield from iter_tensors(v)


def input_dependent(args: tuple, kwargs: dict) -> tuple[Tensor, ...]:
    """Return the tensors among the arguments that depend on the explained input."""
    return tuple(t for t in iter_tensors((args, kwargs)) if t.requires_grad)
