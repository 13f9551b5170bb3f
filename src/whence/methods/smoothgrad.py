"""SmoothGrad and its variants: the relevance of any method, aggregated over noisy copies of the input."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from whence.core.explanation import Explanation
from whence.core.inputs import Inputs
from whence.errors import InputError, RuleError, value_repr
from whence.lrp.engine.embeddings import NO_POSITION, AlterLookup, Lookup
from whence.methods.batching import run_batched
from whence.methods.forward_backward import Task, make_explanation, reject_layers, target_values
from whence.methods.gradients import Sensitivity
from whence.methods.per_sample_settings import method_of_samples
from whence.methods.running_statistics import RunningMoments

NOISE_LEVEL = 0.15  # fraction of the range of each sample's values (Smilkov et al. 2017, section 3.2: 10 to 20 %)
AGGREGATIONS = {
    "smoothgrad": RunningMoments.means,
    "smoothgrad_sq": RunningMoments.mean_squares,
    "vargrad": RunningMoments.variances,
}


@dataclass(frozen=True)
class SmoothGrad:
    """SmoothGrad: the mean of a method's relevance over noisy copies of the input (Smilkov et al. 2017).

    >>> whence.explain(model, x, target=3, method=whence.SmoothGrad())                         # averages the gradient
    >>> whence.explain(model, x, target=3, method=whence.SmoothGrad(whence.LRP(), n_samples=10, stdevs=0.1))

    The noise is the same for every sample. Targets are resolved on the input without noise. The scores do not add up to the
    output, since the relevance is averaged over copies with different outputs.

    Args:
        method: Method whose relevance is averaged; the signed gradient, `Sensitivity("signed")`, by default.
        n_samples: Number of noisy copies, at least 1, or 2 for "vargrad".
        stdevs: Standard deviation of the noise in units of the input; 15 % of the range of each sample's values by default.
            For token ids the noise is added to the embeddings.
        kind: "smoothgrad" for the mean, "smoothgrad_sq" for the mean of squares (Hooker et al. 2019), "vargrad" for the
            variance (Adebayo et al. 2018).
        seed: Random seed of the noise.
        batch_size: Number of noisy samples that the model evaluates at once; chosen by the size of the input by default.
    Raises:
        RuleError: `method` is not a method, `kind` is unknown, `n_samples` is too small or `stdevs` is negative.
    """

    method: Any = field(default_factory=lambda: Sensitivity("signed"))
    n_samples: int = 25
    stdevs: float | None = None
    kind: Literal["smoothgrad", "smoothgrad_sq", "vargrad"] = "smoothgrad"
    seed: int = 0
    batch_size: int | None = None

    name: ClassVar[str] = "smooth_grad"

    def __post_init__(self):
        if not hasattr(self.method, "explanations") or isinstance(self.method, type):
            raise RuleError(f"{value_repr(self.method)} is not a method; pass an instance such as whence.GradientTimesInput()")
        if self.kind not in AGGREGATIONS:
            raise RuleError(f"kind={value_repr(self.kind)}; choose from {', '.join(AGGREGATIONS)}")
        if not isinstance(self.n_samples, int) or self.n_samples < 1 + (self.kind == "vargrad"):
            raise RuleError(
                f"n_samples={value_repr(self.n_samples)} is too few for kind={value_repr(self.kind)}; expected an int of at "
                "least "
                f"{1 + (self.kind == 'vargrad')}"
            )
        if self.stdevs is not None and self.stdevs < 0:
            raise RuleError(f"stdevs={value_repr(self.stdevs)} is negative; expected a standard deviation of at least 0")

    def explanations(self, task: Task) -> Iterator[Explanation]:
        reject_layers(self, task)
        answers = target_values(task)
        noise = GaussianNoise(task.inputs, self.stdevs, self.seed)
        totals = [RunningMoments() for _ in answers]

        def relevance(rounds: slice) -> list[dict[int, Tensor]]:
            times = rounds.stop - rounds.start
            moved = task.moved(times, noise.points(rounds), [target for _, target in answers], noise.alter(rounds))
            count = task.inputs.batch_size
            method = method_of_samples(self.method, [*range(count)] * times, count)
            found = (task.inputs.apart(e.relevance) for e in method.explanations(moved))
            return [{i: r.view(times, -1, *r.shape[1:]) for i, r in parts.items()} for parts in found]

        for found in run_batched(self, task, self.n_samples, relevance, self.batch_size):
            for total, of_target in zip(totals, found, strict=True):
                total.add(of_target)
        for (output, target), total in zip(answers, totals, strict=True):
            yield make_explanation(self, task, output, target, AGGREGATIONS[self.kind](total))


@dataclass(frozen=True)
class GaussianNoise:
    """Gaussian noise on the floating-point inputs and on the embeddings of token ids, the same for every sample."""

    inputs: Inputs
    stdevs: float | None
    seed: int

    def __post_init__(self):
        ranges = [_value_range(self.inputs.parts[i]).cpu() for i in self.inputs.explained]
        if self.stdevs is None and ranges and not torch.stack([r.float() for r in ranges]).any(0).all():
            raise InputError("all values of a sample are equal, so their range cannot set the noise level; give stdevs")

    def points(self, rounds: slice) -> dict[int, Tensor]:
        """Return noisy copies of the floating-point inputs, `[rounds · N, …]`."""
        return {i: self._points(i, rounds) for i in self.inputs.explained}

    def alter(self, rounds: slice) -> AlterLookup | None:
        """Return a function that adds noise to the embeddings of token ids, or None if there are no ids."""
        ids = self.inputs.ids
        if not ids:
            return None
        device, own = next(iter(ids.values())).device, -1
        places, samples = [], []  # for each id: the index of its noise, by round and position, and the index of its sample
        positions = sum(t[0].numel() for t in ids.values() if self.inputs.of_batch(t))
        start = 0
        for t in ids.values():
            if not self.inputs.of_batch(t):
                places.append(torch.full((t.numel(),), own))
                samples.append(torch.zeros(t.numel(), dtype=torch.long))
                continue
            of_round = torch.arange(rounds.stop - rounds.start)[:, None, None] * positions
            of_sample = torch.arange(start, start + t[0].numel())
            places.append((of_round + of_sample).expand(-1, len(t), -1).flatten())
            samples.append(torch.arange(len(t))[:, None].expand(len(of_round), -1, t[0].numel()).flatten())
            start += t[0].numel()
        place_at, sample_at = (torch.cat(parts).to(device) for parts in (places, samples))

        def alter(lookup: Lookup) -> Lookup:
            vectors, place, sample = lookup.vectors, place_at[lookup.places], sample_at[lookup.places]
            still = ((lookup.places == NO_POSITION) | (place == own))[..., None]
            drawn = self._drawn((positions, vectors.shape[-1]), rounds, "ids").flatten(0, 1).to(vectors)[place]
            return replace(lookup, vectors=vectors + self._deviation(vectors, sample, still) * drawn.masked_fill(still, 0))

        return alter

    def _deviation(self, vectors: Tensor, sample: Tensor, still: Tensor) -> Any:
        """Return the standard deviation of the noise on each embedding, a fraction of the range of its sample's embeddings."""
        if self.stdevs is not None:
            return self.stdevs
        lowest, highest = torch.zeros(2, len(self._first), dtype=vectors.dtype, device=vectors.device)
        flat = sample.flatten()
        for ends, found, reduce in ((highest, vectors.amax(-1), "amax"), (lowest, vectors.amin(-1), "amin")):
            ends.scatter_reduce_(0, flat, found.masked_fill(still[..., 0], 0).flatten(), reduce)
        return NOISE_LEVEL * (highest - lowest)[sample][..., None]

    @property
    def _first(self) -> Tensor:
        return next(iter(self.inputs.ids.values()))

    def _points(self, i: int, rounds: slice) -> Tensor:
        x = self.inputs.parts[i]
        noise = self._drawn(tuple(x.shape[1:]), rounds, str(i))[:, None].to(x)
        if self.stdevs is not None:
            return (x + self.stdevs * noise).flatten(0, 1)
        return (x + NOISE_LEVEL * _value_range(x).view(-1, *[1] * (x.dim() - 1)) * noise).flatten(0, 1)

    def _drawn(self, shape: tuple[int, ...], rounds: slice, stream: str) -> Tensor:
        """Draw the noise of each round, `[rounds, …]`, independently of how the rounds are batched."""
        seeds = (zlib.crc32(f"{self.seed}, {stream}, {r}".encode()) for r in range(rounds.start, rounds.stop))
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def _value_range(x: Tensor) -> Tensor:
    """Return the difference between the largest and the smallest value of each sample, `[N]`."""
    rows = x.reshape(len(x), -1)
    return rows.amax(1) - rows.amin(1)
