"""Randomization metrics: explanations must change with the weights and with the class (Adebayo et al. 2018)."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from whence.core.devices import is_offloaded
from whence.errors import ModelError, RuleError, TargetError, value_repr
from whence.evaluation.evaluation_batch import ExplainedBatch, MethodAdapter
from whence.evaluation.metrics.faithfulness_subsets import pearson
from whence.evaluation.metrics.robustness import float_inputs, uniform_noise
from whence.lrp.engine.prepared_model import PreparedModel

BINS = 100


@dataclass(frozen=True)
class MPRT:
    """Model parameter randomization test (Adebayo et al. 2018): correlation with explanations of randomized models.

    Layers are reinitialized one after the other, from the output down. The value is Spearman's correlation between each map and
    that of the trained model, averaged over all stages (without the intact model). It is near 0 for explanations that depend
    on the weights, and 1 for edge detectors. The model itself is not modified; a copy is.

    >>> whence.evaluate(model, x, ["lrp", "gradient_times_input"], [whence.metrics.MPRT()])

    Args:
        absolute: Whether to correlate |R| rather than R.
        seed: Random seed.
    """

    absolute: bool = True
    seed: int = 0

    name: ClassVar[str] = "mprt"
    better: ClassVar[str] = "lower"
    needs_module: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        here = self._map(case.flat())
        stages = [spearman(here, self._map(case.flat(again.relevance))) for again in randomized_models(case, self.seed)]
        return torch.stack(stages).nanmean(0)

    def _map(self, flat: Tensor) -> Tensor:
        return flat.abs() if self.absolute else flat


@dataclass(frozen=True)
class SmoothMPRT:
    """`MPRT` with maps averaged over noisy inputs (Hedström et al. 2023).

    >>> whence.evaluate(model, x, ["lrp", "gradient_times_input"], [whence.metrics.SmoothMPRT()])

    Args:
        n_samples: The number of noisy inputs.
        noise: The standard deviation of the noise, relative to that of the input.
        absolute: Whether to correlate |R| rather than R.
        seed: Random seed.
    """

    n_samples: int = 10
    noise: float = 0.1
    absolute: bool = True
    seed: int = 0

    name: ClassVar[str] = "smooth_mprt"
    better: ClassVar[str] = "lower"
    needs_module: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        here, stages = self._map(case), []
        for again in randomized_models(case, self.seed):
            stages.append(spearman(here, self._map(again)))
        return torch.stack(stages).nanmean(0)

    def _map(self, case: ExplainedBatch) -> Tensor:
        parts = float_inputs(case.batch)
        uniform = uniform_noise(case.batch, parts, self.n_samples, self.name)
        total = 0
        for k in range(self.n_samples):
            moved = {i: x + 3**0.5 * (2 * uniform[i][k] - 1) * self.noise * _std(x) for i, x in parts.items()}
            total = total + case.flat(case.again(moved))
        return total.abs() if self.absolute else total  # type: ignore


@dataclass(frozen=True)
class EfficientMPRT:
    """Relative increase (ξ(R′) − ξ(R)) / ξ(R) of the histogram entropy ξ by randomization (Hedström et al. 2023, eq. 6).

    R′ is the explanation of a model whose weights are all random. Positive values mean that the explanation of the trained
    model is less complex.

    >>> whence.evaluate(model, x, ["lrp", "gradient_times_input"], [whence.metrics.EfficientMPRT()])

    Args:
        seed: Random seed.
    """

    seed: int = 0

    name: ClassVar[str] = "efficient_mprt"
    better: ClassVar[str] = "higher"
    needs_module: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        (random,) = randomized_models(case, self.seed, only_all=True)
        here, there = (histogram_entropy(of.flat()) for of in (case, random))
        return (there - here) / here


@dataclass(frozen=True)
class RandomLogit:
    """Spearman's correlation with the explanation of another class, drawn at random (Sixt et al. 2020).

    >>> whence.evaluate(model, x, ["lrp", "gradient_times_input"], [whence.metrics.RandomLogit()])

    Args:
        seed: Random seed.
    """

    seed: int = 0

    name: ClassVar[str] = "random_logit"
    better: ClassVar[str] = "lower"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        batch = case.batch
        if not isinstance(batch.target, Tensor):
            raise TargetError(f"random_logit needs a class as target, got {value_repr(batch.target)}")
        classes = batch.logits.shape[1]
        if classes < 2:
            raise RuleError("random_logit needs at least two classes")
        steps = torch.stack([torch.randint(1, classes, (), generator=r) for r in batch.random(f"logit {self.seed}")])
        other = (batch.target + steps.to(batch.target.device)) % classes
        return spearman(case.flat(), case.flat(case.way.relevance(batch.inputs, other)))


def randomized_models(case: ExplainedBatch, seed: int, only_all: bool = False) -> Iterator[ExplainedBatch]:
    """Yield the batch explained for copies of the model, with one more layer randomized each, from the output down."""
    model = case.way.prepared.model
    if is_offloaded(model):
        raise ModelError("the weights of an offloaded model cannot be randomized; load the model into memory")
    copy = deepcopy(model)
    assert isinstance(copy, nn.Module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1_000_003 * case.batch.seed)
        layers = [module for module in copy.modules() if next(module.parameters(recurse=False), None) is not None]
        if not layers:
            raise ModelError("the model has no weights to randomize")
        for i, layer in enumerate(reversed(layers)):
            _reinitialize(layer)
            if not only_all or i == len(layers) - 1:
                state = torch.get_rng_state()
                yield MethodAdapter(case.way.name, case.way.method, PreparedModel(copy)).case(_with_model(case, copy))
                torch.set_rng_state(state)


def _with_model(case: ExplainedBatch, model: Any) -> Any:
    return replace(case.batch, task=replace(case.batch.task, prepared=PreparedModel(model)))


def _reinitialize(layer: nn.Module) -> None:
    """Reinitialize a layer by `reset_parameters`, or else from a normal distribution with the spread of its weights."""
    if callable(getattr(layer, "reset_parameters", None)):
        layer.reset_parameters()  # type: ignore
        return
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs().sum()
            parameter.copy_(torch.randn_like(parameter) * spread.nan_to_num(1.0))


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Compute the rank correlation of each row, `[N]`; ties share the mean of their ranks."""
    return pearson(_ranks(a), _ranks(b), dim=1)


def _ranks(a: Tensor) -> Tensor:
    rising = a.contiguous().sort(1).values
    return (torch.searchsorted(rising, a.contiguous()) + torch.searchsorted(rising, a.contiguous(), right=True)).double() / 2


def histogram_entropy(maps: Tensor) -> Tensor:
    """Compute the entropy of a histogram of 100 bins from the smallest to the largest value of each map, `[N]`."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    bins = ((maps - low) / (high - low).clamp(min=1e-300) * BINS).long().clamp(max=BINS - 1)
    counts = torch.zeros(len(maps), BINS, dtype=torch.float64).scatter_add_(1, bins, torch.ones_like(maps))
    return torch.special.entr(counts / maps.shape[1]).sum(1)


def _std(x: Tensor) -> Tensor:
    return x.flatten(1).std(1).view(-1, *[1] * (x.dim() - 1))
