"""`concepts`: the channels of a layer that an output relies on, where they are relevant, and what they represent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.conditions import check_indices
from whence.core.devices import to_device_of
from whence.core.explain import explain, explain_targets
from whence.core.explanation import Explanation
from whence.core.inputs import check_model
from whence.core.progress import Progress
from whence.core.result import Result
from whence.core.targets import Target
from whence.errors import InputError, RuleError, SelectorError
from whence.mechanistic.channel_relevance import (
    last_conv_layer,
    receptive_field,
    relevance_channels_last,
    resolve_layer,
    sum_by_channel,
    top_channels,
    unravel,
)
from whence.methods.registry import Method
from whence.prototypes.activation_maximization import prototype
from whence.prototypes.objectives import Channel
from whence.prototypes.top_samples import top_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_CHANNELS = 5
N_REFERENCES = 4


@dataclass(frozen=True)
class ReferenceSample:
    """A sample of the dataset where a channel is most relevant, cropped to the receptive field of its most relevant position.

    Args:
        index: Number of the sample in the dataset.
        crop: The crop of the image, `[C, h, w]`.
        relevance: The relevance that flows through the channel, like the crop.
    """

    index: int
    crop: Tensor
    relevance: Tensor


@dataclass(frozen=True, repr=False, eq=False)
class Concepts(Result):
    """The channels of a layer that an output relies on, the most relevant first.

    >>> found = whence.concepts(model, photo, "features.12", reference_inputs=x_train)
    >>> found.channels, found.shares               # [k], of the output
    >>> found.explanations[0].relevance            # the relevance that flows through the first channel
    >>> found.save("concepts.png")

    Args:
        layer: The layer.
        channels: The chosen channels, the most relevant first.
        relevance: The relevance of every channel of the layer, `[C]`.
        explanation: The explanation of the output.
        explanations: The explanation through each of the chosen channels.
        references: The reference samples of each chosen channel; empty without reference inputs.
        prototypes: The prototype of each chosen channel, `[k, C, H, W]`, if requested.
    """

    layer: str
    channels: list[int]
    relevance: Tensor
    explanation: Explanation
    explanations: Sequence[Explanation]
    references: Sequence[Sequence[ReferenceSample]] = ()
    prototypes: Tensor | None = None

    @property
    def shares(self) -> Tensor:
        """The relevance of each chosen channel as a share of the output, `[k]`."""
        return self.relevance[self.channels] / self.explanation.output[0]

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each chosen channel: its relevance, its share of the output, and its reference samples."""
        rows = zip(self.channels, self.relevance[self.channels].tolist(), self.shares.tolist(), strict=True)
        references = [[reference.index for reference in of_channel] for of_channel in self.references] or [[]] * len(
            self.channels
        )
        return [
            {"channel": channel, "relevance": relevance, "share": share, "references": indices}
            for (channel, relevance, share), indices in zip(rows, references, strict=True)
        ]

    def __repr__(self) -> str:
        (name,) = self.explanation.target_names()
        head = f"Concepts of {name} ({float(self.explanation.output):.4g}) in {self.layer}"
        lines = [f"  channel {c}: {share:.1%}" for c, share in zip(self.channels, self.shares.tolist(), strict=True)]
        return "\n".join([head, *lines])

    def figure(self) -> "Figure":
        """Return a figure of the image and its heatmap, with a row per channel: heatmap, reference samples, prototype."""
        from whence.plotting.concepts import ConceptRow, concept_figure

        x, output = self.explanation.inputs[0], float(self.explanation.output)
        rows = []
        for k, (channel, e) in enumerate(zip(self.channels, self.explanations, strict=True)):
            references = self.references[k] if self.references else ()
            made = None if self.prototypes is None else self.prototypes[k]
            title = f"channel {channel}\n{float(self.shares[k]):.1%} of the output"
            rows.append(ConceptRow(title, e.relevance[0], [(r.crop, r.relevance) for r in references], made))
        return concept_figure(
            x, self.explanation.relevance[0], f"{self.explanation.heading()}:  f = {output:.4g}", self.layer, rows
        )


@check_arguments
def concepts(
    model: Callable[..., Any],
    inputs: Tensor,
    layer: str | None = None,
    target: Target = None,
    *,
    channels: int | Sequence[int] = N_CHANNELS,
    reference_inputs: Tensor | None = None,
    n_references: int = N_REFERENCES,
    prototypes: bool | Mapping[str, Any] = False,
    method: Method | str | None = None,
    class_names: Any = (),
    progress: Progress = True,
) -> Concepts:
    """Find the channels of a layer that an output relies on (concept relevance propagation, Achtibat et al. 2023).

    >>> whence.concepts(model, photo, "features.12", reference_inputs=x_train).save("concepts.png")
    Concepts of 207 golden retriever (14.2) in features.12
      channel 85: 12.3%

    The reference samples of a channel are those for whose predictions it is most relevant (RelMax), cropped to the receptive
    field of its most relevant position. A prototype is an image that maximises the activation of the channel.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: One image `[1, C, H, W]`.
        layer: Module path; by default the last convolution whose channels are not the classes.
        target: What is explained, as for `explain`; the predicted class by default.
        channels: Number of most relevant channels, or the indices of channels.
        reference_inputs: Images `[M, C, H, W]` from which the reference samples of each channel are selected.
        n_references: Number of reference samples of each channel.
        prototypes: True to add a prototype of each channel, or keyword arguments of `whence.prototype`.
        method: A method or its short name; LRP with its default rules if not given.
        class_names: Names of the classes, for the figure.
        progress: False for no progress bar, or a function that is called with (done, total).

    Returns:
        A `Concepts` result.

    Raises:
        InputError: If `inputs` is not one image.
        SelectorError: If the model has no such layer or channel.
        RuleError: If `channels` or `n_references` is invalid.
    """
    check_model(model)
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or len(inputs) != 1:
        raise InputError(f"concepts needs one image [1, C, H, W], got {getattr(inputs, 'shape', type(inputs))}")
    layer = last_conv_layer(model, inputs) if layer is None else resolve_layer(model, layer)
    if n_references < 0:
        raise RuleError(f"n_references={n_references}; expected a number of samples per channel, or 0 for none")
    whole = explain(model, inputs, target, method=method, layers=[layer], class_names=class_names, progress=False)
    relevance = sum_by_channel(model, whole, layer)[0]
    chosen = _select_channels(channels, relevance, float(whole.output))
    through = [{layer: c} for c in chosen]
    parts = list(explain_targets(model, inputs, [whole.target], method=method, through=through, class_names=class_names))
    found: list[list[ReferenceSample]] = []
    if reference_inputs is None and n_references not in (0, N_REFERENCES):
        raise RuleError(f"n_references={n_references} has no effect without reference_inputs")
    if reference_inputs is not None and n_references:
        channels_of = [Channel(layer, c) for c in chosen]
        count = min(n_references, len(reference_inputs))
        top = top_samples(
            model, channels_of, reference_inputs, n_samples=count, ranking="relevance", method=method, progress=progress
        )
        found = [_reference_samples(model, layer, c, reference_inputs, top.indices[k], method) for k, c in enumerate(chosen)]
    made = None
    if prototypes:
        settings = prototypes if isinstance(prototypes, Mapping) else {}
        concepts = [Channel(layer, c) for c in chosen]
        made = prototype(model, concepts, shape=tuple(inputs.shape[1:]), progress=progress, **settings).images
    return Concepts(layer, chosen, relevance, whole, parts, found, made)


def _select_channels(channels: int | Sequence[int], relevance: Tensor, output: float) -> list[int]:
    given = channels.tolist() if isinstance(channels, Tensor | np.ndarray | np.generic) else channels
    if isinstance(given, int):
        return top_channels(relevance, given, output)
    if not given:
        raise SelectorError("channels=[]; expected a number of channels, or the channel indices")
    return check_indices(given, len(relevance), "channel")


def _reference_samples(
    model: Callable[..., Any], layer: str, channel: int, data: Tensor, indices: Tensor, method: Method | str | None
) -> list[ReferenceSample]:
    """Return the cropped reference samples of one channel."""
    x = to_device_of(data[indices], model)
    e = explain(model, x, method=method, layers=[layer], through={layer: channel}, progress=False)
    at_layer = relevance_channels_last(model, e, layer)[..., channel]
    found = []
    for i, index in enumerate(indices.tolist()):
        position = unravel(int(at_layer[i].argmax()), at_layer[i].shape)
        window = receptive_field(model, x[i : i + 1], layer, channel, position)
        found.append(ReferenceSample(index, window.of(x[i]), window.of(e.relevance[i])))
    return found
