"""Conditions: the parts of a layer through which relevance flows, such as channels, positions, heads or directions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from whence.errors import SelectorError, value_repr


@runtime_checkable
class LayerPart(Protocol):
    """Protocol of parts of a layer; activations and gradients have their channels last."""

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        """Return the share of the gradient g = R/a `[N, …, C]` at an activation a that belongs to these parts."""
        ...


@dataclass(frozen=True)
class Channels:
    """Channels of a convolution or neurons of a linear layer; a plain index or list in `through` stands for them.

    >>> whence.explain(model, x, through={"features.28": [17, 230]})

    Args:
        numbers: Channel index, or several; negative indices count from the end.
    """

    numbers: int | Sequence[int]

    def __post_init__(self):
        object.__setattr__(self, "numbers", _parse_indices(self.numbers))

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        restricted = torch.zeros_like(g)
        numbers = check_indices(self.numbers, a.shape[-1], "channel")
        restricted[..., numbers] = g[..., numbers]
        return restricted

    def __str__(self) -> str:
        return _join(self.numbers)


@dataclass(frozen=True)
class Places:
    """Positions of a layer: pixels of a feature map (numbered row by row), tokens of a text, nodes of a batch of graphs.

    >>> whence.explain(model, nodes, through={"interaction.0": whence.Places(3)})

    Args:
        numbers: Position index, or several; negative indices count from the end.
    """

    numbers: int | Sequence[int]

    def __post_init__(self):
        object.__setattr__(self, "numbers", _parse_indices(self.numbers))

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        if a.dim() < 3:
            raise SelectorError(
                f"a layer with output shape {tuple(a.shape)} has no positions, only channels; expected [N, …, C]"
            )
        of_places, restricted = g.flatten(1, -2), torch.zeros_like(g.flatten(1, -2))
        numbers = check_indices(self.numbers, of_places.shape[1], "position")
        restricted[:, numbers] = of_places[:, numbers]
        return restricted.view_as(g)

    def __str__(self) -> str:
        return f"at {_join(self.numbers)}"


@dataclass(frozen=True)
class Nodes:
    """Nodes of one graph, in layers whose output is `[nodes, C]` or `[1, nodes, C]`.

    >>> whence.explain(model, (x, edges), through={"conv1": whence.Nodes(3)})

    Args:
        numbers: Node index, or several; negative indices count from the end.
    """

    numbers: int | Sequence[int]

    def __post_init__(self):
        object.__setattr__(self, "numbers", _parse_indices(self.numbers))

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        restricted = torch.zeros_like(g)
        numbers = check_indices(self.numbers, g.shape[-2], "node")
        restricted[..., numbers, :] = g[..., numbers, :]
        return restricted

    def __str__(self) -> str:
        return f"node {_join(self.numbers)}"


@dataclass(frozen=True)
class Heads:
    """Attention heads: equal parts of the channels of the input of the output projection.

    >>> whence.explain(model, ids, through={"input of model.layers.3.self_attn.o_proj": whence.Heads(2, of=8)})

    Args:
        numbers: Head index, or several; negative indices count from the end.
        of: The number of heads of the layer.
    """

    numbers: int | Sequence[int]
    of: int

    def __post_init__(self):
        if not isinstance(self.of, int) or isinstance(self.of, bool) or self.of < 1:
            raise SelectorError(f"Heads(…, of={value_repr(self.of)}): expected the positive number of heads")
        object.__setattr__(self, "numbers", _parse_indices(self.numbers))

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        by_head = self.divided(g)
        restricted = torch.zeros_like(by_head)
        numbers = check_indices(self.numbers, self.of, "head")
        restricted[..., numbers, :] = by_head[..., numbers, :]
        return restricted.flatten(-2)

    def divided(self, t: Tensor) -> Tensor:
        """Split the channels `[…, C]` by head: `[…, heads, C / heads]`."""
        if self.of < 1 or t.shape[-1] % self.of:
            raise SelectorError(f"{t.shape[-1]} channels cannot be divided into {self.of} heads")
        return t.unflatten(-1, (self.of, -1))

    def __str__(self) -> str:
        return f"head {_join(self.numbers)}"


@dataclass(frozen=True, eq=False)
class Directions:
    """The subspace that some directions span: g ← U Uᵀ g with their orthonormal basis U, so that R = (Uᵀa)ᵀ(Uᵀg).

    >>> whence.explain(model, x, through={"features.28": whence.Directions(a_cat - a_dog)})

    Args:
        vectors: Directions in the layer's channels, `[C]` or `[C, k]`; they need not be orthogonal or normalised.
    """

    vectors: Tensor

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        vectors = self.vectors[:, None] if self.vectors.dim() == 1 else self.vectors
        if vectors.dim() != 2 or len(vectors) != a.shape[-1]:
            raise SelectorError(
                f"expected directions [{a.shape[-1]}] or [{a.shape[-1]}, k], got shape {tuple(self.vectors.shape)}"
            )
        basis = _orthonormal_basis(vectors).to(g)
        return (g @ basis) @ basis.T

    def __str__(self) -> str:
        return f"{1 if self.vectors.dim() == 1 else self.vectors.shape[1]} directions"


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a dictionary (a sparse autoencoder) that approximates the layer's output: a ≈ decode(encode(a)).

    >>> whence.explain(model, ids, through={"model.layers.3": whence.Features(4711, sae.encode, sae.decode)})

    Relevance flows from the layer to the features by the decoder's gradient and back by the encoder's, as through ReLU and
    linear maps under LRP-0; the share of the reconstruction error is dropped.

    Args:
        numbers: Feature index, or several; negative indices count from the end.
        encode: Function from activations `[N, …, C]` to features `[N, …, features]`.
        decode: Function from features back to activations.
    """

    numbers: int | Sequence[int]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    def __post_init__(self):
        object.__setattr__(self, "numbers", _parse_indices(self.numbers))

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            features = self.encode(a)
            if not features.requires_grad:
                raise SelectorError(
                    "encode() returned features without a gradient; it must not use torch.no_grad() or .detach()"
                )
            numbers = check_indices(self.numbers, features.shape[-1], "feature")
            (of_features,) = torch.autograd.grad(self.decode(features), features, g, retain_graph=True)
            chosen = torch.zeros_like(of_features)
            chosen[..., numbers] = of_features[..., numbers]
            (returned,) = torch.autograd.grad(features, a, chosen)
        return returned

    def __str__(self) -> str:
        return f"feature {_join(self.numbers)}"


PartSelection = int | Sequence[int] | LayerPart | tuple[LayerPart, ...]
ThroughMapping = Mapping[str, Any]  # layer -> Chosen


@dataclass(frozen=True)
class Condition:
    """A restriction of relevance to parts of layers; conditions at several layers multiply."""

    units: Mapping[str, tuple[LayerPart, ...]]

    @classmethod
    def of(cls, through: ThroughMapping) -> "Condition":
        if not isinstance(through, Mapping) or not through:
            raise SelectorError(
                f"through={value_repr(through)}: expected a dict from layers to parts of them, as in "
                f"through={{'features.28': [17, 230]}}"
            )
        return cls({layer: _parse_parts(layer, chosen) for layer, chosen in through.items()})

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.units)

    def restrict(self, layer: str, a: Tensor, g: Tensor, channels_at: Callable[[str], int]) -> Tensor:
        """Restrict the gradient at a layer; `channels_at` gives the dimension of a layer's channels."""
        of_graph = any(isinstance(units, Nodes) for units in self.units[layer])  # channels are last
        channels = -1 if of_graph else channels_at(layer)
        a, g = a.movedim(channels, -1), g.movedim(channels, -1)
        for units in self.units[layer]:
            try:
                g = units.restrict(a, g)
            except SelectorError as error:
                raise SelectorError(f"layer '{layer}': {error}") from None
        return g.movedim(-1, channels)

    def __str__(self) -> str:
        return ", ".join(f"{layer}: {' '.join(map(str, units))}" for layer, units in self.units.items())


def parse_conditions(through: ThroughMapping | Sequence[ThroughMapping] | None) -> tuple[Condition, ...]:
    """Return one `Condition` for each mapping."""
    if through is None:
        return ()
    several = [through] if isinstance(through, Mapping) else through
    if not isinstance(several, Sequence) or isinstance(several, str) or not several:
        raise SelectorError(
            f"through={value_repr(through)}: expected a dict from layers to parts of them, as in "
            f"through={{'features.28': [17, 230]}}, "
            "or a list of such dicts"
        )
    return tuple(map(Condition.of, several))


def _parse_parts(layer: str, chosen: Any) -> tuple[LayerPart, ...]:
    if isinstance(chosen, type):
        raise SelectorError(
            f"through={{{layer!r}: {chosen.__name__}}}: expected an instance, got a class; pass {chosen.__name__}(…)"
        )
    if isinstance(chosen, LayerPart):
        if getattr(chosen, "numbers", None) == ():
            raise SelectorError(f"through={{{layer!r}: {value_repr(chosen)}}}: no indices given")
        return (chosen,)
    if isinstance(chosen, tuple | list) and chosen and all(isinstance(units, LayerPart) for units in chosen):
        return tuple(chosen)
    if isinstance(chosen, range | Tensor | np.ndarray | np.generic):
        chosen = list(chosen) if isinstance(chosen, range) else chosen.tolist()
    numbers = [chosen] if isinstance(chosen, int) else chosen
    if isinstance(chosen, bool) or not isinstance(numbers, list | tuple) or not numbers or not _all_indices(numbers):
        raise SelectorError(
            f"through={{{layer!r}: {value_repr(chosen)}}}: expected channel indices or Places, Nodes, Heads, Directions or "
            "Features"
        )
    return (Channels(tuple(numbers)),)


def _parse_indices(given: Any) -> tuple[int, ...]:
    """Return one index or several as a tuple of ints."""
    found = given.tolist() if isinstance(given, Tensor | np.ndarray | np.generic) else given
    several: list[Any] = list(found) if isinstance(found, Iterable) else [found]
    numbers: tuple[Any, ...] = tuple([n.item() if isinstance(n, Tensor | np.generic) else n for n in several])
    if not _all_indices(numbers):
        raise SelectorError(f"expected one index or several, got {value_repr(given)}")
    return numbers


def _all_indices(given: Sequence[Any]) -> bool:
    return all(isinstance(n, int) and not isinstance(n, bool) for n in given)


def check_indices(numbers: int | Sequence[int], count: int, what: str) -> list[int]:
    """Return indices as non-negative ints; raise `SelectorError` for those out of range of `count`."""
    found = _parse_indices(numbers)
    wrong = next((n for n in found if not -count <= n < count), None)
    if wrong is not None:
        raise SelectorError(f"{what} {wrong} is out of range: the layer has {what}s 0 to {count - 1}")
    return [n % count for n in found]


def _orthonormal_basis(vectors: Tensor) -> Tensor:
    """Return an orthonormal basis of the span of the columns, which may be linearly dependent."""
    wide = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))
    left, sizes, _ = torch.linalg.svd(wide, full_matrices=False)
    spanned = sizes > sizes.max() * max(wide.shape) * torch.finfo(wide.dtype).eps
    if not sizes.max() > 0:
        raise SelectorError("the directions are all zero")
    return left[:, spanned]


def _join(numbers: int | Sequence[int]) -> str:
    numbers = _parse_indices(numbers)
    few = list(map(str, numbers[:6]))
    return ", ".join(few) + (f" and {len(numbers) - 6} more" if len(numbers) > 6 else "")
