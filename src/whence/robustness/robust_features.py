"""Robust and non-robust features: the experiment of Tsipras et al. 2019, and scores of the features of any network.

Robustness may be at odds with accuracy (arXiv 1805.12152, section 2); adversarial examples are not bugs, they are features
(Ilyas et al. 2019, arXiv 1905.02175, section 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import erf, sqrt
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.class_indices import class_indices
from whence.core.inputs import check_model
from whence.core.pixel_bounds import UNIT_PIXELS, Box, checked_pixels
from whence.core.progress import Progress, progress as progressing
from whence.core.result import Result
from whence.core.targets import Index
from whence.errors import InputError, RuleError, value_repr
from whence.methods.backward_passes import BackwardStart, backward, gradients_enabled
from whence.methods.layer_reader import LayerReader
from whence.robustness.attack import attack
from whence.robustness.attack_methods import FGSM, default_step_size, project, require_non_negative
from whence.robustness.attacked_batch import Model, max_batch_size, single_input

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from whence.plotting.line_plots import Line

Kind = Literal["weak", "strong"]
KINDS: tuple[Kind, Kind] = ("weak", "strong")
COLORS: dict[Kind, str] = {"weak": "#c00000", "strong": "#0000c0"}
AXIS_LABELS = {
    "d": "number of weak features d",
    "eta": "mean of the weak features η",
    "p": "reliability of the strong feature p",
    "epsilon": "perturbation ε",
}


@dataclass(frozen=True)
class RobustFeatures:
    """Synthetic data with one strong, robust feature and d weak ones (Tsipras et al. 2019).

    >>> data = whence.experiments.RobustFeatures(d=400)
    >>> data.accuracy("weak"), data.accuracy("weak", epsilon=0.15)          # 0.9987, and about one half
    >>> x, y = data.sample(1000)                                            # [1000, 401], classes 0 (y = −1) and 1
    >>> fgsm = whence.attacks.FGSM(0.15, box=whence.attacks.Box.unbounded())  # the best attack on a linear classifier
    >>> whence.attack(data.classifier("weak"), x, y, fgsm).robust_accuracy

    y is uniform on {−1, 1}, x_1 = y with probability p and −y otherwise, x_2 … x_{d+1} ~ N(ηy, 1). The "weak" classifier
    predicts the sign of the mean of x_2 … x_{d+1}, the "strong" one that of x_1.

    Args:
        d: Number of weak features.
        p: Probability that the strong feature agrees with the label.
        eta: Mean η of the weak features; 3/√d if None, so that the accuracy of the weak classifier is Φ(3) for every d.

    Raises:
        RuleError: If `d` is not an int of at least 1, or `p` not a probability.
    """

    d: int = 400
    p: float = 0.9975
    eta: float | None = None

    def __post_init__(self):
        if not isinstance(self.d, int) or self.d < 1 or not 0 <= self.p <= 1:
            raise RuleError(f"RobustFeatures(d={self.d}, p={self.p}): expected an int d of at least 1 and a probability p")

    @property
    def mean(self) -> float:
        """The mean η of the weak features."""
        return 3 / sqrt(self.d) if self.eta is None else self.eta

    def sample(self, n_samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draw samples `[n_samples, d + 1]` and their classes `[n_samples]`, 1 for y = 1 and 0 for y = −1."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (n_samples,), generator=generator)
        y = 2.0 * labels.double() - 1
        agrees = torch.rand(n_samples, generator=generator, dtype=torch.float64) < self.p
        weak = torch.randn(n_samples, self.d, generator=generator, dtype=torch.float64) + self.mean * y[:, None]
        return torch.cat([torch.where(agrees, y, -y)[:, None], weak], 1), labels

    def classifier(self, kind: Kind) -> nn.Linear:
        """Return the "weak" or "strong" linear classifier from `[N, d + 1]` to logits `[N, 2]`, in eval mode."""
        _check_kind(kind)
        weight = torch.zeros(2, self.d + 1, dtype=torch.float64)
        if kind == "strong":
            weight[1, 0] = 1
        else:
            weight[1, 1:] = 1 / self.d
        network = nn.Linear(self.d + 1, 2, bias=False, dtype=torch.float64).eval().requires_grad_(False)
        network.weight.copy_(weight - weight.flip(0))
        return network

    def accuracy(self, kind: Kind, epsilon: float = 0.0) -> float:
        """Return the accuracy under the worst perturbation of every feature by at most ε, in closed form.

        Weak: Φ(√d (η − ε)). Strong: p for ε < 1, because x_1 is ±1; at ε = 1 the logits are equal, and one class is predicted.
        """
        _check_kind(kind)
        require_non_negative("epsilon", epsilon)
        if kind == "weak":
            return (1 + erf(sqrt(self.d) * (self.mean - epsilon) / sqrt(2))) / 2
        return self.p if epsilon < 1 else self.p / 2 if epsilon == 1 else 0.0

    def standard_error(self, kind: Kind, epsilon: float, n_samples: int) -> float:
        """Return the standard error of the accuracy on `n_samples` samples."""
        p = self.accuracy(kind, epsilon)
        return sqrt(p * (1 - p) / n_samples)


@dataclass(frozen=True, repr=False)
class RobustFeaturesExperiment(Result):
    """The experiment of robust and non-robust features: accuracies in closed form and by simulation.

    >>> experiment = whence.experiments.robust_features_experiment()
    >>> experiment.save("robust_features.png")

    Args:
        base: The distribution that is varied.
        epsilon: The perturbation of the attacks.
        rows: The rows of the table.
    """

    base: RobustFeatures
    epsilon: float
    rows: Sequence[dict[str, Any]] = ()

    @property
    def table(self) -> Sequence[dict[str, Any]]:
        """A row for each classifier, quantity and value: the exact accuracy, the simulated one and its standard error."""
        return self.rows

    def at(self, name: str, value: float) -> tuple[RobustFeatures, tuple[float, ...]]:
        """Return the distribution with one parameter set to a value, and the ε of the attacks on it."""
        if name == "epsilon":
            return self.base, (value,)
        return replace(self.base, **{name: round(value) if name == "d" else value}), (0.0, self.epsilon)

    def figure(self) -> "Figure":
        """Return a figure of the (robust) accuracy over d, η, p and ε: lines in closed form, simulated points with errors."""
        from whence.plotting.line_plots import LinePlot, line_plots

        shown = [
            LinePlot(over, self._series(name), self.epsilon if name == "epsilon" else None)
            for name, over in AXIS_LABELS.items()
        ]
        title = "Classifiers by weak features and by the strong one: lines exact, points simulated"
        return line_plots(shown, "accuracy", title, limits=(0.004, 0.9997), scale="logit")

    def _series(self, name: str) -> "list[Line]":
        from whence.plotting.line_plots import Line

        series = []
        for kind, colour in COLORS.items():
            rows = [row for row in self.rows if row["over"] == name and row["kind"] == kind]
            x, simulated, errors = ([row[key] for row in rows] for key in ("value", "simulated", "standard_error"))
            values = torch.linspace(min(x), max(x), 101, dtype=torch.float64).tolist()
            strengths = self.at(name, x[0])[1]
            for i, (strength, style) in enumerate(zip(strengths, ("-", "--"), strict=False)):
                label = "" if name == "epsilon" else f"{kind} features" + (f", ε = {strength}" if i else "")
                exact = [data.accuracy(kind, at[i]) for data, at in (self.at(name, value) for value in values)]
                series.append(Line(values, exact, colour, style, label))
            series.append(Line(x, simulated, colour, errors=errors))
        return series

    def __repr__(self) -> str:
        at = [row for row in self.rows if row["over"] == "epsilon" and row["value"] in (0.0, self.epsilon)]
        lines = [
            f"  {row['kind']} features, ε = {row['value']}: {row['exact']:.2%} exactly, {row['simulated']:.2%} ± "
            f"{row['standard_error']:.2%} simulated"
            for row in at
        ]
        return "\n".join([f"Robust and non-robust features, {self.base}", *lines])


@check_arguments
def robust_features_experiment(
    epsilon: float = 0.15, n_samples: int = 10_000, base: RobustFeatures | None = None, seed: int = 0, progress: Progress = True
) -> RobustFeaturesExperiment:
    """Compute the accuracy and robust accuracy of both classifiers over d, η, p and ε (course exercise I).

    >>> whence.experiments.robust_features_experiment()
    Robust and non-robust features, RobustFeatures(d=400, p=0.9975, eta=None)
      weak features, ε = 0.0: 99.87% exactly, 99.93% ± 0.04% simulated
      …

    Args:
        epsilon: Perturbation of the attacks in all plots except the one over ε.
        n_samples: Number of simulated samples for each point.
        base: The distribution that each plot varies; the default one if not given.
        seed: Random seed.
        progress: False for no progress bar, or a function that is called with (done, total).

    Returns:
        A `RobustFeaturesExperiment`.
    """
    base = base or RobustFeatures()
    experiment, rows = RobustFeaturesExperiment(base, epsilon), []
    points = [(name, value) for name, values in _sweeps(base, epsilon).items() for value in values]
    with progressing("robust features", len(points), progress) as advance:
        for number, (name, value) in enumerate(points):
            data, strengths = experiment.at(name, value)
            x, labels = data.sample(n_samples, seed + number)
            for kind, strength in product(KINDS, strengths):
                found = attack(data.classifier(kind), x, labels, FGSM(strength, box=Box.unbounded()))
                rows.append({
                    "over": name, "value": value, "kind": kind, "epsilon": strength,
                    "exact": data.accuracy(kind, strength), "simulated": found.robust_accuracy,
                    "standard_error": data.standard_error(kind, strength, n_samples),
                })  # fmt: skip
            advance(1)
    return replace(experiment, rows=rows)


def _sweeps(base: RobustFeatures, epsilon: float) -> dict[str, list[float]]:
    """Return the values of each parameter."""
    return {
        "d": [9, 25, 100, 400, 900],
        "eta": [factor * base.mean for factor in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)],
        "p": [0.5, 0.7, 0.9, 0.95, base.p],
        "epsilon": sorted({0.0, 0.05, 0.1, epsilon, 0.2, 0.3, 0.5}),
    }


@dataclass(frozen=True, repr=False, eq=False)
class FeatureScores(Result):
    """The usefulness of features, and their usefulness under attack.

    >>> scores = whence.attacks.feature_scores(model, x, y, epsilon=0.1, layer="features.3")
    >>> scores.usefulness, scores.robustness          # [F] each
    >>> scores.robust                                 # [F], features that are useful under attack

    Args:
        usefulness: The usefulness of each feature, `[F]`.
        robustness: The usefulness under attack, `[F]`; negative if the attack reverses the feature.
        classes: The class that each feature is evidence for, or against, `[F]`.
        epsilon: Largest change of each pixel (ℓ∞).
        layer: The layer whose channels are scored; None for the input features.
    """

    usefulness: Tensor
    robustness: Tensor
    classes: Tensor
    epsilon: float
    layer: str | None = None

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each feature: its class, its usefulness, and its usefulness under the attack."""
        columns = zip(self.classes.tolist(), self.usefulness.tolist(), self.robustness.tolist(), strict=True)
        names = ("class", "usefulness", "robustness")
        return [{"feature": i} | dict(zip(names, row, strict=True)) for i, row in enumerate(columns)]

    @property
    def robust(self) -> Tensor:
        """Whether each feature is useful under the attack, `[F]`."""
        return self.robustness > 0

    def __len__(self) -> int:
        return len(self.usefulness)

    def __repr__(self) -> str:
        where = "inputs" if self.layer is None else f"channels of '{self.layer}'"
        return (
            f"{len(self)} {where}, usefulness up to {self.usefulness.max():.2f}: "
            f"{int(self.robust.sum())} remain useful within ε = {self.epsilon}"
        )

    def figure(self) -> "Figure":
        """Return a figure of the features by their usefulness before and under the attack."""
        from whence.plotting.line_plots import scatter

        colours = [COLORS["weak" if kept else "strong"] for kept in self.robust.tolist()]
        names = ("usefulness", f"usefulness within ε = {self.epsilon}")
        return scatter(self.usefulness.tolist(), self.robustness.tolist(), colours, names, repr(self))


@check_arguments
@torch.inference_mode(False)
def feature_scores(
    model: Model,
    inputs: Tensor,
    labels: Index,
    *,
    epsilon: float,
    layer: str | None = None,
    n_steps: int = 10,
    box: Box = UNIT_PIXELS,
    progress: Progress = True,
) -> FeatureScores:
    """Compute the usefulness and the robust usefulness of input features or channels of a layer (Ilyas et al. 2019).

    >>> whence.attacks.feature_scores(digits(), *digit_samples(), epsilon=0.1, layer="3")
    32 channels of '3', usefulness up to 1.10: 1 remain useful within ε = 0.1

    The usefulness of a feature f, standardised over the samples, is u = ½ |E[f | y = c] − E[f | y ≠ c]| for the class c that it
    separates best from the others; it is E[y f] for two balanced classes. Its robustness is the same quantity under the worst
    perturbation within ε (ℓ∞, within the `box`) of each sample, separately for each feature. It is exact for input features.
    For channels, averaged over positions, it is computed by PGD and is an upper bound.

    Args:
        model: Any callable from inputs to logits `[N, classes]`.
        inputs: Samples `[N, …]`.
        labels: True classes `[N]`, at least two different ones.
        epsilon: Largest change of each pixel (ℓ∞), in units of the pixels.
        layer: Module path whose channels are scored; the input features if not given.
        n_steps: Number of PGD steps for channels.
        box: Bounds and normalisation of the pixels.
        progress: False for no progress bar, or a function that is called with (done, total).

    Returns:
        A `FeatureScores` result.

    Raises:
        InputError: If all labels are equal, or the inputs are not one tensor within the bounds.
        RuleError: If `epsilon` is negative or not finite.
        SelectorError: If the model has no such layer.
    """
    check_model(model)
    inputs = single_input(inputs)
    labels = class_indices(labels, len(inputs), "label", inputs.device)
    require_non_negative("epsilon", epsilon)
    if len(known := labels.unique()) < 2:
        raise InputError("all labels are equal; expected samples of at least two classes")
    pixels = checked_pixels(box, inputs)
    read = _FeatureExtractor(model, layer, box)
    values = read(pixels)
    mean, spread = values.mean(0), values.std(0, correction=0)
    spread = torch.where(spread > 1e-6 * spread.max(), spread, torch.inf)  # constant features are not useful
    gaps = torch.stack([_class_gap((values - mean) / spread, labels == c) for c in known])  # [K, F]
    best = gaps.abs().argmax(0)
    signs = gaps.gather(0, best[None])[0].sign()
    classes = known[best]
    against = torch.where(labels[:, None] == classes, -signs, signs)  # [N, F], the direction of the attack
    attacked = read.moved(pixels, against, epsilon, n_steps, progress)
    scaled = (attacked - mean) / spread
    robust = torch.stack([signs[f] * _class_gap(scaled[:, f], labels == classes[f]) for f in range(len(classes))])
    return FeatureScores(gaps.abs().amax(0), robust, classes, epsilon, layer)


@dataclass(frozen=True)
class _FeatureExtractor:
    """Reader of features: the inputs, or the channels of a layer averaged over positions."""

    model: Model
    layer: str | None
    box: Box

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the features `[N, F]`."""
        with torch.no_grad():
            return torch.cat([self._read(part) for part in pixels.split(max_batch_size(pixels))])

    def moved(self, pixels: Tensor, towards: Tensor, epsilon: float, steps: int, progress: Progress) -> Tensor:
        """Return the features, each separately moved in its direction `towards` `[N, F]` as far as ε allows."""
        if self.layer is None:
            shifts = epsilon * towards.view_as(pixels)
            return self(self.box.clipped(pixels + shifts))
        count, size = towards.shape[1], max_batch_size(pixels)
        columns = []
        with progressing(f"channels of {self.layer}", count, progress) as advance:
            for f in range(count):
                parts = zip(pixels.split(size), towards[:, f].split(size), strict=True)
                columns.append(torch.cat([self._climbed(part, signs, f, epsilon, steps) for part, signs in parts]))
                advance(1)
        return torch.stack(columns, 1)

    def _climbed(self, pixels: Tensor, signs: Tensor, f: int, epsilon: float, steps: int) -> Tensor:
        """Return the extreme value of one feature by PGD, `[n]`. The gradient of inactive units bypasses their ReLU."""
        moved = pixels
        furthest = self._read(pixels)[:, f].detach() * signs
        for _ in range(steps):
            with gradients_enabled():
                leaf = moved.detach().requires_grad_()
                value = self._read(leaf)[:, f] * signs
            (gradient,) = backward(BackwardStart.at_values(value), [leaf], keep_graph=False)
            furthest = torch.maximum(furthest, value.detach())
            moved = project(pixels, moved + default_step_size(epsilon, steps) * gradient.sign(), epsilon, "linf", self.box)
        with torch.no_grad():
            return torch.maximum(furthest, self._read(moved)[:, f] * signs) * signs

    def _read(self, pixels: Tensor) -> Tensor:
        inputs = self.box.inputs(pixels)
        if self.layer is None:
            return inputs.flatten(1)
        reading = LayerReader(self.model, (self.layer,))(inputs, redirected=inputs.requires_grad)
        values = reading.layers[self.layer]
        if values.dim() == 2:
            return values
        return values.movedim(reading.channels_at(self.layer), -1).flatten(1, -2).mean(1)


def _class_gap(values: Tensor, chosen: Tensor) -> Tensor:
    """Return ½ (E[f | chosen] − E[f | not chosen])."""
    return (values[chosen].mean(0) - values[~chosen].mean(0)) / 2


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise RuleError(f"kind={value_repr(kind)}; choose 'weak' or 'strong'")
