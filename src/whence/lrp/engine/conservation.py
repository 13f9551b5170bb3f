"""The conservation account: the relevance that reached the input, and that absorbed by biases, ε and shifts in each layer."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.lrp.torch_compat.deferred_checks import check_holds

MAX_GAP = 0.2  # of f(x) − f(baseline), above which relevance does not add up
LOW_SHARE = 0.01  # of the output
MAX_LINES = 8  # samples shown by repr


@dataclass(frozen=True)
class Conservation:
    """The conservation account `output = relevance + absorbed + baseline`, measured for each sample.

    >>> whence.explain(model, x, method=whence.LRP()).conservation
    Conservation: output 9.41 = relevance 9.37 + absorbed 0.04 (error 2e-07)
    >>> whence.explain(model, x, method=whence.IntegratedGradients()).conservation
    Conservation: output 9.41 = relevance 9.32 + baseline 0.09 (error 4e-05)

    `gap` is output − relevance − absorbed − baseline, `error` is |gap| / |output|. A gap larger than rounding explains raises a
    `ConservationWarning`.

    Args:
        output: The explained output, `[N]`.
        relevance: Sum of the relevance of all input features, `[N]`.
        absorbed: Share attributed to no input (mostly biases), `[N]`, summed over the layers in the backward pass; None if the
            method cannot measure it.
        by_layer: Absorbed amount `[N]` by module path; empty if `absorbed` is None.
        baseline: Output without the features, `[N]`, for methods that compare with a baseline.
        adds_up: Whether the method is meant to satisfy the equation, so that `gap` and `error` should vanish.
        conditional_output: Part of the output that flows through the condition `through`, `[N]`, to which the parts then add up
            instead; None without a condition.
    """

    output: Tensor  # [N]
    relevance: Tensor  # [N]
    absorbed: Tensor | None = None  # [N]
    by_layer: dict[str, Tensor] = field(default_factory=dict)  # module path -> [N]
    baseline: Tensor | None = None  # [N]
    adds_up: bool = True
    conditional_output: Tensor | None = None  # [N]

    @property
    def explained(self) -> Tensor:
        """The amount that the parts should add up to, `[N]`: the output, or its part that flows through the condition."""
        return self.output if self.conditional_output is None else self.conditional_output

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts that should add up to the output, as far as the method measures them."""
        parts = {"relevance": self.relevance, "absorbed": self.absorbed, "baseline": self.baseline}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def gap(self) -> Tensor:
        """The amount that the parts do not account for, `[N]`."""
        return self.explained - sum(self.parts.values())

    @property
    def error(self) -> Tensor:
        """The gap relative to the output, `[N]`."""
        amounts = torch.stack([part.abs() for part in self.parts.values()])
        eps = torch.finfo(self.output.dtype).eps
        rounding = eps * (amounts.sum(0) + 1)
        scale = torch.where(self.explained == 0, amounts.sum(0) + 1e4 * eps, self.explained.abs())  # a final ReLU may output 0
        return self.gap.abs() / torch.maximum(scale, rounding)

    @property
    def tolerance(self) -> float:
        """The error up to which the parts count as equal to the output."""
        return max(1e-3, 16 * torch.finfo(self.output.dtype).eps)

    @property
    def rounded(self) -> bool:
        """Whether all gaps may be rounding errors: below 1% of the amounts involved, or within rounding at a scale of 1."""
        parts = torch.stack([part.abs() for part in (self.explained, *self.parts.values(), *self.by_layer.values())]).sum(0)
        small = self.gap.abs() <= 10 * self.tolerance * parts + 500 * torch.finfo(parts.dtype).eps
        return check_holds(small | (self.error <= self.tolerance))

    @property
    def caution(self) -> str:
        """A warning if the heatmap shows little of the output; else empty.

        Of LRP, if less than 1% of an output reached the input; of a comparison with a baseline, if the gap is more than a fifth
        of the output and of the difference.
        """
        if self.baseline is not None and self.adds_up:
            return self._incomplete
        if self.absorbed is None or not self.adds_up:
            return ""
        share = self.relevance.abs() / self.explained.abs().clamp(min=torch.finfo(self.output.dtype).tiny)
        share = share.where(self.explained != 0, 1.0)
        least = int(share.argmin())
        if share[least] >= LOW_SHARE:
            return ""
        layer = max(self.by_layer, key=lambda name: float(self.by_layer[name][least].abs()), default="")
        took = f"; '{layer}' absorbed most" if layer else ""
        return f"only {float(share[least]):.1%} of the output of sample {least} reached the input{took}; try other rules"

    @property
    def _incomplete(self) -> str:
        """A warning if relevance does not add up to the difference from the baseline; else empty."""
        change = self.explained - self.baseline  # type: ignore[operator]
        scale = torch.stack([change.abs(), self.relevance.abs(), self.explained.abs()]).amax(0)
        missing = self.gap.abs() / scale.clamp(min=1e3 * torch.finfo(self.output.dtype).eps)
        most = int(missing.argmax())
        if missing[most] <= MAX_GAP:
            return ""
        return (
            f"relevance adds up to {float(self.relevance[most]):.3g} for sample {most}, the output's difference from the "
            f"baseline is {float(change[most]):.3g}; take more steps or samples, or another baseline"
        )

    def __getitem__(self, samples: slice) -> "Conservation":
        """Return the account of a slice of the samples."""
        parts = {name: part[samples] for name, part in self.parts.items()}
        by_layer = {name: amount[samples] for name, amount in self.by_layer.items()}
        conditional = None if self.conditional_output is None else self.conditional_output[samples]
        return Conservation(
            self.output[samples], by_layer=by_layer, adds_up=self.adds_up, conditional_output=conditional, **parts
        )

    def __repr__(self) -> str:
        lines, shown = [], self.output[:MAX_LINES] if len(self.output) > MAX_LINES + 1 else self.output
        for i in range(len(shown)):
            if not self.adds_up:
                lines.append(f"output {self.output[i]:.4g}; relevance {self.relevance[i]:.4g} (not conserved by this method)")
                continue
            equals = "=" if self.error[i] < self.tolerance else "≠"
            parts = " + ".join(f"{name} {part[i]:.4g}" for name, part in self.parts.items())
            through = "" if self.conditional_output is None else f", through the condition {self.conditional_output[i]:.4g}"
            lines.append(f"output {self.output[i]:.4g}{through} {equals} {parts} (error {self.error[i]:.0e})")
        if left := len(self.output) - len(shown):
            lines.append(f"and {left} more{f' (largest error {self.error.max():.0e})' if self.adds_up else ''}")
        return "Conservation: " + "\n              ".join([*lines, *filter(None, [self.caution])])


class ConservationMeter:
    """Meter of the relevance that each layer absorbs in the backward pass; with `idle` it records nothing."""

    def __init__(self, idle: bool = False):
        self._idle = idle
        self.gates_reached = False  # whether relevance was absorbed by outputs of a sigmoid or softmax
        self._absorbed: defaultdict[str, list[Tensor]] = defaultdict(list)  # [rows] each

    def add(self, path: str, amount: Tensor) -> None:
        """Record that `amount` [rows, …] was absorbed at `path`."""
        if not self._idle:
            self._absorbed[path].append(batch_sum(amount.detach()))

    def forget(self) -> None:
        """Discard the amounts recorded since the last reading."""
        self._absorbed.clear()

    def take(self) -> dict[str, list[Tensor]]:
        """Return the amounts recorded since the last reading by path, and discard them."""
        absorbed = dict(self._absorbed)
        self._absorbed.clear()
        return absorbed

    def put(self, absorbed: dict[str, list[Tensor]]) -> None:
        """Replace the recorded amounts."""
        self._absorbed = defaultdict(list, absorbed)

    def read(self, output: Tensor, relevance: Tensor, conditional_output: Tensor | None = None) -> Conservation:
        """Return the account since the last reading.

        A batch folded into the first dimension (windows) is unfolded. Where a model splits or mixes the samples of a batch, or
        has them in another dimension than the first, only the sum of the amounts that a layer absorbed is known. It is then
        distributed so that each sample balances as far as the sum does.
        """
        explained = output if conditional_output is None else conditional_output
        by_layer = {path: _sum(amounts, output) for path, amounts in self.take().items()}
        absorbed = sum(by_layer.values(), torch.zeros_like(output))
        gap = explained - relevance - absorbed
        flow = explained.abs() + relevance.abs() + absorbed.abs()
        rounding = max(1000 * torch.finfo(output.dtype).eps, 1e-6) * flow  # float64 models may compute some parts in float32
        only_in_sum = (gap.sum().abs() <= rounding.sum()) & (gap.abs() > rounding).any()
        absorbed = torch.where(only_in_sum, absorbed + gap - gap.mean(), absorbed)
        return Conservation(output, relevance, absorbed, by_layer, conditional_output=conditional_output)


def _sum(amounts: list[Tensor], like: Tensor) -> Tensor:
    """Return the sum of the amounts of each sample."""
    amounts = [sum_by_sample(amount.to(like), like.shape[0]) for amount in amounts]
    return amounts[0] if len(amounts) == 1 else torch.stack(amounts).sum(0)


def sum_by_sample(amount: Tensor, count: int) -> Tensor:
    """Return amounts `[rows, …]` summed by sample, `[count]`; in equal shares if rows cannot be assigned to samples."""
    if amount.dim() == 1 and amount.shape[0] == count:
        return amount
    if amount.dim() and amount.shape[0] % count == 0:
        return amount.reshape(count, -1).sum(1)
    return (amount.sum() / count).expand(count)


def batch_dot(a: Tensor, b: Tensor) -> Tensor:
    """Return Σ a·b of each sample, `[batch]`, without the product in memory."""
    return torch.linalg.vecdot(_rows(a), _rows(b))


def batch_sum(a: Tensor) -> Tensor:
    """Return Σ a of each sample, `[batch]`."""
    return a if a.dim() == 1 else _rows(a).sum(1)


def _rows(a: Tensor) -> Tensor:
    """Return `a` as `[batch, values]`, also for an empty batch."""
    return a.flatten(1) if a.dim() > 1 else a.reshape(-1, 1)
