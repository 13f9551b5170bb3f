"""Removal of artifacts from a layer without training: a direction (P-ClArC, Anders et al. 2022), or channels at every place."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whence.auditing.audit_data import class_logits
from whence.auditing.interventions import InterventionTest
from whence.core.argument_checks import check_arguments
from whence.core.channel_layout import channel_dim
from whence.core.devices import to_device_of
from whence.core.inputs import Inputs, check_model
from whence.data.batches import MAX_BATCH_SIZE
from whence.errors import AuditWarning, InputError, ModelError, RuleError, SelectorError, suggest
from whence.lrp.torch_compat.torch_patches import temporary_hook
from whence.methods.layer_reader import LayerReader, layer_shapes, leaf_layers

MAX_LOSS = 0.01  # share of clean samples whose prediction may change
MIN_RESTORED = 0.5  # share of what a mark changes, below which a cure is weak
MAX_LAYERS = 8  # that the search tries
RANKS = (1, 2)  # of the channel projection; four take too much of most networks
FALSE_PLACES = 1e-3  # share of the places of plain samples at which a detector may find the mark
RIDGE = 1e-3  # added to the covariance, as a share of the mean variance
STRONG = 0.5  # of the largest change at a place: the places that define the channels of a mark


class ProjectedModel(nn.Module):
    """Wrapper of a model that removes directions V of a layer's activations: a ← a − V Vᵀ (a − z).

    >>> better = whence.cure(model, proof=proof)
    >>> better(x)

    The wrapped model is not modified.

    Args:
        model: The wrapped module.
        layer: Name of the layer whose output is projected.
        direction: Directions of norm 1, orthogonal to each other: one tensor like the layer's output for one sample, or
            `[C, r]`, which are removed from the channels at every place.
        mean: The mean activation z of samples without the mark: like the layer's output for one sample, or `[C]`.
        detector: Weights w `[C]`: directions of channels are removed only where wᵀ(a − z) > 1; None: at every place.
        channels: The dimension of the channels in the layer's output; None for directions that are bound to a place.
        restored: Share of what the mark changes in the predictions of held-out pairs that is taken back; NaN if not measured.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        direction: Tensor,
        mean: Tensor,
        detector: Tensor | None = None,
        channels: int | None = None,
    ):
        super().__init__()
        self.model, self.layer, self.channels, self.restored = model, layer, channels, math.nan
        self.direction = nn.Buffer(direction)
        self.mean = nn.Buffer(mean)
        self.detector = None if detector is None else nn.Buffer(detector)
        self.training = model.training  # does not change the mode of the submodules

    def extra_repr(self) -> str:
        """Return the layer, and the share of the mark's effect that is taken back."""
        return f"layer={self.layer!r}" + ("" if math.isnan(self.restored) else f", restored={self.restored:.2f}")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the wrapped model, with the directions projected out of the layer's output."""
        layer = self.model.get_submodule(self.layer)
        with temporary_hook(lambda: layer.register_forward_hook(self._projected)):
            return self.model(*args, **kwargs)

    def _projected(self, module: nn.Module, args: Any, out: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise ModelError(
                f"layer {self.layer!r} returns {type(out).__name__}, expected a tensor; choose a layer that returns a tensor"
            )
        direction, mean = (t.to(out) for t in (self.direction, self.mean))
        if self.channels is not None:
            centered = out.movedim(self.channels, -1) - mean
            removed = centered @ direction @ direction.T
            if self.detector is not None:
                removed = removed * (centered @ self.detector.to(out) > 1)[..., None]
            return out - removed.movedim(-1, self.channels)
        along = ((out - mean) * direction).flatten(1).sum(1)
        return out - along.view(-1, *[1] * (out.dim() - 1)) * direction


@check_arguments
def cure(
    model: nn.Module,
    layer: str | None = None,
    with_mark: Tensor | None = None,
    without: Tensor | None = None,
    *,
    proof: InterventionTest | None = None,
    max_loss: float = MAX_LOSS,
) -> ProjectedModel:
    """Return a wrapper of the model that ignores, in one layer, the difference between samples with and without a mark.

    >>> better = whence.cure(model, proof=whence.prove(cluster, model, dataset))
    >>> better = whence.cure(model, with_mark=x_with, without=x_without)        # pairs: the same samples with and without
    >>> better = whence.cure(model, "features.10", x_with, x_without)           # in this layer

    Nothing is trained. With a layer, the direction that is projected out is the difference of the mean activations (a pattern,
    Haufe et al. 2014), which is bound to a place. Without one, this direction is tried in up to eight layers, and for marks
    that move the main directions of the channels' change, at every place or where a linear detector finds the mark. They are
    made from one half of the pairs; the one that brings back most of the other half's predictions is taken, of those that
    change at most `max_loss` of the predictions without the mark.

    Args:
        model: An `nn.Module` in eval mode. It is not modified.
        layer: Name of the layer to correct; None searches, which needs pairs.
        with_mark: Tensor `[N, …]`, samples with the mark.
        without: Tensor `[M, …]`, samples without the mark, of the same shape per sample.
        proof: The result of `whence.prove`, which makes the pairs.
        max_loss: Share of the samples without the mark whose prediction may change.

    Returns:
        The wrapped model, a `ProjectedModel`. An `AuditWarning` says if it takes back less than half of what the mark changes.

    Raises:
        RuleError: If neither pairs nor a proof are given, or both.
        ModelError: If the model is not an `nn.Module`, the layer does not return a tensor, or no layer can be cured.
        SelectorError: If the model has no such layer.
        InputError: If there are no samples, their shapes differ, or the layer's mean activations do not differ.
    """
    check_model(model)
    if not isinstance(model, nn.Module):
        raise ModelError(f"cure() needs a torch.nn.Module with named layers, got {type(model).__name__}")
    if (proof is None) == (with_mark is None or without is None):
        raise RuleError("cure() needs pairs, with_mark= and without=, or proof=, and not both")
    if layer is not None and (not layer or layer not in dict(model.named_modules())):
        raise SelectorError(f"no layer {layer!r} in the model{suggest(layer, dict(model.named_modules()))}")
    pairs = Pairs.of_proof(proof) if proof is not None else Pairs(with_mark, without)  # type: ignore[arg-type]
    if layer is not None:
        return _along_direction(model, layer, pairs)
    return _best_cure(model, pairs, max_loss)


@dataclass(frozen=True)
class Pairs:
    """Samples with a mark, and the same or other samples without it."""

    marked: Tensor
    plain: Tensor

    @classmethod
    def of_proof(cls, proof: InterventionTest) -> "Pairs":
        if len(proof.plain.parts) > 1:
            raise InputError("cure() makes pairs of single inputs only; pass with_mark= and without=, or wrap the model")
        plain = proof.plain.first
        return cls(proof.pasted_on(plain), plain)

    def __post_init__(self):
        if self.marked.shape[1:] != self.plain.shape[1:] or not len(self.marked) or not len(self.plain):
            raise InputError(
                f"with_mark has shape {tuple(self.marked.shape)} and without has shape {tuple(self.plain.shape)}; "
                "give at least one sample each, of the same shape per sample"
            )

    def halves(self) -> tuple["Pairs", "Pairs"]:
        """Return two halves; raise `InputError` unless the samples are pairs."""
        if len(self.marked) != len(self.plain) or len(self.plain) < 4:
            raise InputError(
                f"with_mark has {len(self.marked)} samples and without has {len(self.plain)}; the search for a layer needs "
                "four pairs or more, the same samples with and without the mark; or name a layer"
            )
        return Pairs(self.marked[::2], self.plain[::2]), Pairs(self.marked[1::2], self.plain[1::2])


def _best_cure(model: nn.Module, pairs: Pairs, max_loss: float) -> ProjectedModel:
    """Return the cure that brings the predictions of marked samples nearest to those of the same samples without the mark.

    What it changes of the predictions without the mark is added to the distance.
    """
    made, held_out = pairs.halves()
    plain = _logits(model, pairs.plain)
    wanted = _logits(model, held_out.plain).softmax(1)
    harm = _distance(_logits(model, held_out.marked).softmax(1), wanted)
    best, least = None, harm
    for candidate in _candidates(model, made):
        clean = _logits(candidate, pairs.plain)
        if float((clean.argmax(1) != plain.argmax(1)).double().mean()) > max_loss:
            continue
        left = _distance(_logits(candidate, held_out.marked).softmax(1), wanted)
        left += _distance(clean.softmax(1), plain.softmax(1))
        if left < least:
            best, least = candidate, left
    if best is None:
        raise ModelError(
            f"no layer can be cured at a loss of {max_loss:.0%}: more predictions change without the mark, or it has no "
            "effect, or the model has no inner layers; pass a larger max_loss, or train the model on data without the mark"
        )
    best.restored = 1 - least / harm
    if best.restored < MIN_RESTORED:
        warnings.warn(
            f"the best cure, in layer {best.layer!r}, takes back {best.restored:.0%} of what the mark changes; pass a larger "
            "max_loss, or train the model on data without the mark",
            AuditWarning,
            stacklevel=4,
        )
    return best


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    return class_logits(model, Inputs.of(to_device_of(x, model)))


def _distance(p: Tensor, q: Tensor) -> float:
    """Return the mean total variation of two distributions of classes."""
    return float((p - q).abs().sum(1).mean() / 2)


def _candidates(model: nn.Module, pairs: Pairs) -> Iterator[ProjectedModel]:
    for layer in _layers(model, pairs.plain):
        marked, plain = (_activations(model, layer, x) for x in (pairs.marked, pairs.plain))
        direction = marked.mean(0) - plain.mean(0)
        if direction.norm() > 0:
            yield ProjectedModel(model, layer, direction / direction.norm(), plain.mean(0))
        if plain.dim() > 2:
            dimension = channel_dim(model, layer, Inputs.of(to_device_of(pairs.plain[:2], model)), plain)
            yield from _along_channels(model, layer, marked, plain, dimension)


def _along_channels(model: nn.Module, layer: str, marked: Tensor, plain: Tensor, dimension: int) -> Iterator[ProjectedModel]:
    """Yield projections of the main directions of the channels' change, at every place and where a detector finds the mark.

    The detector is the linear discriminant of the marked places, w = (Σ_plain + Σ_marked)⁻¹ (mean of marked − mean of plain),
    scaled so that one in a thousand plain places exceeds 1.
    """
    channels, changes = (t.movedim(dimension, -1).flatten(0, -2) for t in (plain, marked - plain))
    sizes = changes.norm(dim=1)
    strong = sizes >= STRONG * sizes.max()
    if not sizes.max() > 0:
        return
    directions = torch.linalg.svd(changes[strong].double(), full_matrices=False).Vh
    detector = _detector(channels.double(), (channels + changes)[strong].double())
    for rank in RANKS:
        for found in (None, detector):
            if rank <= len(directions):
                v = directions[:rank].T.to(plain.dtype)
                w = None if found is None else found.to(plain.dtype)
                yield ProjectedModel(model, layer, v, channels.mean(0), w, dimension)


def _detector(plain: Tensor, marked: Tensor) -> Tensor | None:
    """Return the linear discriminant of places `[places, C]`; None if it does not tell marked places from plain ones."""
    mean, count = plain.mean(0), plain.shape[1]
    spread = (torch.cov(plain.T) + torch.cov(marked.T)).reshape(count, count)  # cov of one channel has no dimensions
    spread = spread + RIDGE * spread.diagonal().mean() * torch.eye(count, dtype=plain.dtype)
    if not len(marked) > 1 or not spread.diagonal().min() > 0:
        return None
    w = torch.linalg.solve(spread, marked.mean(0) - mean)
    scores = ((plain - mean) @ w).sort().values
    limit = scores[min(int(len(scores) * (1 - FALSE_PLACES)), len(scores) - 1)]
    return w / limit if limit > 0 else None


def _layers(model: nn.Module, x: Tensor) -> list[str]:
    """Return up to eight layers that return a tensor of one row per sample, in the order in which they run."""
    shapes = layer_shapes(model, to_device_of(x[:2], model))
    usable = [name for name in leaf_layers(shapes) if len(shapes[name]) > 1 and shapes[name][0] == len(x[:2])]
    inner = usable[:-1]  # the last is the output
    steps = torch.linspace(0, len(inner) - 1, min(MAX_LAYERS, len(inner))).round().long().unique().tolist() if inner else []
    return [inner[i] for i in steps]


def _along_direction(model: nn.Module, layer: str, pairs: Pairs) -> ProjectedModel:
    marked, plain = (_mean(model, layer, x) for x in (pairs.marked, pairs.plain))
    direction = marked - plain
    length = direction.norm()
    if not length > 0:
        raise InputError(
            f"the mean activations of layer {layer!r} do not differ between samples with and without the mark; "
            "choose another layer"
        )
    return ProjectedModel(model, layer, direction / length, plain)


@torch.no_grad()
def _mean(model: Callable[..., Any], layer: str, x: Tensor) -> Tensor:
    return torch.stack([part.sum(0) for part in _parts(model, layer, x)]).sum(0) / len(x)


@torch.no_grad()
def _activations(model: Callable[..., Any], layer: str, x: Tensor) -> Tensor:
    return torch.cat(list(_parts(model, layer, x)))


def _parts(model: Callable[..., Any], layer: str, x: Tensor) -> Iterator[Tensor]:
    reader = LayerReader(model, [layer])
    return (reader(to_device_of(part, model)).layers[layer] for part in x.split(MAX_BATCH_SIZE))
