"""The data's own prototypes: the samples that excite a concept most, or that it is most relevant for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.devices import to_device_of
from whence.core.explain import explain
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress, progress as progressing
from whence.core.result import Result
from whence.errors import InputError, RuleError
from whence.methods.batching import resolve_batch_size
from whence.methods.layer_reader import LayerReader
from whence.prototypes.objectives import Channel, Concept, Objective, channel_activation, parse_objectives

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class TopSamples(Result):
    """The samples of most activation or relevance for each of K concepts, best first.

    >>> top = whence.top_samples(model, "features.10:0-15", x_train)
    >>> top.indices, top.values                       # [16, 9]
    >>> whence.prototype(model, "features.10:0-15", shape=(3, 224, 224)).beside(x_train[top.indices]).save("grid.png")
    """

    indices: Tensor  # [K, n], of the samples in the data
    values: Tensor  # [K, n], their activation or relevance
    names: list[str]  # of the concepts
    samples: Tensor | None = None  # [K, n, …]

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each concept and rank: the index of the sample, and its activation or relevance."""
        return [
            {"concept": name, "rank": rank, "index": index, "value": value}
            for name, indices, values in zip(self.names, self.indices.tolist(), self.values.tolist(), strict=True)
            for rank, (index, value) in enumerate(zip(indices, values, strict=True))
        ]

    def figure(self) -> "Figure":
        """Return a figure with a row for each concept: its samples, best first."""
        from whence.plotting.image_grid import ImageTile, image_rows

        if self.samples is None:
            raise InputError("these top samples were made without their data; nothing to draw")
        return image_rows(
            [
                [
                    ImageTile(x, f"{name if rank == 0 else ''} {value:.3g}".strip())
                    for rank, (x, value) in enumerate(zip(samples, values, strict=True))
                ]
                for name, samples, values in zip(self.names, self.samples, self.values.tolist(), strict=True)
            ]
        )


@check_arguments
def top_samples(
    model: Callable[..., Any],
    concept: Concept | Iterable[Concept],
    inputs: Tensor,
    *,
    n_samples: int = 9,
    ranking: Literal["activation", "relevance"] = "activation",
    method: Any = None,
    batch_size: int | None = None,
    progress: Progress = True,
) -> TopSamples:
    """The `n_samples` samples of `inputs` `[N, …]` that excite each concept most (ActMax), or, `ranking="relevance"`, for whose predictions a
    channel has most relevance (RelMax, Achtibat et al. 2023): what it is used for, rather than what it answers to. `method` is
    that by which relevance is found.

    >>> whence.top_samples(model, ["features.10:3", 7], x_train).indices          # [2, 9]
    >>> whence.top_samples(model, "features.10:3", x_train, ranking="relevance").indices
    """
    check_model(model)
    concepts = parse_objectives(concept)
    if ranking not in ("activation", "relevance"):
        raise RuleError(f"ranking={ranking!r}; choose 'activation' or 'relevance'")
    if not 1 <= n_samples <= len(inputs):
        raise InputError(f"n_samples={n_samples} of {len(inputs)} samples")
    size = resolve_batch_size(batch_size, Inputs.of(inputs[:1]))
    score = _ActivationScore(model, concepts) if ranking == "activation" else _RelevanceScore(model, concepts, method)
    found = []
    with progressing("top samples", len(inputs), progress) as advance:
        for batch in inputs.split(size):
            found.append(score(to_device_of(batch, model)))
            advance(len(batch))
    scores = torch.cat(found, 1)
    if not torch.isfinite(scores).all():
        sample = int((~torch.isfinite(scores)).any(0).nonzero()[0])
        raise InputError(f"sample {sample} gives NaN or infinite values; leave it out")
    values, indices = scores.topk(n_samples)
    return TopSamples(indices, values, [str(concept) for concept in concepts], inputs[indices.to(inputs.device)].cpu())


class _ActivationScore:
    def __init__(self, model: Callable[..., Any], concepts: list[Objective]):
        layers = [layer for concept in concepts for layer in concept.layers]
        self._reader = LayerReader(model, layers, any(concept.output for concept in concepts))
        self._concepts = [concept.prepared(lambda x, layers: LayerReader(model, layers)(x)) for concept in concepts]

    def __call__(self, batch: Tensor) -> Tensor:
        """[K, samples]."""
        with torch.no_grad():
            reading = self._reader(batch)
            return torch.stack([concept.value(reading) for concept in self._concepts]).cpu()


class _RelevanceScore:
    def __init__(self, model: Callable[..., Any], concepts: list[Objective], method: Any):
        wrong = [concept for concept in concepts if not isinstance(concept, Channel)]
        if wrong:
            raise RuleError(f"relevance is that of channels, written 'layer:channel'; {wrong[0]} is none")
        self._method = method
        self._model, self._channels = model, [concept for concept in concepts if isinstance(concept, Channel)]
        self._layers = list(dict.fromkeys(channel.layer for channel in self._channels))
        self._reader = LayerReader(model, self._layers)

    def __call__(self, batch: Tensor) -> Tensor:
        """[K, samples], relevance for the prediction, all places together."""
        relevance = explain(self._model, batch, layers=self._layers, method=self._method, progress=False).layers
        of_first_calls = {name: r[0] if isinstance(r, tuple) else r for name, r in relevance.items()}
        reading = self._reader.reading(batch, of_first_calls)
        scores = [channel_activation(reading, c.layer, c.channel).flatten(1).sum(1) for c in self._channels]
        return torch.stack(scores).cpu()
