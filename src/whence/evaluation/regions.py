"""The regions of inputs that are removed together: pixels, patches, superpixels, tokens, columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.inputs import Inputs
from whence.core.trees import Tree
from whence.errors import InputError, MissingPackageError, value_repr
from whence.methods import feature_masks
from whence.methods.feature_masks import PATCHES_PER_SIDE, patches

RegionSpec = None | str | int | Tensor | Callable[[Any], Any] | Tree


@dataclass(frozen=True)
class Regions:
    """The regions of a batch, numbered from 0 across all input parts; entries numbered −1 are in no region."""

    masks: dict[int, Tensor]  # input part -> region numbers [1 or N, …], broadcast against the part
    valid: Tensor  # [N, regions]; samples may have different numbers of regions

    @classmethod
    def of(cls, spec: RegionSpec, inputs: Inputs, parts: Sequence[int]) -> "Regions":
        """Return the regions by a specification.

        `spec` is a mask of region numbers, a function from inputs to such a mask, the side length of square patches, "pixels",
        or None: patches of images, about fourteen per side, and single entries or tokens of other inputs.
        """
        given = feature_masks.by_part(spec, inputs, "regions") if spec is not None and _is_masks(spec) else {}
        masks, start = {}, 0
        for i in parts:
            x = inputs.parts[i]
            mask = given[i] if i in given else _region_mask(spec, x) + start
            masks[i] = _check_mask(mask, x)
            start = int(masks[i].max()) + 1
        blank = inputs.named("attention_mask")
        for i in parts:
            if isinstance(blank, Tensor) and blank.shape == inputs.parts[i].shape and not inputs.parts[i].is_floating_point():
                masks[i] = torch.where(blank.bool(), masks[i], -1)
        return cls(masks, _valid_regions(masks, inputs.batch_size))

    @property
    def counts(self) -> Tensor:
        """The number of regions of each sample, `[N]`."""
        return self.valid.sum(1)

    def means(self, relevance: dict[int, Tensor]) -> Tensor:
        """Compute the mean relevance over the positions of each region, `[N, regions]`."""
        total, sizes = self._collected(relevance)
        return total / sizes.clamp(min=1)

    def sums(self, relevance: dict[int, Tensor]) -> Tensor:
        """Compute the summed relevance of each region, `[N, regions]`."""
        return self._collected(relevance)[0]

    def entries(self, chosen: Tensor) -> dict[int, Tensor]:
        """Return boolean masks `[rounds, N, …]`, by part, of the entries in chosen regions `[rounds, N, regions]`."""
        found = {}
        for i, mask in self.masks.items():
            padded = torch.cat([chosen, chosen.new_zeros(*chosen.shape[:2], 1)], 2).to(
                mask.device
            )  # index −1 selects the added column
            numbers = mask.flatten(1).expand(chosen.shape[1], -1) % padded.shape[2]
            picked = padded.gather(2, numbers.expand(len(padded), -1, -1))
            found[i] = picked.view(*chosen.shape[:2], *mask.shape[1:])
        return found

    def _collected(self, relevance: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute each region's relevance and number of positions, `[N, regions]`; channels that share a region count once."""
        total = torch.zeros(self.valid.shape, dtype=torch.float64)
        sizes = torch.zeros_like(total)
        for i, mask in self.masks.items():
            scores = relevance[i].double().cpu()
            through = [d for d in range(1, mask.dim()) if mask.shape[d] == 1 and scores.shape[d] > 1]
            scores = (scores.sum(through, keepdim=True) if through else scores).flatten(1)
            numbers = mask.expand(len(scores), *mask.shape[1:]).flatten(1).cpu()
            inside = (numbers >= 0).double()
            total.scatter_add_(1, numbers.clamp(min=0), scores * inside)
            sizes.scatter_add_(1, numbers.clamp(min=0), inside)
        return total, sizes


@check_arguments
def superpixels(x: Tensor, count: int, compactness: float = 10.0) -> Tensor:
    """Divide each image into superpixels (SLIC, Achanta et al. 2012; scikit-image), and return them as a feature mask.

    >>> whence.explain(model, x, method=whence.Shapley(feature_mask=whence.superpixels(x[:1], 50)))
    >>> whence.evaluate(model, x, ["lrp"], ["srg"], regions=lambda x: whence.superpixels(x, 100))

    Args:
        x: Images `[N, C, H, W]`.
        count: The approximate number of superpixels per image.
        compactness: The weight of spatial distance relative to color distance; larger values give squarer superpixels. It
            applies to images with three channels; for others it is 0.1.
    Returns:
        Region numbers `[N, 1, H, W]`, from 0 without gaps in each image.
    Raises:
        InputError: `x` is not `[N, C, H, W]`.
        MissingPackageError: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise MissingPackageError("superpixels() needs scikit-image; pip install scikit-image") from error
    if x.dim() != 4:
        raise InputError(f"superpixels() expects images [N, C, H, W], got shape {tuple(x.shape)}")
    found = []
    for picture in x.detach().float().cpu():
        low, high = picture.amin((1, 2), keepdim=True), picture.amax((1, 2), keepdim=True)
        scaled = ((picture - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).double().numpy()
        channels = {"channel_axis": -1, "convert2lab": len(picture) == 3}
        cut = slic(scaled, count, compactness if len(picture) == 3 else 0.1, start_label=0, **channels)
        found.append(torch.from_numpy(cut).unique(return_inverse=True)[1])
    return torch.stack(found)[:, None].to(x.device)


def _is_masks(spec: Any) -> bool:
    return not (isinstance(spec, str | int) or callable(spec))


def _region_mask(spec: RegionSpec, x: Tensor) -> Tensor:
    if isinstance(spec, str) and spec != "pixels":
        raise InputError(
            f"unknown regions {value_repr(spec)}; give 'pixels', the side length of square patches, or a mask: "
            "whence.superpixels(x, 100)"
        )
    if callable(spec):
        return torch.as_tensor(spec(x))
    if x.dim() < 3 or not x.is_floating_point():
        return torch.arange(x[0].numel(), device=x.device).view(1, *x.shape[1:])
    if spec is None:
        return patches(x, -(-max(x.shape[2:]) // PATCHES_PER_SIDE))
    assert not isinstance(spec, Tensor)
    return patches(x, 1 if spec == "pixels" else spec)  # type: ignore[arg-type]


def _check_mask(mask: Any, x: Tensor) -> Tensor:
    fits = (
        isinstance(mask, Tensor)
        and not mask.is_floating_point()
        and mask.dim() == x.dim()
        and all(m in (1, size) for m, size in zip(mask.shape, x.shape, strict=True))
    )
    if not fits:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"invalid regions {shape} for inputs of {tuple(x.shape)}; expected an integer tensor [1, …] or [N, …]")
    return mask.long().to(x.device)


def _valid_regions(masks: dict[int, Tensor], samples: int) -> Tensor:
    count = max(int(mask.max()) for mask in masks.values()) + 1
    valid = torch.zeros(samples, count + 1, dtype=torch.bool)
    for mask in masks.values():
        numbers = mask.flatten(1).expand(samples, -1).cpu()
        valid.scatter_(1, numbers % (count + 1), True)
    return valid[:, :count]
