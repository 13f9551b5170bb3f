"""Where relevance went: what reached the input, and what biases, ε and shifts absorbed, layer by layer."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whence.lrp.torch_compat.deferred_checks import check_holds

LOW_SHARE = 0.01  # of the output
MAX_LINES = 8  # of samples, in print


@dataclass(frozen=True)
class Conservation:
    """`output = relevance + absorbed + baseline`, measured for each sample.

    >>> whence.explain(model, x, method=whence.LRP()).conservation
    Conservation: output 9.41 = relevance 9.37 + absorbed 0.04 (error 2e-07)
    >>> whence.explain(model, x, method=whence.IntegratedGradients()).conservation
    Conservation: output 9.41 = relevance 9.32 + baseline 0.09 (error 4e-05)

    `absorbed` is summed up on the way back from what each layer kept; it is None where the method cannot measure it, and
    `by_layer` is then empty. `baseline` is the output that was there without the features, for methods that compare with a
    baseline. Where `through` was given, `conditional_output` is what of the output flows through the condition, and the parts
    add up to that instead. `gap` is output − relevance − absorbed − baseline, `error` |gap| / |output|; `adds_up` says whether
    the method means them to vanish. A gap that rounding cannot have made is a `ConservationWarning`.
    """

    output: Tensor  # [N]
    relevance: Tensor  # [N]
    absorbed: Tensor | None = None  # [N]
    by_layer: dict[str, Tensor] = field(default_factory=dict)  # module path -> [N]
    baseline: Tensor | None = None  # [N]
    adds_up: bool = True
    conditional_output: Tensor | None = None  # [N], what of the output a condition lets through

    @property
    def explained(self) -> Tensor:
        """The amount that the parts should add up to, `[N]`: the output, or what of it a condition lets through."""
        return self.output if self.conditional_output is None else self.conditional_output

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts that should add up to the output, as far as the method measures them."""
        parts = {"relevance": self.relevance, "absorbed": self.absorbed, "baseline": self.baseline}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def gap(self) -> Tensor:
        return self.explained - sum(self.parts.values())

    @property
    def error(self) -> Tensor:
        amounts = torch.stack([part.abs() for part in self.parts.values()])
        eps = torch.finfo(self.output.dtype).eps
        rounding = eps * (amounts.sum(0) + 1)
        scale = torch.where(
            self.explained == 0, amounts.sum(0) + 1e4 * eps, self.explained.abs()
        )  # a ReLU at the end may give 0
        return self.gap.abs() / torch.maximum(scale, rounding)

    @property
    def tolerance(self) -> float:
        """The error that is shown as none."""
        return max(1e-3, 16 * torch.finfo(self.output.dtype).eps)

    @property
    def rounded(self) -> bool:
        """Whether all gaps may be rounding: below a hundredth of the amounts that went about, or that of numbers around 1."""
        parts = torch.stack([part.abs() for part in (self.explained, *self.parts.values(), *self.by_layer.values())]).sum(0)
        small = self.gap.abs() <= 10 * self.tolerance * parts + 500 * torch.finfo(parts.dtype).eps
        return check_holds(small | (self.error <= self.tolerance))

    @property
    def caution(self) -> str:
        """A sentence where less than a hundredth of an output reached the input: the heatmap then shows next to none of it."""
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

    def __getitem__(self, samples: slice) -> "Conservation":
        """The account of some of the samples."""
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
                lines.append(
                    f"output {self.output[i]:.4g}; relevance {self.relevance[i]:.4g} does not add up to it by this method"
                )
                continue
            equals = "=" if self.error[i] < self.tolerance else "≠"
            parts = " + ".join(f"{name} {part[i]:.4g}" for name, part in self.parts.items())
            through = "" if self.conditional_output is None else f", through the condition {self.conditional_output[i]:.4g}"
            lines.append(f"output {self.output[i]:.4g}{through} {equals} {parts} (error {self.error[i]:.0e})")
        if left := len(self.output) - len(shown):
            lines.append(f"and {left} more{f' (largest error {self.error.max():.0e})' if self.adds_up else ''}")
        return "Conservation: " + "\n              ".join([*lines, *filter(None, [self.caution])])


class ConservationMeter:
    """Collects what each layer absorbs while relevance returns, unless nobody will read it."""

    def __init__(self, idle: bool = False):
        self._idle = idle
        self._absorbed: defaultdict[str, list[Tensor]] = defaultdict(list)  # [rows] each

    def add(self, path: str, amount: Tensor) -> None:
        """`amount` [rows, …] was absorbed at `path`."""
        if not self._idle:
            self._absorbed[path].append(batch_sum(amount.detach()))

    def forget(self) -> None:
        """Forget what was absorbed since the last reading."""
        self._absorbed.clear()

    def read(self, output: Tensor, relevance: Tensor, conditional_output: Tensor | None = None) -> Conservation:
        """The account since the last reading.

        A batch folded into the first dimension (windows) is unfolded. Where a network takes the samples of a batch apart,
        mixes them, or holds them elsewhere than in the first dimension, what a layer absorbed is known only in sum. It is then
        shared out so that the samples balance as far as the sum does.
        """
        explained = output if conditional_output is None else conditional_output
        by_layer = {path: _sum(amounts, output) for path, amounts in self._absorbed.items()}
        self._absorbed.clear()
        absorbed = sum(by_layer.values(), torch.zeros_like(output))
        gap = explained - relevance - absorbed
        flow = explained.abs() + relevance.abs() + absorbed.abs()
        rounding = max(1000 * torch.finfo(output.dtype).eps, 1e-6) * flow  # float64 networks may compute in parts in float32
        only_in_sum = (gap.sum().abs() <= rounding.sum()) & (gap.abs() > rounding).any()
        absorbed = torch.where(only_in_sum, absorbed + gap - gap.mean(), absorbed)
        return Conservation(output, relevance, absorbed, by_layer, conditional_output=conditional_output)


def _sum(amounts: list[Tensor], like: Tensor) -> Tensor:
    """Return the sum of amounts for each sample, as far as the rows tell samples apart."""
    amounts = [sum_by_sample(amount.to(like), like.shape[0]) for amount in amounts]
    return amounts[0] if len(amounts) == 1 else torch.stack(amounts).sum(0)


def sum_by_sample(amount: Tensor, count: int) -> Tensor:
    """Amounts `[rows, …]` of each of `count` samples, `[count]`; in equal shares where the rows do not tell them apart."""
    if amount.dim() == 1 and amount.shape[0] == count:
        return amount
    if amount.dim() and amount.shape[0] % count == 0:
        return amount.reshape(count, -1).sum(1)
    return (amount.sum() / count).expand(count)


def batch_dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b of each sample, `[batch]`, without a product in memory."""
    return torch.linalg.vecdot(_rows(a), _rows(b))


def batch_sum(a: Tensor) -> Tensor:
    """Σ a of each sample, `[batch]`."""
    return a if a.dim() == 1 else _rows(a).sum(1)


def _rows(a: Tensor) -> Tensor:
    """`[batch, numbers]`, also of a batch of none."""
    return a.flatten(1) if a.dim() > 1 else a.reshape(-1, 1)
