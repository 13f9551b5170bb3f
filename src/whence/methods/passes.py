"""One forward pass and a backward pass for each target: what every gradient-based method stands on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from whence.errors import ModelError, RuleError
from whence.explanation import Explanation
from whence.inputs import Inputs
from whence.lrp.conservation import Conservation
from whence.targets import Target, select


@dataclass(frozen=True)
class Task:
    """What is to be explained: checked and ready for any method."""

    model: Callable[..., Any]
    inputs: Inputs
    targets: Sequence[Target]
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gradients:
    """The result of one backward pass: explained values, and value and gradient at inputs and layers."""

    output: Tensor  # [N]
    target: Any
    inputs: dict[int, tuple[Tensor, Tensor]]
    layers: dict[str, list[tuple[Tensor, Tensor]]]


@dataclass
class Taps:
    """Reads values and gradients off at named layers."""

    names: tuple[str, ...]
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)

    def callbacks(self, pin: Callable[[Tensor], None] | None = None) -> dict[str, Callable[[Tensor], None]]:
        return {name: lambda out, name=name: self._tap(name, out, pin) for name in self.names}

    def _tap(self, name: str, out: Tensor, pin: Callable[[Tensor], None] | None) -> None:
        if not out.requires_grad:
            raise ModelError(f"layer '{name}' does not depend on the input; no relevance reaches it")
        if pin is not None:
            pin(out)
        values, gradients = self.values.setdefault(name, []), self.gradients.setdefault(name, [])
        position = len(values)
        values.append(out.detach().clone())
        gradients.append(torch.zeros_like(values[-1]))
        out.register_hook(lambda g: gradients.__setitem__(position, g.detach()))

    def read(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Value and gradient of each call of each layer since the last reading."""
        result = {name: list(zip(self.values[name], self.gradients[name], strict=True)) for name in self.values}
        for name, gradients in self.gradients.items():
            gradients[:] = [torch.zeros_like(v) for v in self.values[name]]
        missing = [name for name in self.names if name not in self.values]
        if missing:
            raise ModelError(f"layer '{missing[0]}' was not called in the forward pass; no relevance can be read there")
        return result


def leaves(inputs: Inputs) -> list[Tensor]:
    """The explained inputs as leaves of their own graph; the user's tensors stay as they are."""
    with differentiating():
        parts = [inputs.parts[i] for i in inputs.explained]
        return [(x.clone() if x.is_inference() else x).detach().requires_grad_() for x in parts]


def gradients(
    task: Task,
    sources: list[Tensor],
    contexts: tuple[AbstractContextManager, ...],
    taps: Taps,
    extras: Sequence[Tensor] = (),
    blocked: Callable[[], str] = lambda: "",
) -> Iterator[tuple[Gradients, list[Tensor]]]:
    """One forward within `contexts`, then for each target the gradients at `sources` and at `extras`.

    `blocked` says, for the error message, what may have cut the path from input to output.
    """
    inputs = task.inputs
    with entered(differentiating(), *contexts):
        given = list(inputs.parts)
        for i, source in zip(inputs.explained, sources, strict=True):
            given[i] = source.clone()  # a network may overwrite what it is given
        outputs = inputs.call(task.model, tuple(given))
    for last, target in _with_last(task.targets):
        with entered(differentiating(), *contexts):
            values, resolved = select(outputs, target, inputs.batch_size)
        _check_output(values, blocked)
        found = _backward(values, [*sources, *extras], keep_graph=not last)
        pairs = {i: (s.detach(), g) for i, s, g in zip(inputs.explained, sources, found, strict=False)}
        yield Gradients(values.detach(), resolved, pairs, taps.read()), found[len(sources) :]


@contextmanager
def differentiating() -> Iterator[None]:
    """Gradients on, also within the caller's `no_grad` or `inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def entered(*contexts: AbstractContextManager) -> Iterator[None]:
    """All of the contexts, each of which can be entered again."""
    with ExitStack() as undo:
        for context in contexts:
            undo.enter_context(context)
        yield


def _backward(values: Tensor, sources: list[Tensor], keep_graph: bool) -> list[Tensor]:
    """Gradients of Σ values at the sources, zeros where a source plays no part."""
    try:
        with differentiating():
            found = torch.autograd.grad(values.sum(), sources, retain_graph=keep_graph, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ModelError("the model overwrites a value its gradient needs; run that part out of place, or use LRP") from error
    return [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]


def _check_output(values: Tensor, blocked: Callable[[], str]) -> None:
    if not values.requires_grad:
        raise ModelError(f"the explained output does not depend on the input{blocked()}")
    if not torch.isfinite(values).all():
        raise ModelError("the model's output is NaN or infinite; there is nothing to explain")
    if not values.is_floating_point():
        raise RuleError(f"the explained value has dtype {values.dtype}; it must be floating point")


def _with_last(targets: Iterable[Target]) -> Iterator[tuple[bool, Target]]:
    remaining = list(targets)
    return ((i == len(remaining) - 1, target) for i, target in enumerate(remaining))


def explanation(
    method: object,
    task: Task,
    found: Gradients,
    scores: dict[int, Tensor],
    layers: dict[str, list[Tensor]],
    conservation: Conservation,
) -> Explanation:
    """The explanation in the structure of the inputs; a layer called more than once gives a tuple."""
    return Explanation(
        relevance=task.inputs.together(scores),
        output=found.output,
        target=found.target,
        conservation=conservation,
        layers={name: calls[0] if len(calls) == 1 else tuple(calls) for name, calls in layers.items()},
        inputs=task.inputs.together({i: task.inputs.parts[i] for i in task.inputs.explained}),
        method=method,
    )
