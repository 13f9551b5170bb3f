"""The data and the model of an audit: samples by index, and the probability of a class for modified samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from whence.core.channel_layout import input_channel_dim
from whence.core.inputs import Inputs, check_model, has_colours_last
from whence.core.targets import extract_logits
from whence.data.dataset_rows import DatasetRows
from whence.errors import InputError
from whence.methods.batching import automatic_batch_size

KINDS = {2: "table", 3: "series", 4: "pictures"}  # by the number of dimensions of a batch


@dataclass(frozen=True)
class AuditData:
    """The samples that a store was computed from, and the model, or None.

    Args:
        rows: The rows of the dataset.
        model: The model, which returns logits `[N, classes]`, or `[N, 1]` of the second of two classes.
    """

    rows: DatasetRows
    model: Callable[..., Any] | None

    @classmethod
    def of(cls, data: Any, model: Any, read: Any, count: int) -> "AuditData":
        """Wrap a dataset; raise `InputError` if it does not have the samples of a store of `count` explanations."""
        if model is not None:
            check_model(model)
        rows = DatasetRows.of(data, read)
        if rows.count != count:
            raise InputError(
                f"the dataset has {rows.count} samples, but the store was computed from {count}; pass the same dataset"
            )
        return cls(rows, model)

    @cached_property
    def kind(self) -> str:
        """The kind of samples: "pictures", "series", "table", "texts", or "" for others."""
        inputs = self.rows.first.inputs
        if len(inputs.explained) == 1 and not inputs.ids:
            return KINDS.get(inputs.parts[inputs.explained[0]].dim(), "")
        return "texts" if not inputs.explained and _text_part(inputs) is not None else ""

    @cached_property
    def channels_last(self) -> bool:
        """Whether pictures or series have their channels last; marks have them first."""
        inputs = self.rows.first.inputs.beside(self.model)
        x = inputs.parts[self._part(inputs)]
        if self.kind not in ("pictures", "series"):
            return False
        if self.model is None:
            return has_colours_last(x.shape)
        return input_channel_dim(self.model, inputs, x) == x.dim() - 1

    def inputs(self, numbers: Sequence[int] | Tensor, skip_unreadable: bool = False) -> Inputs:
        """Return the samples with these indices, or those of them that can be read."""
        samples, failed = self.rows.read(torch.as_tensor(numbers).tolist())
        if samples is None or (failed and not skip_unreadable):
            why = f"sample {failed[0].index} cannot be read: {failed[0].message}" if failed else "no samples to read"
            raise InputError(f"{why}; pass the dataset that the store was computed from")
        return samples.inputs.beside(self.model)

    def values(self, inputs: Inputs) -> Tensor:
        """Return the values that marks are pasted on: floating-point inputs with their channels first, or token ids."""
        x = inputs.parts[self._part(inputs)]
        return x.movedim(-1, 1) if self.channels_last else x

    def samples(self, numbers: Sequence[int] | Tensor) -> Tensor:
        """Return the values of the samples with these indices."""
        return self.values(self.inputs(numbers))

    def logits(self, inputs: Inputs) -> Tensor:
        """Return the logits `[N, classes]`."""
        assert self.model is not None
        return class_logits(self.model, inputs)

    def probability(self, group: int, inputs: Inputs) -> Callable[[Tensor], Tensor]:
        """Return a function from modified values of these samples to the probability of a class, `[N]`."""

        def probability(values: Tensor) -> Tensor:
            logits = self.logits_of(inputs, values)
            if group >= logits.shape[1]:
                raise InputError(
                    f"class {group} of the store is none of the model's {logits.shape[1]} classes; group by prediction instead"
                )
            return logits.softmax(1)[:, group]

        return probability

    def logits_of(self, inputs: Inputs, values: Tensor) -> Tensor:
        """Return the logits of samples with modified values."""
        part = self._part(inputs)
        values = values.movedim(1, -1) if self.channels_last else values
        return self.logits(replace(inputs, parts=tuple(values if i == part else p for i, p in enumerate(inputs.parts))))

    def _part(self, inputs: Inputs) -> int:
        return inputs.explained[0] if inputs.explained else _text_part(inputs) or 0


@torch.no_grad()
def class_logits(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """Return the logits `[N, classes]`, computed in batches that fit into memory; one logit counts as the second of two."""
    found = []
    for rows in torch.arange(inputs.batch_size).split(automatic_batch_size(inputs)):
        found.append(extract_logits(inputs.of_samples(rows).run(model), len(rows).__eq__, len(rows)).cpu())
    logits = torch.cat(found).double()
    if logits.dim() != 2:
        raise InputError(f"an audit needs logits [N, classes], the model returned {tuple(logits.shape)}")
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def _text_part(inputs: Inputs) -> int | None:
    """Return the position of the token ids among the inputs; None if there are none, or several."""
    ids = [i for i, part in inputs.ids.items() if part.dim() == 2]
    named = [i for i in ids if inputs.names is not None and inputs.names[i] == "input_ids"]
    return (named or ids)[0] if len(named or ids) == 1 else None
