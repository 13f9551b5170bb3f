"""What the model says when regions of its input are taken away."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from whence.errors import InputError
from whence.evaluation.case import EvaluationBatch, Score
from whence.evaluation.imputers import FillFunction, Imputer, make_imputer
from whence.evaluation.regions import Regions, RegionSpec
from whence.methods.batching import run_batched


@dataclass(frozen=True)
class Removal:
    """Which regions are taken away, what stands in their place, and what is read of the output.

    `regions`: patches of pictures, some fourteen a side, and single columns, entries or tokens if not given; "pixels", the side
    of square patches, a mask of numbers or a function that makes one (`lambda x: whence.superpixels(x, 100)`). `imputer`: a
    number or id, "mean", "blur", "inpainting" or one of `whence.imputers`. `score`: "logit", "probability", or
    "logit_difference", to the runner-up on the whole input.
    """

    regions: RegionSpec = None
    imputer: Imputer | float | str | Tensor = "mean"
    score: Score = "logit"
    batch_size: int | None = None

    def __post_init__(self):
        make_imputer(self.imputer)

    def regions_of(self, batch: EvaluationBatch) -> Regions:
        parts = self._parts(batch)
        return batch.once(("regions", cache_key(self.regions)), lambda: Regions.of(self.regions, batch.inputs, parts))

    def whole(self, batch: EvaluationBatch) -> Tensor:
        """The scores with everything there, `[N]`."""
        return batch.asked(self.score).outputs[0]

    def scores(self, batch: EvaluationBatch, count: int, chosen: Callable[[slice], Tensor]) -> Tensor:
        """The scores `[count, N]` of as many rounds; `chosen` gives the regions taken away in some of them,
        `[rounds, N, regions]`."""
        regions, ask, draws = self.regions_of(batch), batch.asked(self.score), self._fills(batch)

        def removed(rounds: slice) -> Tensor:
            hidden = regions.entries(chosen(rounds))
            found = [ask({i: fill(hidden[i]).flatten(0, 1) for i, fill in draw.items()})[0] for draw in draws]
            return reduce(torch.add, found) / len(found)

        return torch.cat(list(run_batched(self, batch.task, count, removed, self.batch_size)))

    def _fills(self, batch: EvaluationBatch) -> list[dict[int, FillFunction]]:
        """One for each draw of the imputer, by part."""
        imputer, random = make_imputer(self.imputer), batch.random("imputer")
        parts, values = self._parts(batch), batch.inputs.parts

        def drawn() -> list[dict[int, FillFunction]]:
            by_part = [imputer.fills(values[i], random) for i in parts]
            return [dict(zip(parts, fills, strict=True)) for fills in zip(*by_part, strict=True)]

        return batch.once(("fills", cache_key(self.imputer)), drawn)

    def _parts(self, batch: EvaluationBatch) -> list[int]:
        """The parts that are taken away: those that are explained, numbers before ids."""
        found = list(batch.inputs.explained) or [
            i for i in batch.inputs.ids if not (batch.inputs.names or {i: ""})[i].endswith(("mask", "token_type_ids"))
        ]
        if not found:
            raise InputError("no input can be taken away: there are neither numbers nor ids")
        return found


def cache_key(spec: Any) -> Any:
    """Of what may be no key, its place in memory."""
    try:
        hash(spec)
    except TypeError:
        return id(spec)
    return spec
