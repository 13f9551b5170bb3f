"""Perturbation methods, for any callable, without gradients: feature ablation, occlusion, RISE."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.core.channel_layout import input_channel_dim
from whence.core.explanation import Explanation
from whence.core.trees import Tree
from whence.errors import InputError, RuleError
from whence.lrp.engine.conservation import Conservation
from whence.methods import feature_masks
from whence.methods.batching import run_batched, warn_of_many_rounds
from whence.methods.feature_masks import UPSAMPLING, FeatureGroups
from whence.methods.forward_backward import Task, make_explanation, reject_layers
from whence.methods.model_queries import ModelQueries
from whence.methods.running_statistics import RunningMoments

MASKS_PER_BATCH = 64


@dataclass(frozen=True, eq=False)
class FeatureAblation:
    """Feature ablation, R_i = f(x) − f(x without feature i): one feature at a time is replaced by its baseline.

    >>> whence.explain(model, x, target=3, method=whence.FeatureAblation(feature_mask=whence.patches(x, 16)))
    >>> masked = whence.FeatureAblation(baselines={"input_ids": tokenizer.mask_token_id})
    >>> whence.explain(model, {"input_ids": ids, "attention_mask": mask}, target=0, method=masked)

    Each entry of an input gets the score of its feature.

    Args:
        baselines: Values that replace absent features, as in `IntegratedGradients`; 0 by default. Token ids are features only
            if an id is given to replace them.
        feature_mask: Integer tensor `[1, …]` or `[N, …]` with the feature number of every entry (superpixels, words, columns),
            or a tuple or dict of them structured like the inputs. Features are numbered from 0 across all inputs. By default
            every entry is a feature.
        batch_size: Number of samples that the model evaluates at once; chosen by the size of the input by default.
    """

    baselines: feature_masks.Baselines = None
    feature_mask: Tree = None
    batch_size: int | None = None

    name: ClassVar[str] = "feature_ablation"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        reject_layers(self, task)
        ask = ModelQueries(task)
        task = ask.task
        absent = feature_masks.required_baselines(self.baselines, task.inputs)
        players = FeatureGroups.of(self.feature_mask, task.inputs, absent)
        changed = players.differing(task.inputs, {i: b[None] for i, b in absent.items()}).any(0).nonzero()[:, 0]

        grouping = "group the entries into features with feature_mask=, such as whence.patches(x, 16) for images,"
        warn_of_many_rounds(self, len(changed), grouping)
        losses = ask.outputs.new_zeros(*ask.outputs.shape, players.count)

        def ablated(rounds: slice) -> tuple[Tensor, Tensor]:
            present = torch.arange(players.count) != changed[rounds, None]
            return changed[rounds], ask(players.altered(task.inputs, absent, present))

        for numbers, found in run_batched(self, task, len(changed), ablated, self.batch_size):
            losses[..., numbers] = ask.outputs[..., None] - found.transpose(1, 2)
        for output, target, loss in zip(ask.outputs, ask.targets, losses, strict=True):
            scores = feature_masks.cast_like(task.inputs, players.spread(loss))
            account = Conservation(output, loss.sum(1), adds_up=False)
            yield make_explanation(self, task, output, target, scores, account, feature_mask=players.mask(task.inputs))


@dataclass(frozen=True, eq=False)
class Occlusion:
    """Occlusion: the loss of output when a sliding window over the input is set to the baseline (Zeiler and Fergus 2014).

    >>> whence.explain(model, x, target=3, method=whence.Occlusion((3, 16, 16), strides=(3, 8, 8)))

    R_i is the mean of f(x) − f(x with the window at the baseline) over all windows that cover entry i.

    Args:
        sliding_window_shapes: Size of the window along every dimension of a sample, or one number, for pictures of a square
            through all channels; or a tuple or dict of sizes structured like the inputs. By default an eighth of an image's
            sides through all channels, or one entry of a vector.
        strides: Step of the window along every dimension, structured like `sliding_window_shapes`, or one number for all
            dimensions. Half the window by default.
        baselines: Values that replace occluded entries, as in `IntegratedGradients`; 0 by default.
        batch_size: Number of samples that the model evaluates at once; chosen by the size of the input by default.
    """

    sliding_window_shapes: Any = None
    strides: Any = None
    baselines: feature_masks.Baselines = None
    batch_size: int | None = None

    name: ClassVar[str] = "occlusion"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        reject_layers(self, task)
        ask = ModelQueries(task)
        task = ask.task
        absent = feature_masks.required_baselines(self.baselines, task.inputs)
        shapes = _sizes_by_part(self.sliding_window_shapes, task, absent, "sliding_window_shapes")
        strides = _sizes_by_part(self.strides, task, absent, "strides")
        scores: list[dict[int, Tensor]] = [{} for _ in ask.targets]
        for i, baseline in absent.items():
            found = self._relevance(task, ask, i, baseline, shapes.get(i), strides.get(i))
            for part, relevance in zip(scores, found, strict=True):
                part[i] = relevance
        for output, target, part in zip(ask.outputs, ask.targets, scores, strict=True):
            yield make_explanation(self, task, output, target, feature_masks.cast_like(task.inputs, part))

    def _relevance(self, task: Task, ask: ModelQueries, i: int, baseline: Tensor, shape: Any, strides: Any) -> Tensor:
        """Compute the relevance of one part of the inputs, `[targets, N, …]`."""
        given, outputs = task.inputs.parts[i], ask.outputs[:, None]
        x, baseline = (t[:, None] if t.dim() == 1 else t for t in (given, baseline))
        if isinstance(shape, int) and x.dim() in (4, 5):  # of pictures and volumes
            channels = input_channel_dim(task.model, task.inputs, x)
            shape = tuple(n if d == channels else shape for d, n in enumerate(x.shape) if d)
        windows = SlidingWindows.of(x, shape, strides)
        total = outputs.new_zeros(len(outputs), *x.shape)
        changed = windows.that_hold((x != baseline).any(0))
        warn_of_many_rounds(self, len(changed), "pass larger sliding_window_shapes or strides")

        def occluded(rounds: slice) -> tuple[Tensor, Tensor]:
            hidden = windows.at(changed[rounds])[:, None]
            return changed[rounds], ask({i: torch.where(hidden, baseline, x).reshape(-1, *given.shape[1:])})

        for numbers, found in run_batched(self, task, len(changed), occluded, self.batch_size):
            total += windows.spread(outputs - found, numbers)
        return (total / windows.covering(x.device)).view(len(total), *given.shape)


@dataclass(frozen=True, eq=False)
class RISE:
    """RISE, R = E[(f(x ⊙ m) − f̄) m] / E[m] over random smooth masks m, f̄ the mean output (Petsiuk et al. 2018, eq. 6).

    >>> e = whence.explain(model, x, target=3, method=whence.RISE(n_samples=4000))
    >>> e.standard_errors

    For images `[N, C, …]`. A mask is a coarse random grid, upsampled smoothly and shifted at random; it masks all channels and
    is the same for every sample. Relevance is divided evenly among the channels. The scores do not add up to the output.

    Args:
        n_samples: Number of masks, at least 2.
        cells: Number of grid cells along each side.
        probability: Probability that a cell is left visible.
        centred: Whether to subtract the mean output f̄. The paper does not: f̄ then adds the same amount to every entry, which is
            large compared with the differences between entries.
        baselines: Values that replace masked entries, as in `IntegratedGradients`; 0 by default.
        seed: Random seed of the masks.
        batch_size: Number of masked samples that the model evaluates at once; chosen by the size of the input by default.
    Raises:
        RuleError: Fewer than 2 masks or 1 cell, or a probability outside of (0, 1).
    """

    n_samples: int = 2000
    cells: int = 7
    probability: float = 0.5
    centred: bool = True
    baselines: feature_masks.Baselines = None
    seed: int = 0
    batch_size: int | None = None

    name: ClassVar[str] = "rise"

    def __post_init__(self):
        if self.n_samples < 2 or self.cells < 1 or not 0 < self.probability < 1:
            raise RuleError(f"{self!r}: expected at least 2 masks, 1 cell and a probability between 0 and 1")

    def explanations(self, task: Task) -> Iterator[Explanation]:
        reject_layers(self, task)
        absent = feature_masks.required_baselines(self.baselines, task.inputs)
        if any(task.inputs.parts[i].dim() not in UPSAMPLING for i in absent) or len(absent) != 1:
            raise InputError("RISE needs one image input [N, C, …]; use FeatureAblation, Occlusion or Shapley for other inputs")
        ((i, baseline),) = absent.items()
        x, ask = task.inputs.parts[i], ModelQueries(task)
        masks = SmoothMasks.drawn(self, x)

        def masked(rounds: slice) -> Tensor:
            return ask({i: torch.lerp(baseline, x, masks.at(rounds).to(x)[:, None]).flatten(0, 1)})

        outputs = torch.cat(list(run_batched(self, task, self.n_samples, masked, self.batch_size)), 1)
        outputs = (outputs - outputs.mean(1, keepdim=True) * self.centred) / (self.probability * self.n_samples * x.shape[1])
        for output, target, weights in zip(ask.outputs, ask.targets, outputs, strict=True):
            moments = RunningMoments()
            for rounds in (slice(start, start + MASKS_PER_BATCH) for start in range(0, self.n_samples, MASKS_PER_BATCH)):
                mask = masks.at(rounds).to(x)[:, None]  # [rounds, 1, 1, …]
                moments.add({i: weights[rounds].view(len(mask), -1, *[1] * (x.dim() - 1)) * mask})
            scores, errors = (
                feature_masks.cast_like(task.inputs, part) for part in (moments.sums(), moments.standard_errors())
            )
            yield make_explanation(self, task, output, target, scores, standard_errors=task.inputs.together(errors))


@dataclass(frozen=True)
class SlidingWindows:
    """The positions of a sliding window over a sample; the last one along each dimension is clipped at the end."""

    lengths: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, shape: Any, strides: Any) -> "SlidingWindows":
        lengths = tuple(x.shape[1:])
        shape = _default_window(lengths) if shape is None else _check_sizes(shape, lengths, "a sliding window")
        strides = tuple(-(-s // 2) for s in shape) if strides is None else _check_sizes(strides, lengths, "strides")
        if any(s > length for s, length in zip(shape, lengths, strict=True)):
            raise InputError(f"a window of {shape} is larger than a sample of {lengths}; pass smaller sliding_window_shapes")
        if any(s < stride and s < length for stride, s, length in zip(strides, shape, lengths, strict=True)):
            raise InputError(f"strides {strides} leave gaps between windows of {shape}; expected strides no larger than it")
        return cls(lengths, shape, strides)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of window positions along each dimension."""
        sizes = zip(self.lengths, self.shape, self.strides, strict=True)
        return tuple(-(-(length - size) // stride) + 1 for length, size, stride in sizes)

    def that_hold(self, entries: Tensor) -> Tensor:
        """Return the numbers of the windows that cover any of `entries`, a mask `[…]` of a sample."""
        held = entries.float()
        for d in range(len(self.counts)):
            held = torch.tensordot(self._all_along(d, entries.device).float(), held.movedim(d, 0), 1).movedim(0, d)
        return held.flatten().nonzero()[:, 0]

    def at(self, numbers: Tensor) -> Tensor:
        """Return masks `[rounds, …]` of the windows with the given numbers."""
        along = self._along(numbers)
        placed = [a.view(len(a), *[1] * d, -1, *[1] * (len(along) - d - 1)) for d, a in enumerate(along)]
        return reduce(torch.logical_and, placed)

    def spread(self, scores: Tensor, numbers: Tensor) -> Tensor:
        """Sum the scores `[targets, rounds, N]` of windows over the windows that cover an entry, `[targets, N, …]`."""
        along = [a.to(scores) for a in self._along(numbers)]
        letters = "abcdefghijklm"[: len(along)]
        windows = ",".join(f"r{letter}" for letter in letters)
        return torch.einsum(f"trn,{windows}->tn{letters}", scores, *along)

    def covering(self, device: torch.device) -> Tensor:
        """Return the number of windows that cover each entry."""
        everywhere = [self._all_along(d, device).sum(0) for d in range(len(self.counts))]
        return reduce(lambda a, b: a[..., None] * b, everywhere, torch.ones((), device=device))

    def _along(self, numbers: Tensor) -> list[Tensor]:
        """Return masks of the windows along each dimension, `[rounds, length]`."""
        return [self._inside(d, place) for d, place in enumerate(torch.unravel_index(numbers, self.counts))]

    def _all_along(self, d: int, device: torch.device) -> Tensor:
        return self._inside(d, torch.arange(self.counts[d], device=device))

    def _inside(self, d: int, place: Tensor) -> Tensor:
        start, entry = place[:, None] * self.strides[d], torch.arange(self.lengths[d], device=place.device)
        return (entry >= start) & (entry < start + self.shape[d])


@dataclass(frozen=True)
class SmoothMasks:
    """Random grids, upsampled to one cell more than the image and shifted by less than a cell."""

    grids: Tensor  # [masks, 1, …]
    shifts: Tensor  # [masks, dims]
    lengths: tuple[int, ...]

    @classmethod
    def drawn(cls, rise: RISE, x: Tensor) -> "SmoothMasks":
        lengths, random = tuple(x.shape[2:]), torch.Generator().manual_seed(rise.seed)
        grids = torch.rand(rise.n_samples, 1, *[rise.cells + 1] * len(lengths), generator=random) < rise.probability
        shifts = torch.rand(rise.n_samples, len(lengths), generator=random)
        cell = torch.tensor([-(-length // rise.cells) for length in lengths])
        return cls(grids.to(x.device, torch.float32), (shifts * cell).long(), lengths)

    def at(self, rounds: slice) -> Tensor:
        """Return the masks of some rounds, `[rounds, 1, …]`."""
        grids, cells = self.grids[rounds], self.grids.shape[2] - 1
        size = [length + -(-length // cells) for length in self.lengths]
        large = F.interpolate(grids, size, mode=UPSAMPLING[grids.dim()], align_corners=False)
        shifted = zip(large, self.shifts[rounds].tolist(), strict=True)
        return torch.stack([mask[(..., *self._window(shift))] for mask, shift in shifted])

    def _window(self, shift: list[int]) -> list[slice]:
        return [slice(s, s + length) for s, length in zip(shift, self.lengths, strict=True)]


def _sizes_by_part(given: Any, task: Task, absent: dict[int, Tensor], what: str) -> dict[int, Any]:
    """Return the sizes for each part of the inputs; a plain tuple of numbers, or one number, holds for every part."""
    if (
        given is None
        or isinstance(given, dict)
        or (isinstance(given, list | tuple) and not all(isinstance(g, int) for g in given))
    ):
        return feature_masks.by_part(given, task.inputs, what)
    return dict.fromkeys(absent, given)


def _check_sizes(given: Any, lengths: tuple[int, ...], what: str) -> tuple[int, ...]:
    sizes = tuple(given) if isinstance(given, list | tuple) else (given,) * len(lengths)
    if len(sizes) != len(lengths) or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise InputError(f"{what} of {given} for samples of {lengths}; expected a positive int along each dimension")
    return sizes


def _default_window(lengths: tuple[int, ...]) -> tuple[int, ...]:
    if len(lengths) < 2:
        return (1,) * len(lengths)
    return (lengths[0], *(-(-length // 8) for length in lengths[1:]))
