"""Robustness metrics: how much explanations differ between close inputs."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.inputs import Inputs
from whence.core.targets import repeat_target
from whence.errors import InputError, RuleError
from whence.evaluation.evaluation_batch import EvaluationBatch, ExplainedBatch
from whence.evaluation.method_adapters import make_adapters
from whence.lrp.engine.prepared_model import PreparedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Continuity:
    """Largest change of an explanation relative to the change of its input (Montavon, Samek and Müller 2018, section 7).

    The maximum of ‖R(x) − R(x′)‖₁ / ‖x − x′‖₂ over close inputs x′: images and series shifted along each dimension, with their
    edges replicated, or vectors with random noise added.

    >>> whence.evaluate(model, x, ["lrp", "sensitivity"], [whence.metrics.Continuity(reach=2)])

    Args:
        reach: The largest shift of images and series in entries; for vectors, the norm of the noise in percent of theirs.
        n_samples: The number of noise samples for vectors.
        relative: Whether to divide relevance by ‖R(x)‖₁ and distances by ‖x‖₂, so that methods with different units can be
            compared; False is the formula as published.
    """

    reach: int = 1
    n_samples: int = 10
    relative: bool = True

    name: ClassVar[str] = "continuity"
    better: ClassVar[str] = "lower"

    def __post_init__(self):
        if self.reach < 1 or self.n_samples < 1:
            raise RuleError(f"{self!r}: expected reach and n_samples of at least 1")

    def __call__(self, case: ExplainedBatch) -> Tensor:
        batch, here = case.batch, case.flat()
        worst = torch.zeros(len(batch), dtype=torch.float64)
        for moved in batch.once(self, lambda: self._near(batch)):
            parts = {i: batch.inputs.parts[i] for i in moved}
            far = torch.cat([(moved[i] - parts[i]).flatten(1) for i in moved], 1).double().norm(dim=1).cpu()
            changed = (case.flat(case.again(moved)) - here).abs().sum(1)
            if self.relative:
                far = far / torch.cat([x.flatten(1) for x in parts.values()], 1).double().norm(dim=1).cpu()
                changed = changed / here.abs().sum(1)
            worst = torch.maximum(worst, torch.where(far > 0, changed / far, 0.0))
        return worst

    def _near(self, batch: EvaluationBatch) -> list[dict[int, Tensor]]:
        parts = float_inputs(batch)
        if all(x.dim() > 2 for x in parts.values()):
            steps = [(d, step) for d in range(1, 4) for size in range(1, self.reach + 1) for step in (-size, size)]
            return [
                {i: shift(x, d + 1, step) for i, x in parts.items()}
                for d, step in steps
                if all(x.dim() > d + 1 for x in parts.values())
            ]
        noises = uniform_noise(batch, parts, self.n_samples, "continuity")
        lengths = {i: x.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1)) for i, x in parts.items()}
        sizes = {i: n.flatten(2).norm(dim=2).view(*n.shape[:2], *[1] * (n.dim() - 2)) for i, n in noises.items()}
        return [
            {i: parts[i] + noises[i][k] / sizes[i][k] * lengths[i] * self.reach / 100 for i in parts}
            for k in range(self.n_samples)
        ]


@dataclass(frozen=True)
class MaxSensitivity:
    """Largest relative change of an explanation under small random perturbations (Yeh et al. 2019, def. 2).

    The maximum of ‖R(x + δ) − R(x)‖₂ / ‖R(x)‖₂ over random δ.

    >>> whence.evaluate(model, x, ["lrp", "sensitivity"], [whence.metrics.MaxSensitivity(radius=0.1)])

    Args:
        radius: The largest perturbation of an entry.
        n_samples: The number of random perturbations.
    """

    radius: float = 0.02
    n_samples: int = 10

    name: ClassVar[str] = "max_sensitivity"
    better: ClassVar[str] = "lower"

    def __post_init__(self):
        if self.radius <= 0 or self.n_samples < 1:
            raise RuleError(f"{self!r}: expected a positive radius and n_samples of at least 1")

    def __call__(self, case: ExplainedBatch) -> Tensor:
        batch, here = case.batch, case.flat()
        parts = float_inputs(batch)
        noises = batch.once(self, lambda: uniform_noise(batch, parts, self.n_samples, "max_sensitivity"))
        worst = torch.zeros(len(batch), dtype=torch.float64)
        for k in range(self.n_samples):
            there = case.flat(case.again(changed_inputs(parts, noises, k, self.radius)))
            worst = torch.maximum(worst, (there - here).norm(dim=1) / here.norm(dim=1))
        return worst


@dataclass(frozen=True)
class RelativeStability:
    """The largest relative change of an explanation over a distance, of small random changes that keep the predicted class."""

    radius: float = 0.02
    n_samples: int = 10
    epsilon: float = 1e-3

    better: ClassVar[str] = "lower"

    def __post_init__(self):
        if self.radius <= 0 or self.n_samples < 1 or self.epsilon <= 0:
            raise RuleError(f"{self!r}: expected a positive radius and epsilon, and n_samples of at least 1")

    def distance(self, batch: EvaluationBatch, changed: EvaluationBatch) -> Tensor:
        """Return the distance of each sample from the changed one, `[N]`."""
        raise NotImplementedError

    def __call__(self, case: ExplainedBatch) -> Tensor:
        """Compute the largest ratio of each sample, NaN where every change alters the class, `[N]`."""
        batch, here, parts, draws = case.batch, case.flat(), float_inputs(case.batch), self.n_samples
        noises = batch.once(("stability", draws), lambda: uniform_noise(batch, parts, draws, "stability"))
        predicted, worst = batch.logits.argmax(1), torch.full((len(batch),), torch.nan, dtype=torch.float64)
        for k in range(draws):
            moved = changed_inputs(parts, noises, k, self.radius)
            changed = replace(batch, task=batch.task.moved(1, moved), _once={})
            change = _relative_norm(case.flat(case.again(moved)) - here, here, self.epsilon)
            ratio = change / self.distance(batch, changed).clamp(min=self.epsilon)
            same = (changed.logits.argmax(1) == predicted).cpu()
            worst = torch.where(same, torch.fmax(worst, ratio), worst)
        return worst


@dataclass(frozen=True)
class RelativeInputStability(RelativeStability):
    """Largest relative change of an explanation over that of the input, for small random changes (Agarwal et al. 2022, eq. 2).

    The maximum of ‖(R(x) − R(x′)) / R(x)‖ / max(‖(x − x′) / x‖, ε) over x′ with the same predicted class, with Euclidean norms.

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.RelativeInputStability()])

    Args:
        radius: The largest change of an entry.
        n_samples: The number of random changes.
        epsilon: What denominators are at least, in magnitude.
    """

    name: ClassVar[str] = "relative_input_stability"

    def distance(self, batch: EvaluationBatch, changed: EvaluationBatch) -> Tensor:
        here, there = (
            torch.cat([x.flatten(1) for x in float_inputs(side).values()], 1).double().cpu() for side in (batch, changed)
        )
        return _relative_norm(there - here, here, self.epsilon)


@dataclass(frozen=True)
class RelativeOutputStability(RelativeStability):
    """Largest relative change of an explanation over the change of the logits (Agarwal et al. 2022, eq. 5).

    The maximum of ‖(R(x) − R(x′)) / R(x)‖ / max(‖h(x) − h(x′)‖, ε) over x′ with the same predicted class, h the logits.

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.RelativeOutputStability()])

    Args:
        radius: The largest change of an entry.
        n_samples: The number of random changes.
        epsilon: What denominators are at least, in magnitude.
    """

    name: ClassVar[str] = "relative_output_stability"

    def distance(self, batch: EvaluationBatch, changed: EvaluationBatch) -> Tensor:
        return (changed.logits.double() - batch.logits.double()).norm(dim=1).cpu()


def _relative_norm(change: Tensor, values: Tensor, epsilon: float) -> Tensor:
    """Return ‖change / values‖ of each row, with denominators of at least ε in magnitude."""
    return (change / torch.where(values.abs() < epsilon, epsilon, values.abs())).norm(dim=1)


def float_inputs(batch: EvaluationBatch) -> dict[int, Tensor]:
    """Return the floating-point parts of the inputs, which can be perturbed continuously."""
    if not batch.inputs.explained:
        raise InputError(
            "token ids cannot be perturbed continuously; continuity and max_sensitivity need floating-point inputs"
        )
    return {i: batch.inputs.parts[i] for i in batch.inputs.explained}


def uniform_noise(batch: EvaluationBatch, parts: dict[int, Tensor], draws: int, purpose: str) -> dict[int, Tensor]:
    """Draw uniform noise from [0, 1), `[draws, N, …]`, which for each sample is independent of its batch."""
    random = batch.random(purpose)
    return {i: torch.stack([torch.rand(draws, *x.shape[1:], generator=r) for r in random], 1).to(x) for i, x in parts.items()}


def changed_inputs(parts: dict[int, Tensor], noises: dict[int, Tensor], k: int, radius: float) -> dict[int, Tensor]:
    """Return the inputs with the k-th noise, scaled to at most `radius` in magnitude."""
    return {i: x + (2 * noises[i][k] - 1) * radius for i, x in parts.items()}


def shift(x: Tensor, d: int, step: int) -> Tensor:
    """Shift a tensor along one dimension, with replicate padding."""
    places = (torch.arange(x.shape[d], device=x.device) - step).clamp(0, x.shape[d] - 1)
    return x.index_select(d, places)


@check_arguments
def translation_figure(
    model: Any, inputs: Tensor, methods: Any, target: Any = None, *, n_steps: int = 10, grid: int = 3
) -> "Figure":
    """Plot the relevance of an image in each cell of a grid while the image is shifted horizontally, for each method.

    Smooth lines indicate a continuous method (Montavon, Samek and Müller 2018, figure 13).

    >>> whence.experiments.translation_figure(model, x, ["lrp", "sensitivity"]).savefig("translation.png")

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        inputs: One image `[1, C, H, W]`.
        methods: Methods or their names, as for `evaluate`.
        target: None (the arg max for the unshifted image) or any other target that `explain` takes.
        n_steps: The largest shift in pixels, to either side.
        grid: The number of cells along each side of the grid.
    Returns:
        A matplotlib figure with one panel per method.
    Raises:
        InputError: `inputs` is not a single image.
    """
    from whence.plotting.line_plots import Line, LinePlot, line_plots

    if inputs.dim() != 4 or len(inputs) != 1:
        raise InputError(f"expected one image [1, C, H, W], got {tuple(inputs.shape)}")
    shifts = list(range(-n_steps, n_steps + 1))
    moved = torch.cat([shift(inputs, 3, step) for step in shifts])
    here = EvaluationBatch.of(PreparedModel(model), Inputs.of(inputs), target)
    drawn = []
    for way in make_adapters(model, methods):
        batch = EvaluationBatch.of(way.prepared, Inputs.of(moved), repeat_target(here.target, len(moved)))
        heat = way.case(batch).relevance[0].sum(1, keepdim=True)
        cells = torch.nn.functional.adaptive_avg_pool2d(heat, grid).flatten(1)
        largest = float(cells.abs().max()) or 1.0
        colours = ["#c00000", "#d07000", "#808000", "#008040", "#008080", "#0060c0", "#4000c0", "#a000a0", "#606060"]
        lines = [Line(shifts, (cells[:, c] / largest).tolist(), colours[c % len(colours)]) for c in range(cells.shape[1])]
        drawn.append(LinePlot(f"shift in pixels: {way.name}", lines))
    return line_plots(drawn, "relevance (largest = 1)", "", min(3, len(drawn)), (-1.05, 1.05))
