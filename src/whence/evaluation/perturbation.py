"""The model's scores when regions of its input are removed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from whence.errors import InputError
from whence.evaluation.evaluation_batch import EvaluationBatch, Score
from whence.evaluation.imputers import FillFunction, Imputer, make_imputer
from whence.evaluation.regions import Regions, RegionSpec
from whence.methods.batching import run_batched


@dataclass(frozen=True)
class Removal:
    """How regions of the input are removed: which regions, by which values they are replaced, and which score is computed.

    >>> removal = whence.metrics.Removal(regions=8, imputer="blur", score="probability")
    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.SRG(whence.metrics.RegionFlipping(removal))])

    Args:
        regions: "pixels", the side length of square patches, a mask of region numbers, or a function from inputs to such a mask
            (`lambda x: whence.superpixels(x, 100)`). Defaults to patches of images, about fourteen per side, and to single
            columns, entries or tokens of other inputs.
        imputer: A number or token id, "mean", "blur", "inpainting", or an imputer of `whence.imputers`.
        score: "logit", "probability", or "logit_difference" to the class that has the second largest logit for the whole input.
        batch_size: The number of samples that the model runs at once; None chooses it by the size of the input.
    """

    regions: RegionSpec = None
    imputer: Imputer | float | str | Tensor = "mean"
    score: Score = "logit"
    batch_size: int | None = None

    def __post_init__(self):
        make_imputer(self.imputer)

    def regions_of(self, batch: EvaluationBatch) -> Regions:
        """Return the regions of the batch."""
        parts = self._parts(batch)
        return batch.once(("regions", cache_key(self.regions)), lambda: Regions.of(self.regions, batch.inputs, parts))

    def whole(self, batch: EvaluationBatch) -> Tensor:
        """Return the scores of the unmodified inputs, `[N]`."""
        return batch.asked(self.score).outputs[0]

    def scores(self, batch: EvaluationBatch, count: int, chosen: Callable[[slice], Tensor]) -> Tensor:
        """Compute the scores `[count, N]` of inputs with regions removed.

        `chosen` returns, for a slice of the `count` rounds, which regions are removed, `[rounds, N, regions]`.
        """
        regions, ask, draws = self.regions_of(batch), batch.asked(self.score), self._fills(batch)

        def removed(rounds: slice) -> Tensor:
            hidden = regions.entries(chosen(rounds))
            found = [ask({i: fill(hidden[i]).flatten(0, 1) for i, fill in draw.items()})[0] for draw in draws]
            return reduce(torch.add, found) / len(found)

        return torch.cat(list(run_batched(self, batch.task, count, removed, self.batch_size)))

    def _fills(self, batch: EvaluationBatch) -> list[dict[int, FillFunction]]:
        """Return the fill functions of each draw of the imputer, by input part."""
        imputer, random = make_imputer(self.imputer), batch.random("imputer")
        parts, values = self._parts(batch), batch.inputs.parts

        def drawn() -> list[dict[int, FillFunction]]:
            by_part = [imputer.fills(values[i], random) for i in parts]
            return [dict(zip(parts, fills, strict=True)) for fills in zip(*by_part, strict=True)]

        return batch.once(("fills", cache_key(self.imputer)), drawn)

    def _parts(self, batch: EvaluationBatch) -> list[int]:
        """Return the input parts from which regions are removed: the explained ones or, if there are none, token ids."""
        found = list(batch.inputs.explained) or [
            i for i in batch.inputs.ids if not (batch.inputs.names or {i: ""})[i].endswith(("mask", "token_type_ids"))
        ]
        if not found:
            raise InputError("no input can be removed: expected floating-point inputs or token ids")
        return found


def cache_key(spec: Any) -> Any:
    """Return the object itself if it is hashable, otherwise its `id`."""
    try:
        hash(spec)
    except TypeError:
        return id(spec)
    return spec
