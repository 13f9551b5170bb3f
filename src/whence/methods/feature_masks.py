"""Features of inputs: the entries that belong to each feature, and the baselines that replace absent features."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.inputs import Inputs, as_tensor
from whence.core.tables import is_pandas, is_row_of_frame
from whence.core.trees import Tree
from whence.errors import InputError, value_repr

PATCHES_PER_SIDE = 14  # of a picture, where nothing else is said
UPSAMPLING = {3: "linear", 4: "bilinear", 5: "trilinear"}  # of pictures [N, C, …] by their dimensions

Baselines = Any  # a number or a tensor for every input, or a tuple or dict of them like the inputs


def by_part(given: Tree, inputs: Inputs, what: str) -> dict[int, Any]:
    """Return the argument for each part of the inputs, by position; a single value applies to all floating-point parts.

    Rows of data frames are encoded as the inputs are.
    """
    if inputs.table is not None and is_pandas(given):
        given = inputs.table.encode(given)
    given = as_tensor(given)
    if given is None:
        return {}
    if isinstance(given, Mapping):
        names = inputs.names or ()
        unknown = [name for name in given if name not in names]
        if unknown:
            raise InputError(
                f"{what} for {unknown[0]!r}, which is not an input; the inputs are {', '.join(names) or 'unnamed'}"
            )
        return {names.index(name): value for name, value in given.items()}
    if isinstance(given, list | tuple):
        if len(given) != len(inputs.parts):
            raise InputError(f"{len(given)} {what} for {len(inputs.parts)} inputs; give one per input")
        return {i: value for i, value in enumerate(given) if value is not None}
    if inputs.explained:
        return dict.fromkeys(inputs.explained, given)
    texts = [i for i in inputs.ids if not (inputs.names or {i: ""})[i].endswith("mask")]
    if len(texts) > 1:
        names = ", ".join(inputs.labels[i] for i in texts)
        raise InputError(f"{what} is ambiguous for the inputs {names}; pass a dict or tuple structured like the inputs")
    return dict.fromkeys(texts, given)


def reject_shared_parts(inputs: Inputs, by: str) -> None:
    """Raise `InputError` if parts are shared by several samples, since rounds in one batch would mix them."""
    if inputs.shared:
        raise InputError(f"some inputs are shared by all {inputs.batch_size} samples; {by} explains one sample at a time")


def baselines(given: Baselines, inputs: Inputs, default: float = 0.0) -> dict[int, Tensor]:
    """Return the baselines of each part, shaped like it or `[1, …]`: `default` for floating-point parts. Token ids are left
    unchanged if no baseline is given."""
    if is_row_of_frame(given):
        raise InputError("baselines must be a data frame of one or N rows, got a Series; pass frame.iloc[:1]")
    if inputs.table is not None and inputs.table.categories and not is_pandas(given):
        raise InputError(
            f"the columns {', '.join(map(str, inputs.table.categories))} are categories, which have no zero baseline; pass "
            "baselines= or background= as a data frame with the same columns"
        )
    found = dict.fromkeys(inputs.explained, default) | by_part(given, inputs, "baselines")
    made = {i: _baseline(value, inputs.parts[i]) for i, value in found.items() if value is not None}
    accepted = torch.isfinite if not inputs.arrays else lambda baseline: ~torch.isinf(baseline)  # missing values
    if math.isfinite(default) and not all(bool(accepted(baseline).all()) for baseline in made.values()):
        raise InputError("a baseline has NaN or infinite values")
    return made


def required_baselines(given: Baselines, inputs: Inputs) -> dict[int, Tensor]:
    """Return the baselines, for methods that remove features; raise `InputError` if there are none."""
    found = baselines(given, inputs)
    if not found:
        raise InputError(
            "token ids have no zero baseline; pass baselines, such as "
            "{'input_ids': tokenizer.mask_token_id} or tokenizer.pad_token_id"
        )
    return found


def _baseline(value: Any, x: Any) -> Tensor:
    value = value.item() if isinstance(value, np.generic) else as_tensor(value)
    if not isinstance(x, Tensor) or not isinstance(value, Tensor | float | int):
        raise InputError(f"a baseline must be a number or a tensor, got {value_repr(value)} for {type(x).__name__}")
    baseline = torch.as_tensor(
        value, device=x.device, dtype=x.dtype if isinstance(value, float) and x.is_floating_point() else None
    )
    if not x.is_floating_point() and baseline.is_floating_point():
        raise InputError(f"a baseline for token ids must be an id, such as tokenizer.mask_token_id, got {value_repr(value)}")
    baseline = baseline.detach().to(x.dtype)
    if baseline.dim() == 0:
        baseline = baseline.expand(1, *x.shape[1:])
    if baseline.dim() == x.dim() and baseline.shape[1:] == x.shape[1:] and baseline.shape[0] in (1, x.shape[0]):
        return baseline
    raise InputError(
        f"baselines of shape {tuple(baseline.shape)} for an input of shape {tuple(x.shape)}; "
        "expected that shape, [1, …] for all samples, or a number"
    )


def background(given: Tree, inputs: Inputs) -> dict[int, Tensor]:
    """Return the background samples of each part, `[B, …]`."""
    found = {i: _background(value, inputs.parts[i]) for i, value in by_part(given, inputs, "background").items()}
    missing = [i for i in inputs.explained if i not in found]
    if missing or not found:
        raise InputError("background must hold samples for every explained input")
    for i, samples in found.items():
        x = inputs.parts[i]
        if samples.dim() != x.dim() or samples.shape[1:] != x.shape[1:] or not samples.shape[0]:
            expected = ", ".join(map(str, ("B", *x.shape[1:])))
            raise InputError(
                f"a background of shape {tuple(samples.shape)} for an input of {tuple(x.shape)}; expected [{expected}]"
            )
    if len({samples.shape[0] for samples in found.values()}) > 1:
        raise InputError("the background tensors of the inputs differ in their number of samples")
    return found


def _background(samples: Any, x: Any) -> Tensor:
    if not isinstance(samples, Tensor) or not isinstance(x, Tensor):
        raise InputError(f"background must be a tensor of samples [B, …], got {type(samples).__name__} for {type(x).__name__}")
    return samples.detach().to(x)


@dataclass(frozen=True)
class FeatureGroups:
    """The features of the inputs: the feature number of each entry, counted across all parts."""

    masks: dict[int, Tensor]  # part -> [1 or N, …]
    count: int

    @classmethod
    def of(cls, feature_mask: Tree, inputs: Inputs, explained: Mapping[int, Tensor]) -> "FeatureGroups":
        """Return the features that a mask numbers in the `explained` parts; without a mask every entry is a feature.

        >>> x = torch.rand(4, 3)
        >>> FeatureGroups.of(torch.tensor([[0, 0, 1]]), Inputs.of(x), {0: x}).count
        2
        """
        reject_shared_parts(inputs, "a method that removes features")
        given = by_part(feature_mask, inputs, "feature_mask")
        masks, start = {}, 0
        for i in explained:
            x = inputs.parts[i]
            if given:
                masks[i] = _mask(given.get(i), x)
            else:
                masks[i] = torch.arange(start, start + x[0].numel(), device=x.device).view(1, *x.shape[1:])
                start += x[0].numel()
        return cls(masks, _count_features(masks) if given else start)

    def altered(self, inputs: Inputs, absent: Mapping[int, Tensor], present: Tensor) -> dict[int, Tensor]:
        """Return the parts `[rounds · N, …]` with only the features `present` `[rounds, features]`, others from `absent`."""
        return {
            i: torch.where(present.to(mask.device)[:, mask], inputs.parts[i], absent[i]).flatten(0, 1)
            for i, mask in self.masks.items()
        }

    def differing(self, inputs: Inputs, absent: Mapping[int, Tensor]) -> Tensor:
        """Return which features differ from any of their replacements `absent` `[…, 1 or N, …]`, as `[N, features]`."""
        found = torch.zeros(inputs.batch_size, self.count, dtype=torch.int)
        for i, mask in self.masks.items():
            differs = (inputs.parts[i] != absent[i]).flatten(0, -1 - inputs.parts[i].dim()).any(0)
            numbers = _as_rows(mask).expand(len(differs), -1).cpu()
            found.scatter_reduce_(1, numbers, _as_rows(differs).int().cpu(), "amax")
        return found.bool()

    def mask(self, inputs: Inputs) -> Tree:
        """Return the masks in the structure of the inputs; None if every entry is a feature, in all rows."""
        rows = max(map(len, self.masks.values()))
        numbers = torch.cat([_as_rows(mask).expand(rows, -1).cpu() for mask in self.masks.values()], 1)
        every = numbers.shape[1] == self.count and bool((numbers.sort(1).values == torch.arange(self.count)).all())
        return None if every else inputs.together(dict(self.masks))

    def of_samples(self, samples: Tensor) -> "FeatureGroups":
        """Return the features of some of the samples."""
        return replace(self, masks={i: m[samples.to(m.device)] if len(m) > 1 else m for i, m in self.masks.items()})

    def spread(self, values: Tensor) -> dict[int, Tensor]:
        """Return the values `[N, features]` at every entry of each feature."""
        return {i: self._at(mask, values.to(mask.device)) for i, mask in self.masks.items()}

    def _at(self, mask: Tensor, values: Tensor) -> Tensor:
        flat = _as_rows(mask).expand(len(values), -1)
        return values.gather(1, flat).view(len(values), *mask.shape[1:])


def cast_like(inputs: Inputs, scores: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the scores with the shapes and dtypes of their inputs, those of token ids in floating point."""
    x = inputs.parts
    return {
        i: score.expand_as(x[i]).to(x[i].dtype if x[i].is_floating_point() else score.dtype).contiguous()
        for i, score in scores.items()
    }


def _as_rows(t: Tensor) -> Tensor:
    return t.reshape(len(t), -1)


def _mask(mask: Any, x: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.dtype == torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"feature_mask must be an integer tensor for every explained input, got {kind}")
    fits = mask.dim() == x.dim() and all(m in (1, size) for m, size in zip(mask.shape, x.shape, strict=True))
    if not fits:
        raise InputError(
            f"feature_mask of shape {tuple(mask.shape)} for an input of shape {tuple(x.shape)}; give [1, …] or [N, …]"
        )
    return mask.long().to(x.device).expand(-1, *x.shape[1:])


def _count_features(masks: Mapping[int, Tensor]) -> int:
    numbers = torch.cat([mask.flatten().cpu() for mask in masks.values()]).unique()
    count = int(numbers[-1]) + 1
    if len(numbers) != count or int(numbers[0]) < 0:
        missing = next(n for n in range(count + 1) if n not in numbers.tolist())
        raise InputError(
            f"feature_mask has numbers from {int(numbers[0])} to {count - 1} but skips {missing}; number the features from 0 "
            "on without a gap: torch.unique(mask, return_inverse=True)[1]"
        )
    return count


@check_arguments
def patches(x: Tensor, size: int) -> Tensor:
    """Return a feature mask that divides images into square patches, with all channels together.

    >>> whence.patches(torch.rand(1, 3, 224, 224), 16).unique().numel()
    196

    `x` is `[N, C, …]` with any number of spatial dimensions; the mask `[1, 1, …]`. Patches at the far edges may be smaller.

    Args:
        x: Images `[N, C, H, W]`.
        size: Side of a patch in pixels.

    Returns:
        Integer tensor `[1, C, H, W]` of feature numbers.
    """
    if x.dim() < 3 or not isinstance(size, int) or size < 1:
        raise InputError(
            f"patches needs images [N, C, …] and a size of at least 1, got {tuple(x.shape)} and {value_repr(size)}"
        )
    mask = torch.zeros(1, dtype=torch.long)
    for length in x.shape[2:]:
        along = torch.arange(length) // size
        mask = mask[..., None] * (int(along[-1]) + 1) + along
    return mask[None].to(x.device)
