"""The evidence for or against a cluster: the measured effect of what its samples have in common."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from whence.auditing.marks import BackgroundMark, Mark, MovingMark, TokenMark, ToneMark
from whence.evaluation.bootstrap import Interval
from whence.evaluation.results import format_interval

Test = Literal["transplant", "coherence", "crop", "tone", "tokens"]
THRESHOLDS: dict[str, float] = {"transplant": 0.35, "coherence": 0.25, "crop": 0.3, "tone": 0.2, "tokens": 0.3}
IDENTICAL = 0.95  # coherence from which on the content of a transplant is the same in all samples, unlike a stroke of a digit
IDENTICAL_THRESHOLD = 0.05  # of the effect of such content
FALSE_DISCOVERIES = 0.05  # share of false ones among the effects that are accepted (Benjamini and Hochberg 1995)


@dataclass(frozen=True, eq=False)
class Evidence:
    """A test of a cluster, with the effect in plain units.

    Args:
        test: "transplant": the change of the class's probability where the common content is pasted on samples of other
            classes. "crop", "tone" and "tokens": the same for marks at changing places. "coherence": the mean cosine of the
            samples' fine structure, without the model.
        effect: The effect, beyond that of a control where there is one.
        passed: Whether the effect reaches its threshold and is not one of chance.
        mark: What was pasted, which `prove` and `cure` use; None for "coherence".
        interval: The effect with its 95 % bootstrap interval; None without repeated measurements.
        control: The change of the probability by the control.
        p_value: Of the effect, not corrected for the number of candidates.
        recurrence: Share of the samples of the class, and of others, that contain the mark; for marks at changing places.
        examples: Samples of other classes without and with the mark, `[k, …]` each; for pictures and series.
        coherence: Mean cosine of the samples' fine structure at the positions of a transplant.
    """

    test: Test
    effect: float
    passed: bool
    mark: Mark | None = None
    interval: Interval | None = None
    control: float = math.nan
    p_value: float = math.nan
    recurrence: tuple[float, float] | None = None
    examples: tuple[Tensor, Tensor] | None = None
    coherence: float = math.nan

    def words(self, name: str) -> str:
        """Return the evidence as one sentence on the class of this name."""
        effect = format_interval(self.interval) if self.interval is not None else f"{self.effect:.2f}"
        if self.test == "coherence":
            return f"its samples have the same fine structure there (mean cosine {self.effect:.2f}), as with a watermark"
        control = "" if math.isnan(self.control) else f" (a control: {round(self.control, 2) + 0.0:.2f})"
        same = f", and it is the same in all of them (mean cosine {self.coherence:.2f})" if self.coherence >= IDENTICAL else ""
        found = f"{self._intervention} changes the probability of {name} by {effect}{control}{same}"
        if self.recurrence is None:
            return found
        inside, outside = self.recurrence
        return f"{found}; {inside:.0%} of the class have it, {outside:.1%} of others"

    @property
    def _intervention(self) -> str:
        """The intervention, in words."""
        if isinstance(self.mark, MovingMark):
            return f"pasting a detail of {' × '.join(map(str, self.mark.crop.shape[1:]))} pixels at random places"
        if isinstance(self.mark, BackgroundMark):
            return "giving samples of other classes the background of its samples"
        if isinstance(self.mark, ToneMark):
            sizes = self.mark.amplitude.amax(0)
            cycles = (sizes >= sizes.max() / 2).nonzero()[:, 0]
            band = " to ".join(str(n) for n in dict.fromkeys([int(cycles.min()), int(cycles.max())]))
            return f"adding the frequencies of its samples, {band} cycles, at random phases"
        if isinstance(self.mark, TokenMark):
            return f"pasting the tokens {', '.join(map(str, self.mark.ids))} at a random place"
        return "pasting what its samples have in common on samples of other classes"


def least_effect(test: Test, coherence: float = math.nan) -> float:
    """Return the effect from which on a test passes; for a transplant, it depends on the coherence of what is pasted."""
    return IDENTICAL_THRESHOLD if test == "transplant" and coherence >= IDENTICAL else THRESHOLDS[test]


def accepted(p_values: list[float]) -> list[bool]:
    """Return which of several tests are significant at a false discovery rate of 5 %."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    limit = max((k for k, i in enumerate(order, 1) if p_values[i] <= FALSE_DISCOVERIES * k / len(order)), default=0)
    found = set(order[:limit])
    return [i in found for i in range(len(p_values))]


def as_plain(evidence: Evidence | None) -> dict[str, Any] | None:
    """Return the numbers of the evidence as JSON-compatible types."""
    if evidence is None:
        return None
    found = {name: getattr(evidence, name) for name in ("test", "effect", "passed", "control", "p_value", "recurrence")}
    interval = None if evidence.interval is None else list(evidence.interval[1:3])
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()} | {
        "interval": interval
    }
