"""Objectives that prototypes maximise: an output, a channel, a neuron, a direction, or sums of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.core.forward_record import ForwardRecord
from whence.core.inputs import Inputs
from whence.core.targets import Logit, Span, select
from whence.core.trees import short_repr
from whence.errors import InputError, RuleError, SelectorError, TargetError, value_repr

MIN_COSINE = 0.1  # lower bound of the cosine, so that the gradient does not vanish (Olah et al. 2017)


class Objective:
    """A value of a model to maximise; objectives can be added and weighted, as in `a - b` or `0.5 * a + b`.

    >>> class Logit(whence.objectives.Objective):
    ...     output = True
    ...     def value(self, reading):
    ...         return reading.output[:, 3]

    Subclasses define `value`, and name the layers that it reads in `layers`, or set `output = True`.
    """

    layers: tuple[str, ...] = ()  # layers that `value` reads
    output: bool = False

    def value(self, reading: ForwardRecord) -> Tensor:
        """Return one value for each sample of the forward pass, `[samples]`."""
        raise NotImplementedError

    def prepared(self, read: Callable[[Tensor, Sequence[str]], ForwardRecord]) -> "Objective":
        """Return the objective with precomputed values of the model, such as the activations of a photo."""
        return self

    def __add__(self, other: "Objective") -> "Weighted":
        if not isinstance(other, Objective):
            return NotImplemented
        return Weighted(self._terms + other._terms)

    def __radd__(self, other: object) -> "Objective":
        return self if other == 0 else NotImplemented  # sum() begins with 0

    def __mul__(self, weight: float) -> "Weighted":
        if not isinstance(weight, Real):
            return NotImplemented
        return Weighted(tuple((w * weight, term) for w, term in self._terms))

    __rmul__ = __mul__

    def __neg__(self) -> "Weighted":
        return self * -1.0

    def __sub__(self, other: "Objective") -> "Weighted":
        return self + -other

    @property
    def _terms(self) -> "tuple[tuple[float, Objective], ...]":
        return ((1.0, self),)


@dataclass(frozen=True)
class Weighted(Objective):
    """A weighted sum of objectives."""

    terms: tuple[tuple[float, Objective], ...]

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(layer for _, term in self.terms for layer in term.layers))

    @property
    def output(self) -> bool:  # type: ignore[override]
        return any(term.output for _, term in self.terms)

    def value(self, reading: ForwardRecord) -> Tensor:
        return torch.stack([weight * term.value(reading) for weight, term in self.terms]).sum(0)

    def prepared(self, read: Callable[[Tensor, Sequence[str]], ForwardRecord]) -> Objective:
        return Weighted(tuple((weight, term.prepared(read)) for weight, term in self.terms))

    @property
    def _terms(self) -> tuple[tuple[float, Objective], ...]:
        return self.terms

    def __str__(self) -> str:
        signs = [("− " if weight < 0 else "+ ") + ("" if abs(weight) == 1 else f"{abs(weight):g} ") for weight, _ in self.terms]
        return " ".join(f"{sign}{term}" for sign, (_, term) in zip(signs, self.terms, strict=True)).removeprefix("+ ")


@dataclass(frozen=True)
class Output(Objective):
    """A target as in `explain`: the logit of a class, a `Logit`, or a callable of the outputs."""

    target: Any
    output: bool = field(default=True, init=False)

    def value(self, reading: ForwardRecord) -> Tensor:
        return select(reading.output, self.target, Inputs((reading.x,), single=True))[0]

    def __str__(self) -> str:
        if isinstance(self.target, Logit):
            other = "" if self.target.rather_than is None else f" rather than {self.target.rather_than}"
            return f"{self.target.index}{other}"
        return getattr(self.target, "__name__", str(self.target))


@dataclass(frozen=True)
class LogProbability(Objective):
    """The log-probability log p(ω|x) of a class, by a softmax over the outputs.

    >>> whence.prototype(model, whence.objectives.LogProbability(3), prior=expert)

    It saturates at 0, where a logit grows without bound: with an expert as prior it gives the likeliest input of the class.

    Args:
        index: Index of the class.
    """

    index: int
    output: bool = field(default=True, init=False)

    def value(self, reading: ForwardRecord) -> Tensor:
        logit, _ = select(reading.output, self.index, Inputs((reading.x,), single=True))
        return logit - getattr(reading.output, "logits", reading.output).logsumexp(1)

    def __str__(self) -> str:
        return f"log p({self.index})"


@dataclass(frozen=True)
class Channel(Objective):
    """The mean activation of a channel over all positions, or of a unit if the layer has no positions.

    >>> whence.prototype(model, whence.objectives.Channel("features.10", 3), shape=(3, 224, 224))      # or "features.10:3"

    Args:
        layer: Name of the layer.
        channel: Index of the channel or unit.
    """

    layer: str
    channel: int

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.layer,)

    def value(self, reading: ForwardRecord) -> Tensor:
        places = channel_activation(reading, self.layer, self.channel)
        return places.reshape(len(places), -1).mean(1)

    def __str__(self) -> str:
        return f"{self.layer}:{self.channel}"


@dataclass(frozen=True)
class Neuron(Objective):
    """The activation of a channel at one position.

    >>> whence.prototype(model, whence.objectives.Neuron("features.10", 3, position=(5, 7)), shape=(3, 224, 224))

    Args:
        layer: Name of the layer.
        channel: Index of the channel.
        position: Index along each dimension but samples and channels; None is the center.
    """

    layer: str
    channel: int
    position: tuple[int, ...] | None = None

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.layer,)

    def value(self, reading: ForwardRecord) -> Tensor:
        places = channel_activation(reading, self.layer, self.channel)
        position = tuple(n // 2 for n in places.shape[1:]) if self.position is None else self.position
        _check_position(position, tuple(places.shape[1:]), self.layer)
        return places[(slice(None), *position)]

    def __str__(self) -> str:
        return f"{self.layer}:{self.channel} " + ("in the middle" if self.position is None else f"at {self.position}")


@dataclass(frozen=True, eq=False)
class Direction(Objective):
    """A direction v in activations a: aᵀv · max(0.1, cos(a, v))^cosine, averaged over positions (Olah et al. 2017).

    >>> whence.prototype(model, whence.objectives.Direction("features.10", a_cat - a_dog), shape=(3, 224, 224))

    With `cosine=0` the objective is the plain projection, and a one-hot vector is a channel.

    Args:
        layer: Name of the layer.
        vector: The direction, `[channels]`.
        cosine: Exponent of the cosine.
        position: One position instead of the mean over all.
        name: Name in titles and tables.
    """

    layer: str
    vector: Tensor
    cosine: float = 1.0
    position: tuple[int, ...] | None = None
    name: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.layer,)

    def value(self, reading: ForwardRecord) -> Tensor:
        a = _activation_channels_last(reading, self.layer)
        if not isinstance(self.vector, Tensor) or self.vector.shape != a.shape[-1:]:
            raise TargetError(
                f"direction {short_repr(self.vector)} does not fit layer '{self.layer}'; pass a tensor of {a.shape[-1]} values"
            )
        v = self.vector.to(a)
        if self.position is not None:
            _check_position(self.position, tuple(a.shape[1:-1]), self.layer)
            return _dot_cosine(a[(slice(None), *self.position)], v, self.cosine)
        return _dot_cosine(a, v, self.cosine).reshape(len(a), -1).mean(1)

    def __str__(self) -> str:
        return self.name or f"direction in {self.layer}"


@dataclass(frozen=True)
class Layer(Objective):
    """The mean square of all activations of a layer, as in DeepDream (Mordvintsev et al. 2015).

    >>> whence.prototype(model, whence.objectives.Layer("features.10"), start=photo)

    Args:
        layer: Name of the layer.
    """

    layer: str

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.layer,)

    def value(self, reading: ForwardRecord) -> Tensor:
        return reading.layers[self.layer].square().flatten(1).mean(1)

    def __str__(self) -> str:
        return self.layer


@dataclass(frozen=True, eq=False)
class _ReferenceObjective(Objective):
    """An objective that compares a layer's activations with those on a photo."""

    layer: str
    photo: Tensor  # [1, …]
    _activation: Tensor | None = field(default=None, repr=False, kw_only=True)

    @property
    def layers(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.layer,)

    def prepared(self, read: Callable[[Tensor, Sequence[str]], ForwardRecord]) -> Objective:
        return replace(self, _activation=_reference_activation(self, read))

    def _both(self, reading: ForwardRecord) -> tuple[Tensor, Tensor]:
        """Return activations `[K, numbers]`, and those on the photo `[numbers]`."""
        a = reading.layers[self.layer].flatten(1)
        if self._activation is None:
            raise TargetError(
                f"{type(self).__name__} needs the activations of its photo, which only prototype() and top_samples() compute"
            )
        _check_same_size(a, self._activation, self.layer)
        return a, self._activation.flatten()


@dataclass(frozen=True, eq=False)
class Caricature(_ReferenceObjective):
    """aᵀa₀ · max(0.1, cos(a, a₀))^cosine for activations a₀ of a photo, which exaggerates what a layer detects in it.

    >>> whence.prototype(model, whence.objectives.Caricature("features.10", photo), shape=photo.shape[1:])

    Args:
        layer: Name of the layer.
        photo: A batch of one input, `[1, …]`.
        cosine: Exponent of the cosine.
    """

    cosine: float = 1.0

    def value(self, reading: ForwardRecord) -> Tensor:
        a, of_photo = self._both(reading)
        return _dot_cosine(a, of_photo / of_photo.norm(), self.cosine)

    def __str__(self) -> str:
        return f"caricature at {self.layer}"


@dataclass(frozen=True, eq=False)
class Inversion(_ReferenceObjective):
    """−‖a − a₀‖² / ‖a₀‖² for activations a₀ of a photo, which reconstructs the photo from a layer.

    >>> whence.prototype(model, whence.objectives.Inversion("features.10", photo), shape=photo.shape[1:])

    Equations 1 and 4 of Mahendran and Vedaldi 2015; the result shows which information the layer preserves.

    Args:
        layer: Name of the layer.
        photo: A batch of one input, `[1, …]`.
    """

    def value(self, reading: ForwardRecord) -> Tensor:
        a, of_photo = self._both(reading)
        return -(a - of_photo).square().sum(1) / of_photo.square().sum()

    def __str__(self) -> str:
        return f"inversion of {self.layer}"


Concept = Any  # a class, a Logit, "layer:channel", "layer", an Objective, or a callable from outputs to [samples]


def parse_objectives(target: Concept | Iterable[Concept]) -> list[Objective]:
    """Return the objectives of one concept or of several.

    >>> [str(o) for o in parse_objectives(["features.10:0-2", 7])]
    ['features.10:0', 'features.10:1', 'features.10:2', '7']
    """
    if isinstance(target, Tensor):
        target = target.tolist()
    if isinstance(target, Mapping):
        raise TargetError("targets were passed as a dict; pass a list of concepts")
    several = target if isinstance(target, Iterable) and not isinstance(target, str | Objective) else [target]
    found = [objective for concept in several for objective in _parse_one(concept)]
    if not found:
        raise TargetError("no target given: expected a class, 'layer:channel', an objective or a list of these")
    return found


def _parse_one(concept: Concept) -> list[Objective]:
    if isinstance(concept, Objective):
        return [concept]
    if isinstance(concept, str):
        return _parse_name(concept)
    concept = int(concept) if isinstance(concept, Integral) and not isinstance(concept, bool) else concept
    if isinstance(concept, bool) or not (isinstance(concept, int | Logit) or callable(concept)) or isinstance(concept, Span):
        raise TargetError(
            f"invalid target: expected a class, 'layer:channel', an objective or a callable, got {value_repr(concept)}"
        )
    return [Output(concept)]


def _parse_name(name: str) -> list[Objective]:
    layer, colon, channels = name.rpartition(":")
    if not colon:
        return [Layer(name)]
    first, dash, last = channels.partition("-")
    if not layer or not first.isdecimal() or (dash and not last.isdecimal()):
        raise SelectorError(f"invalid target {name!r}: expected 'layer:channel' as in 'features.10:3', or 'features.10:0-15'")
    return [Channel(layer, channel) for channel in range(int(first), int(last or first) + 1)]


def _activation_channels_last(reading: ForwardRecord, layer: str) -> Tensor:
    """Return activations `[K, …, channels]`."""
    return reading.layers[layer].movedim(reading.channels_at(layer), -1)


def _check_position(position: tuple[int, ...], places: tuple[int, ...], layer: str) -> None:
    if len(position) != len(places) or not all(0 <= p < n for p, n in zip(position, places, strict=True)):
        raise TargetError(f"position {position} is out of range: layer '{layer}' has positions {places}")


def channel_activation(reading: ForwardRecord, layer: str, channel: int) -> Tensor:
    """Return the activations `[K, …]` of one channel of a layer, or raise `TargetError`."""
    a = _activation_channels_last(reading, layer)
    if not 0 <= channel < a.shape[-1]:
        raise TargetError(f"channel {channel} is out of range: layer '{layer}' has channels 0 to {a.shape[-1] - 1}")
    return a[..., channel]


def _dot_cosine(a: Tensor, v: Tensor, cosine: float) -> Tensor:
    product = a @ v
    return product * F.cosine_similarity(a, v, dim=-1).clamp(min=MIN_COSINE) ** cosine if cosine else product


def _reference_activation(objective: _ReferenceObjective, read: Callable[[Tensor, Sequence[str]], ForwardRecord]) -> Tensor:
    photo = objective.photo
    if photo.dim() < 2 or len(photo) != 1:
        raise InputError(f"photo must be a batch of one, got shape {tuple(photo.shape)}")
    found = read(photo, [objective.layer]).layers[objective.layer].detach()
    if not torch.isfinite(found).all() or not found.any():
        raise InputError(
            f"the activations of layer '{objective.layer}' on the photo are zero or not finite; choose another layer"
        )
    return found


def _check_same_size(a: Tensor, of_photo: Tensor, layer: str) -> None:
    if a.shape[1] != of_photo.numel():
        raise RuleError(
            f"layer '{layer}' has {a.shape[1]} activations, but {of_photo.numel()} on the photo; pass shape=photo.shape[1:]"
        )
