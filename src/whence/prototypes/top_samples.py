"""The samples of a dataset with the highest activation of a concept, or with the highest relevance."""

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
from whence.errors import InputError, RuleError, value_repr
from whence.methods.batching import resolve_batch_size
from whence.methods.layer_reader import LayerReader
from whence.prototypes.objectives import Channel, Concept, Objective, channel_activation, parse_objectives

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class TopSamples(Result):
    """The samples with the highest activation or relevance for each of K concepts, in descending order.

    >>> top = whence.top_samples(model, "features.10:0-15", x_train)
    >>> top.indices, top.values                       # [16, 9]
    >>> whence.prototype(model, "features.10:0-15", shape=(3, 224, 224)).beside(x_train[top.indices]).save("grid.png")

    Args:
        indices: Indices of the samples in the data, `[K, n]`.
        values: Their activation or relevance, `[K, n]`.
        names: Names of the concepts.
        samples: The samples, `[K, n, …]`.
    """

    indices: Tensor
    values: Tensor
    names: list[str]
    samples: Tensor | None = None

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row for each concept and rank: the index of the sample, and its activation or relevance."""
        return [
            {"concept": name, "rank": rank, "index": index, "value": value}
            for name, indices, values in zip(self.names, self.indices.tolist(), self.values.tolist(), strict=True)
            for rank, (index, value) in enumerate(zip(indices, values, strict=True))
        ]

    def figure(self) -> "Figure":
        """Return a figure with a row of samples for each concept, in descending order."""
        from whence.plotting.image_grid import ImageTile, image_rows

        if self.samples is None:
            raise InputError("these top samples have no data to draw; pass samples=")
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
    """Find the samples with the highest activation (ActMax) or relevance (RelMax, Achtibat et al. 2023) of each concept.

    >>> whence.top_samples(model, ["features.10:3", 7], x_train).indices          # [2, 9]
    >>> whence.top_samples(model, "features.10:3", x_train, ranking="relevance").indices

    Activation shows which inputs a channel responds to, relevance for the prediction which inputs it is used for.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        concept: A concept or a list of them, as in `prototype`; with `ranking="relevance"` channels as "layer:channel".
        inputs: Samples `[N, …]`.
        n_samples: Number of samples for each concept.
        ranking: "activation" or "relevance".
        method: Method that computes relevance; None is the default of `explain`.
        batch_size: Samples in a batch; chosen by their size if None.
        progress: Show a progress bar.

    Returns:
        `TopSamples` with indices and values `[K, n_samples]`.

    Raises:
        InputError: `n_samples` is out of range, or a sample gives NaN or infinite values.
        RuleError: Relevance of a concept that is not a channel, or an unknown ranking.
        TargetError: A class, channel or position does not exist.
        SelectorError: A layer does not exist, or the name of a concept cannot be parsed.
    """
    check_model(model)
    concepts = parse_objectives(concept)
    if ranking not in ("activation", "relevance"):
        raise RuleError(f"ranking must be 'activation' or 'relevance', got {value_repr(ranking)}")
    if not 1 <= n_samples <= len(inputs):
        raise InputError(f"n_samples must be from 1 to {len(inputs)}, the number of samples, got {n_samples}")
    size = resolve_batch_size(batch_size, Inputs.of(inputs[:1]))
    if ranking == "activation" and method is not None:
        raise RuleError("method= has no effect with ranking='activation'; pass ranking='relevance'")
    score = _ActivationScore(model, concepts) if ranking == "activation" else _RelevanceScore(model, concepts, method)
    found = []
    with progressing("top samples", len(inputs), progress) as advance:
        for batch in inputs.split(size):
            found.append(score(to_device_of(batch, model)))
            advance(len(batch))
    scores = torch.cat(found, 1)
    if not torch.isfinite(scores).all():
        sample = int((~torch.isfinite(scores)).any(0).nonzero()[0])
        raise InputError(f"sample {sample} gives NaN or infinite values; remove it")
    values, indices = scores.topk(n_samples)
    return TopSamples(indices, values, [str(concept) for concept in concepts], inputs[indices.to(inputs.device)].cpu())


class _ActivationScore:
    def __init__(self, model: Callable[..., Any], concepts: list[Objective]):
        layers = [layer for concept in concepts for layer in concept.layers]
        self._reader = LayerReader(model, layers, any(concept.output for concept in concepts))
        self._concepts = [concept.prepared(lambda x, layers: LayerReader(model, layers)(x)) for concept in concepts]

    def __call__(self, batch: Tensor) -> Tensor:
        """Return activations `[K, samples]`."""
        with torch.no_grad():
            reading = self._reader(batch)
            return torch.stack([concept.value(reading) for concept in self._concepts]).cpu()


class _RelevanceScore:
    def __init__(self, model: Callable[..., Any], concepts: list[Objective], method: Any):
        wrong = [concept for concept in concepts if not isinstance(concept, Channel)]
        if wrong:
            raise RuleError(f"ranking='relevance' needs channels, written 'layer:channel', got {wrong[0]}")
        self._method = method
        self._model, self._channels = model, [concept for concept in concepts if isinstance(concept, Channel)]
        self._layers = list(dict.fromkeys(channel.layer for channel in self._channels))
        self._reader = LayerReader(model, self._layers)

    def __call__(self, batch: Tensor) -> Tensor:
        """Return relevance for the prediction, summed over positions, `[K, samples]`."""
        relevance = explain(self._model, batch, layers=self._layers, method=self._method, progress=False).layers
        of_first_calls = {name: r[0] if isinstance(r, tuple) else r for name, r in relevance.items()}
        reading = self._reader.reading(batch, of_first_calls)
        scores = [channel_activation(reading, c.layer, c.channel).flatten(1).sum(1) for c in self._channels]
        return torch.stack(scores).cpu()
