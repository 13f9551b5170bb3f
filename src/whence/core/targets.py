"""Targets, which select the output that is explained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from whence.core.class_indices import check_classes, class_indices
from whence.core.detection import Detection
from whence.core.forward_record import ForwardRecord, InternalTarget
from whence.core.inputs import Inputs
from whence.core.region import Region
from whence.errors import ModelError, TargetError, WhenceError, first_line, is_out_of_memory, value_repr
from whence.lrp.engine.model_outputs import describe_outputs, logits_of
from whence.lrp.torch_compat.deferred_checks import check_holds

Index = None | int | Sequence[int] | Tensor  # None: arg max; one index for all samples, or one for each


@dataclass(frozen=True)
class Logit:
    """Target of the logit of a class or token, optionally at a position of a text, or minus the logit of another.

    >>> whence.Logit(281, rather_than=207)         # why this class rather than that one
    >>> whence.Logit(42)                           # token 42 as the next one
    >>> whence.Logit(position=5)                   # the most likely token after position 5

    Args:
        index: Class or token index, or one per sample; None for the arg max.
        rather_than: Index whose logit is subtracted, or one per sample.
        position: Position in the sequence, for logits `[N, T, vocabulary]`; negative positions count from the last token that
            the attention mask does not mask.
        steps: Number of positions of outputs `[N, T, C]` of inputs without token ids, filled in when the model is explained.

    Raises:
        TargetError: `position` is not an int; or, when the model is explained, an index or position is out of range.
    """

    index: Index = None
    rather_than: Index = None
    position: int = -1
    steps: int | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if not isinstance(self.position, int):
            raise TargetError(f"position must be one int for all samples, got {value_repr(self.position)}")

    def select(self, logits: Tensor, inputs: Inputs) -> "tuple[Tensor, Logit]":
        """Return the values `[N]` of logits `[N, classes]` or `[N, T, vocabulary]`, and the target with indices filled in."""
        rows = self._rows(logits, inputs)
        samples = torch.arange(rows.shape[0], device=rows.device)
        index = _indices(self.index, rows)
        if self.rather_than is None:
            return rows[samples, index], replace(self, index=index)
        other = _indices(self.rather_than, rows)
        return rows[samples, index] - rows[samples, other], replace(self, index=index, rather_than=other)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Logit":
        """Return the target with `change` applied to each of its index tensors."""
        index, other = (change(i) if isinstance(i, Tensor) else i for i in (self.index, self.rather_than))
        return replace(self, index=index, rather_than=other)

    def words(self, name: Callable[[int], str], sample: int) -> str:
        """Return the description of a sample's target, with the names of its classes or tokens."""
        named = [name(int(i[sample])) for i in (self.index, self.rather_than) if isinstance(i, Tensor)]
        place = "" if self.steps is None else f" at position {self.position % self.steps} of {self.steps}"
        return " rather than ".join(named) + place

    def _rows(self, logits: Tensor, inputs: Inputs) -> Tensor:
        if logits.dim() == 2:
            if self.position != -1:
                raise TargetError(
                    f"position {self.position}: the output of shape {tuple(logits.shape)} has no positions; expected [N, T, "
                    "vocabulary]"
                )
            return logits
        last = _last_attended_position(logits, inputs)
        positions = last + self.position + 1 if self.position < 0 else torch.full_like(last, self.position)
        if self.position >= logits.shape[1] or not check_holds(positions >= 0):
            raise TargetError(f"position {self.position} is out of range for a text of {int(last.min()) + 1} tokens")
        return logits[torch.arange(logits.shape[0], device=logits.device), positions]


@dataclass(frozen=True)
class Span:
    """Target of the sum of the logits of the tokens `start` to `stop` − 1, each predicted from the tokens before it.

    >>> whence.explain(model, ids, target=whence.Span(10, 20))        # why did the model write this passage

    Args:
        start: Position of the first token, at least 1.
        stop: Position after the last token; None for the end of the sequence.
        ids: Token ids of the text, filled in when the model is explained, so that perturbed texts have the same target.

    Raises:
        TargetError: When the model is explained, if the span is empty or out of range.
    """

    start: int
    stop: int | None = None  # the end of the sequence
    ids: Tensor | None = field(
        default=None, repr=False, compare=False
    )  # of the text, filled in: those of a perturbed text differ

    def select(self, logits: Tensor, inputs: Inputs) -> "tuple[Tensor, Span]":
        """Return the values `[N]` in logits `[N, T, vocabulary]`, and this target with its ids filled in."""
        ids = _token_ids(logits, inputs) if self.ids is None else self.ids
        if logits.dim() != 3 or ids is None:
            raise TargetError(
                f"a Span needs logits [N, T, vocabulary] and token ids [N, T]; got logits of shape {tuple(logits.shape)}"
            )
        positions = range(*slice(self.start, self.stop).indices(ids.shape[1]))
        if not positions or positions.start < 1 or (self.stop or 0) > ids.shape[1]:
            raise TargetError(
                f"Span({self.start}, {self.stop}) is empty or out of range for a sequence of {ids.shape[1]} tokens; "
                "choose 1 ≤ start < stop ≤ length"
            )
        standing = ids[:, positions.start : positions.stop].long().to(logits.device)
        predicted = logits[:, positions.start - 1 : positions.stop - 1]
        return predicted.gather(2, standing[..., None]).sum((1, 2)), replace(self, ids=ids)

    def words(self, name: Callable[[int], str], sample: int) -> str:
        """Return the description of the target, which is the same for each sample."""
        return f"tokens {self.start} to {'the end' if self.stop is None else self.stop}"


Target = Index | Logit | Span | Region | Detection | InternalTarget | Callable[[Any], Tensor]


def select(outputs: Any, target: Target, inputs: Inputs, reading: ForwardRecord | None = None) -> tuple[Tensor, Any]:
    """Return the explained value of each sample `[N]`, and the target with its indices filled in.

    >>> select(torch.tensor([[1.0, 3.0]]), None, Inputs.of(torch.zeros(1, 2)))
    (tensor([3.]), tensor([1]))

    The returned target is class or token indices `[N]`, a `Logit` or `Span`, or the target function. `reading` has the
    activations for a target inside the network.
    """
    if isinstance(target, InternalTarget):
        return _check_values(_read_internal(target, outputs, reading), inputs), target
    if isinstance(target, Region | Detection):
        return target.select(outputs, inputs)
    if isinstance(target, type) and issubclass(target, Logit | Span | Region | Detection):
        raise TargetError(f"got the class {target.__name__}; pass an instance, whence.{target.__name__}(…)")
    if callable(target):
        function = partial(target.values, count=inputs.batch_size) if isinstance(target, RepeatedTarget) else target
        return _check_values(_call_target(function, outputs, inputs.batch_size), inputs), target
    logits = extract_logits(outputs, inputs.admits, inputs.batch_size)
    if isinstance(target, Span):
        return target.select(logits, inputs)
    asked = target if isinstance(target, Logit) else Logit(target)
    values, resolved = asked.select(logits, inputs)
    if logits.dim() == 3 and _token_ids(logits, inputs) is None:  # a forecast, boxes: which position must be said
        return values, replace(resolved, steps=logits.shape[1])
    return values, resolved if asked is target else resolved.index


def reads_outputs(target: Target) -> bool:
    """Return whether a target indexes the model's outputs (classes or tokens)."""
    return not callable(target) and not isinstance(target, InternalTarget | Detection)


def extract_logits(
    outputs: Any,
    admits: Callable[[int], bool],
    batch_size: int,
    advice: str = "pass target=lambda outputs: … that returns one value per sample",
) -> Tensor:
    """Return the logits `[N, classes]` or `[N, T, vocabulary]` of a model's outputs; `[N, 1]` for one value per sample."""
    logits = logits_of(outputs)
    if not isinstance(logits, Tensor):
        raise TargetError(
            f"the model returns no logits but {describe_outputs(outputs)}; load it with a head (AutoModelFor…), pass "
            f"whence.Region(…) for a map of classes or whence.Detection(…) for boxes, or {advice}"
        )
    shape = tuple(logits.shape)
    if logits.dim() == 1 or (logits.dim() == 0 and batch_size == 1):
        logits = logits.reshape(-1, 1)
    if logits.dim() not in (2, 3) or not admits(logits.shape[0]):
        raise TargetError(
            f"the model's output has shape {shape}; expected [N, classes] or [N, T, vocabulary] with N = {batch_size}, the "
            "size of dimension 0 of the input: give a single sample a batch dimension, x[None], transpose sequences "
            f"[T, N, C], pass whence.Region(class) for a map [N, classes, H, W], or {advice}"
        )
    return logits


def repeat_target(target: Target, times: int) -> Target:
    """Return the target of a batch that is repeated `times` times; its indices must be filled in.

    >>> repeat_target(torch.tensor([3, 5]), 2)
    tensor([3, 5, 3, 5])
    """
    if isinstance(target, RepeatedTarget):  # by a method around another one
        return RepeatedTarget(target.function, times * target.times)
    if times > 1 and callable(target) and not isinstance(target, Logit | Span | InternalTarget):
        return RepeatedTarget(target, times)
    return _map_indices(target, lambda of_samples: of_samples.repeat(times, *[1] * (of_samples.dim() - 1)))


@dataclass(frozen=True)
class RepeatedTarget:
    """A target function for a batch that is repeated: one that does not give one value per sample is called for each round.

    `lambda out: out[0, 2, 8, 8][None]`, a pixel of one image, would give one value for all copies of the image.
    """

    function: Callable[[Any], Tensor]
    times: int

    def __call__(self, outputs: Any) -> Tensor:
        return self.function(outputs)

    def values(self, outputs: Any, count: int) -> Any:
        """Return one value for each of `count` samples, or those of each round one after the other."""
        values = self.function(outputs)
        if not isinstance(values, Tensor) or values.shape == (count,):
            return values
        if not any(_has_rows(t, count) for t in tree_leaves(outputs)):
            raise TargetError(
                f"the target function returned values of shape {tuple(values.shape)} for {count} altered samples, whose "
                "outputs cannot be told apart; return one value per sample"
            )
        rounds = (
            tree_map(lambda t, i=i: t.chunk(self.times)[i] if _has_rows(t, count) else t, outputs) for i in range(self.times)
        )
        return torch.cat([self.function(of_round) for of_round in rounds])


def _has_rows(t: Any, count: int) -> bool:
    return isinstance(t, Tensor) and t.dim() > 0 and t.shape[0] == count


def select_target_samples(target: Target, samples: slice | Tensor) -> Target:
    """Return the target of some samples; its indices must be filled in."""
    return _map_indices(target, lambda index: index[samples] if index.dim() else index)


def _map_indices(target: Target, change: Callable[[Tensor], Tensor]) -> Target:
    if isinstance(target, Logit | Region | Detection):
        return target.mapped(change)
    if isinstance(target, Span):
        return target if target.ids is None else replace(target, ids=change(target.ids))
    return change(target) if isinstance(target, Tensor) else target


def _last_attended_position(logits: Tensor, inputs: Inputs) -> Tensor:
    """Return the position of the last token that is not padding, `[N]`."""
    mask = inputs.named("decoder_attention_mask")
    if mask is None and inputs.named("decoder_input_ids") is None:
        mask = inputs.named("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != logits.shape[:2]:
        return torch.full((logits.shape[0],), logits.shape[1] - 1, device=logits.device)
    return (mask.bool() * torch.arange(mask.shape[1], device=mask.device)).argmax(1).to(logits.device)


def _token_ids(logits: Tensor, inputs: Inputs) -> Tensor | None:
    """Return the token ids of the same shape `[N, T]` as the logits; the decoder's take precedence over the encoder's."""
    named = [inputs.named(name) for name in ("decoder_input_ids", "input_ids")]
    given = named if inputs.names else inputs.ids.values()
    return next((t for t in given if isinstance(t, Tensor) and t.shape == logits.shape[:2]), None)


def _indices(target: Any, logits: Tensor) -> Tensor:
    count, classes = logits.shape
    if target is None:
        return logits.detach().argmax(1)
    indices = class_indices(target, count, device=logits.device)
    check_classes(indices, classes)
    return indices.clamp(
        0, classes - 1
    )  # captured graphs check later; on an accelerator an index out of range would end the process


def _call_target(target: Callable[[Any], Tensor], outputs: Any, batch_size: int) -> Any:
    try:
        return target(outputs)
    except (RuntimeError, IndexError) as error:  # torch's errors for unexpected shapes; other errors are the caller's
        if isinstance(error, WhenceError) or is_out_of_memory(error):
            raise
        raise TargetError(
            f"the target function failed on the outputs of {batch_size} samples: {first_line(error)}. It must accept any "
            "number of samples, because many methods evaluate larger batches (for one index per sample pass target=tensor)"
        ) from error


def _read_internal(target: InternalTarget, outputs: Any, reading: ForwardRecord | None) -> Tensor:
    if reading is None:
        raise TargetError(
            f"the target {target} is inside the network, which is not supported here; pass a class or a function of the outputs"
        )
    missing = [layer for layer in target.layers if layer not in reading.layers]
    if missing:
        raise ModelError(f"layer '{missing[0]}' was not called in the forward pass; choose a layer that the model calls")
    return target.value(replace(reading, output=outputs))


def _check_values(values: Any, inputs: Inputs) -> Tensor:
    if not isinstance(values, Tensor) or values.dim() != 1 or not inputs.admits(values.shape[0]):
        given, batch_size = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__, inputs.batch_size
        raise TargetError(
            f"the target returned {given}; expected one value for each of the {batch_size} samples: [{batch_size}]. "
            "It must accept any number of samples, because many methods evaluate larger batches"
        )
    return values
