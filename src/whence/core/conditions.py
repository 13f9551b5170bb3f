"""What of a layer relevance is let through: channels, places, heads, directions, features of a dictionary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from whence.errors import SelectorError


@runtime_checkable
class LayerPart(Protocol):
    """Parts of a layer, seen with its channels last."""

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        """Of the gradient g = R/a `[N, …, C]` at an activation a, what belongs to these parts."""
        ...


@dataclass(frozen=True)
class Channels:
    """Channels of a convolution, neurons of a linear layer, by number: what a plain number or list of them stands for.

    >>> whence.explain(model, x, through={"features.28": [17, 230]})
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
    """Places of a layer by number, row by row where they are those of a picture: tokens of a text, nodes of a graph.

    >>> whence.explain(model, nodes, through={"interaction.0": whence.Places(3)})
    """

    numbers: int | Sequence[int]

    def __post_init__(self):
        object.__setattr__(self, "numbers", _parse_indices(self.numbers))

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        if a.dim() < 3:
            raise SelectorError(f"a layer that gives {tuple(a.shape)} has channels but no places")
        of_places, restricted = g.flatten(1, -2), torch.zeros_like(g.flatten(1, -2))
        numbers = check_indices(self.numbers, of_places.shape[1], "place")
        restricted[:, numbers] = of_places[:, numbers]
        return restricted.view_as(g)

    def __str__(self) -> str:
        return f"at {_join(self.numbers)}"


@dataclass(frozen=True)
class Nodes:
    """Nodes of one graph by number, in layers that give `[nodes, C]` or `[1, nodes, C]`.

    >>> whence.explain(model, (x, edges), through={"conv1": whence.Nodes(3)})
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
    """Heads of attention by number, `of` so many: equal parts of the channels that go into the output projection.

    >>> whence.explain(model, ids, through={"input of model.layers.3.self_attn.o_proj": whence.Heads(2, of=8)})
    """

    numbers: int | Sequence[int]
    of: int

    def __post_init__(self):
        object.__setattr__(self, "numbers", _parse_indices(self.numbers))

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        by_head = self.divided(g)
        restricted = torch.zeros_like(by_head)
        numbers = check_indices(self.numbers, self.of, "head")
        restricted[..., numbers, :] = by_head[..., numbers, :]
        return restricted.flatten(-2)

    def divided(self, t: Tensor) -> Tensor:
        """`[…, C]` by head, `[…, heads, C / heads]`."""
        if self.of < 1 or t.shape[-1] % self.of:
            raise SelectorError(f"{t.shape[-1]} channels do not divide into {self.of} heads")
        return t.unflatten(-1, (self.of, -1))

    def __str__(self) -> str:
        return f"head {_join(self.numbers)}"


@dataclass(frozen=True, eq=False)
class Directions:
    """The subspace of some directions `[C]` or `[C, k]`: g ← U Uᵀ g with their orthonormal basis U, so that R = (Uᵀa)ᵀ(Uᵀg).

    >>> whence.explain(model, x, through={"features.28": whence.Directions(a_cat - a_dog)})
    """

    vectors: Tensor

    def restrict(self, a: Tensor, g: Tensor) -> Tensor:
        vectors = self.vectors[:, None] if self.vectors.dim() == 1 else self.vectors
        if vectors.dim() != 2 or len(vectors) != a.shape[-1]:
            raise SelectorError(f"directions of {tuple(self.vectors.shape)} for {a.shape[-1]} channels; give [C] or [C, k]")
        basis = _orthonormal_basis(vectors).to(g)
        return (g @ basis) @ basis.T

    def __str__(self) -> str:
        return f"{1 if self.vectors.dim() == 1 else self.vectors.shape[1]} directions"


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a dictionary (a sparse autoencoder) put over the layer, by number: a ≈ decode(encode(a)).

    >>> whence.explain(model, ids, through={"model.layers.3": whence.Features(4711, sae.encode, sae.decode)})

    Relevance goes from the layer to the features by the decoder's gradient and back by the encoder's, as through ReLU and
    linear maps under LRP-0; what the dictionary does not reconstruct is let go.
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
                raise SelectorError("the features have no gradient; encode outside of no_grad, and without .detach()")
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
    """Only what flows through these parts of these layers: conditions at several layers multiply."""

    units: Mapping[str, tuple[LayerPart, ...]]

    @classmethod
    def of(cls, through: ThroughMapping) -> "Condition":
        if not isinstance(through, Mapping) or not through:
            raise SelectorError(
                f"through={through!r}; give layers and what of them, as in through={{'features.28': [17, 230]}}"
            )
        return cls({layer: _parse_parts(layer, chosen) for layer, chosen in through.items()})

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.units)

    def restrict(self, layer: str, a: Tensor, g: Tensor, channels_at: Callable[[str], int]) -> Tensor:
        """Of the gradient at a layer, which has its channels in a dimension that is asked for."""
        of_graph = any(isinstance(units, Nodes) for units in self.units[layer])  # has its channels last
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
    """One for each mapping."""
    if through is None:
        return ()
    several = [through] if isinstance(through, Mapping) else through
    if not isinstance(several, Sequence) or isinstance(several, str) or not several:
        raise SelectorError(f"through={through!r}; give layers and what of them, as in through={{'features.28': [17, 230]}}")
    return tuple(map(Condition.of, several))


def _parse_parts(layer: str, chosen: Any) -> tuple[LayerPart, ...]:
    if isinstance(chosen, type):
        raise SelectorError(f"through={{{layer!r}: {chosen.__name__}}}: say which, as in whence.{chosen.__name__}([0])")
    if isinstance(chosen, LayerPart):
        return (chosen,)
    if isinstance(chosen, tuple | list) and chosen and all(isinstance(units, LayerPart) for units in chosen):
        return tuple(chosen)
    if isinstance(chosen, range | Tensor | np.ndarray | np.generic):
        chosen = list(chosen) if isinstance(chosen, range) else chosen.tolist()
    numbers = [chosen] if isinstance(chosen, int) else chosen
    if isinstance(chosen, bool) or not isinstance(numbers, list | tuple) or not numbers or not _all_indices(numbers):
        raise SelectorError(
            f"through={{{layer!r}: {chosen!r}}}: give numbers of channels, or Places, Heads, Directions or Features of whence"
        )
    return (Channels(tuple(numbers)),)


def _parse_indices(given: Any) -> tuple[int, ...]:
    """One number, or several, as they can be compared."""
    found = given.tolist() if isinstance(given, Tensor | np.ndarray | np.generic) else given
    return (int(found),) if isinstance(found, int) else tuple(int(n) for n in found)


def _all_indices(given: Sequence[Any]) -> bool:
    return all(isinstance(n, int) and not isinstance(n, bool) for n in given)


def check_indices(numbers: int | Sequence[int], count: int, what: str) -> list[int]:
    """The numbers, if they are among so many; those below 0 from the end."""
    found = _parse_indices(numbers)
    wrong = next((n for n in found if not -count <= n < count), None)
    if wrong is not None:
        raise SelectorError(f"no {what} {wrong}; there are {what}s 0 to {count - 1}")
    return [n % count for n in found]


def _orthonormal_basis(vectors: Tensor) -> Tensor:
    """An orthonormal one of what the columns span, however many of them depend on others."""
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
