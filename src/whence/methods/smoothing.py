"""SmoothGrad and its kin: any method's relevance, gathered over noisy copies of the input."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from whence.errors import RuleError
from whence.explanation import Explanation
from whence.inputs import Inputs
from whence.lrp.lookups import NOWHERE, Alter, Lookup
from whence.methods.batches import batched
from whence.methods.gradients import Sensitivity
from whence.methods.moments import Moments
from whence.methods.passes import Task, explanation, refuse_layers, resolved

NOISE_LEVEL = 0.15  # of the range of each sample's values (Smilkov et al. 2017, section 3.2: 10 to 20 %)
KINDS = {"smoothgrad": Moments.means, "smoothgrad_sq": Moments.mean_squares, "vargrad": Moments.variances}


@dataclass(frozen=True)
class SmoothGrad:
    """The mean of a method's relevance over noisy copies of the input (Smilkov et al. 2017).

    >>> whence.explain(model, x, target=3, method=whence.SmoothGrad())                         # of the gradient
    >>> whence.explain(model, x, target=3, method=whence.SmoothGrad(whence.LRP(), n_samples=10, stdevs=0.1))

    `stdevs` is the noise's standard deviation in units of the input, 15 % of each sample's range if not given; token ids get it
    on their vectors. `kind` is "smoothgrad", "smoothgrad_sq" (the mean of squares, Hooker et al. 2019) or "vargrad" (the
    variance, Adebayo et al. 2018). Noise is the same for every sample and set by `seed`; targets are those of the input
    itself. It does not add up to the output where the relevance is averaged over outputs that differ.
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
            raise RuleError(f"{self.method!r} is no method; pass one such as whence.GradientTimesInput()")
        if self.kind not in KINDS:
            raise RuleError(f"kind={self.kind!r}; choose from {', '.join(KINDS)}")
        if not isinstance(self.n_samples, int) or self.n_samples < 1 + (self.kind == "vargrad"):
            raise RuleError(f"n_samples={self.n_samples!r} is too few for {self.kind}")
        if self.stdevs is not None and self.stdevs < 0:
            raise RuleError(f"stdevs={self.stdevs!r} is negative")

    def explanations(self, task: Task) -> Iterator[Explanation]:
        refuse_layers(self, task)
        answers = resolved(task)
        noise = Noise(task.inputs, self.n_samples, self.stdevs, self.seed)
        totals = [Moments() for _ in answers]

        def relevance(rounds: slice) -> list[dict[int, Tensor]]:
            times = rounds.stop - rounds.start
            moved = task.moved(times, noise.points(rounds), [target for _, target in answers], noise.alter(rounds))
            found = (task.inputs.apart(e.relevance) for e in self.method.explanations(moved))
            return [{i: r.view(times, -1, *r.shape[1:]) for i, r in parts.items()} for parts in found]

        for found in batched(self, task, self.n_samples, relevance, self.batch_size):
            for total, of_target in zip(totals, found, strict=True):
                total.add(of_target)
        for (output, target), total in zip(answers, totals, strict=True):
            yield explanation(self, task, output, target, KINDS[self.kind](total))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the floating-point parts and on the vectors of ids, the same for every sample."""

    inputs: Inputs
    rounds: int
    stdevs: float | None
    seed: int

    def points(self, rounds: slice) -> dict[int, Tensor]:
        """Noisy copies `[rounds · N, …]`."""
        return {i: self._points(i, rounds) for i in self.inputs.explained}

    def alter(self, rounds: slice) -> Alter | None:
        """Noise on the vectors of token ids."""
        ids = self.inputs.ids
        if not ids:
            return None
        drawn_at, positions = [], 0
        for t in ids.values():  # by round and position, not by sample
            of_sample = torch.arange(positions, positions + t[0].numel(), device=t.device)
            drawn_at.append((torch.arange(rounds.start, rounds.stop, device=t.device)[:, None, None], of_sample, len(t)))
            positions += t[0].numel()
        which = torch.cat([(r * positions + of_sample).expand(-1, n, -1).flatten() for r, of_sample, n in drawn_at])

        def alter(lookup: Lookup) -> Tensor:
            vectors = lookup.vectors
            stdev = NOISE_LEVEL * float(vectors.max() - vectors.min()) if self.stdevs is None else self.stdevs
            drawn = self._drawn((self.rounds * positions, vectors.shape[-1]), 1).to(vectors)
            own = lookup.places == NOWHERE  # the model's, not the user's
            return vectors + stdev * drawn[which[lookup.places]].masked_fill(own[..., None], 0)

        return alter

    def _points(self, i: int, rounds: slice) -> Tensor:
        x = self.inputs.parts[i]
        noise = self._drawn((self.rounds, *x.shape[1:]), -i)[rounds, None].to(x)
        spread = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, *[1] * (x.dim() - 1))
        stdev = NOISE_LEVEL * spread if self.stdevs is None else self.stdevs
        return (x + stdev * noise).flatten(0, 1)

    def _drawn(self, shape: tuple[int, ...], stream: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + 7919 * stream), dtype=torch.float64)
