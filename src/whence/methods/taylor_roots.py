"""Search for roots f(x̃) = 0 of an output: near a sample, within bounds, towards other samples or on a decoder's manifold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.core.trees import Tree
from whence.errors import InputError, ModelError, RuleError, value_repr
from whence.methods import feature_masks
from whence.methods.forward_backward import Task, gradients_enabled, target_values
from whence.methods.gradients import input_gradients

STEP_MULTIPLES = tuple(2.0**k for k in range(8))  # of the step that would reach the root of a linear map
SECTION_FRACTIONS = tuple(k / 16 for k in range(1, 17))  # of the way to another sample
MAX_REFINEMENTS = 60
MAX_HALVINGS = 30
FLAT_SLOPE = 1e-3  # of the last step: if f is 0 so far before a root too, it is 0 all around
IDS_ERROR = "Taylor decomposition needs floating-point inputs; for token ids use gradient_times_input or LRP"
DECODER_TOLERANCE = 1e-3  # of the distance: how far a root may lie beside the projection on its tangent plane
MIN_STEP_SHARE = 1 / 100  # of the way to that projection


class ScalarFunction:
    """The explained output of all samples as a function of their flattened inputs, `[rounds · N, numbers]`."""

    def __init__(self, task: Task, target: Any):
        self.task, self._target = task, target
        self._parts = [task.inputs.parts[i] for i in task.inputs.explained]
        if not self._parts:
            raise InputError(IDS_ERROR)
        self.x = self.row(dict(zip(task.inputs.explained, self._parts, strict=True)))

    def row(self, parts: dict[int, Tensor]) -> Tensor:
        """Return the explained parts of each sample, flattened and concatenated."""
        return torch.cat([parts[i].detach().reshape(len(parts[i]), -1) for i in self.task.inputs.explained], 1)

    def parts(self, points: Tensor) -> dict[int, Tensor]:
        """Return the parts from flattened inputs: the inverse of `row`."""
        split = points.split([part[0].numel() for part in self._parts], 1)
        return {
            i: piece.reshape(len(points), *part.shape[1:]).to(part)
            for i, piece, part in zip(self.task.inputs.explained, split, self._parts, strict=True)
        }

    def _at(self, points: Tensor) -> Task:
        return self.task.moved(len(points) // len(self.x), self.parts(points), [self._target])

    def value(self, points: Tensor) -> Tensor:
        """Return f, `[rounds · N]`."""
        return target_values(self._at(points))[0][0].to(self.x.dtype)

    def slope(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return f `[rounds · N]` and its gradient `[rounds · N, numbers]`."""
        (found,) = input_gradients(self._at(points))
        if found.looked_up:
            raise InputError(IDS_ERROR)
        return found.output.to(self.x.dtype), self.row({i: g for i, (_, g) in found.inputs.items()}).to(self.x.dtype)


@dataclass(frozen=True)
class NearestRoot:
    """Search strategy for the nearest root, by line searches from x that follow the Lagrange condition x̃ = x − λ ∇f(x̃).

    >>> whence.SimpleTaylor(whence.roots.NearestRoot())
    >>> whence.SimpleTaylor(whence.roots.NearestRoot(low=0.0, high=1.0))          # within a pixel box

    For a linear f the first step is the closed form x̃ = x − f(x) w / ‖w‖². In a network each line search ends at a root,
    |f(x̃)| ≤ `tolerance` · |f(x)|, and the nearest one found in `n_steps` is taken: a local minimum of the distance. `low` and
    `high` are numbers or tensors like the input. Raises `ModelError` for a sample without a root on its lines.
    """

    low: Any = None
    high: Any = None
    tolerance: float = 1e-4
    n_steps: int = 30

    def __post_init__(self):
        _check_tolerance(self.tolerance)
        if self.n_steps < 1:
            raise RuleError(f"n_steps={value_repr(self.n_steps)}; expected at least 1")

    def near(self, function: ScalarFunction) -> Tensor:
        low, high = _bound(self.low, function, -torch.inf), _bound(self.high, function, torch.inf)
        outside = [] if low is None else [function.x < low - 1e-6]
        outside += [] if high is None else [function.x > high + 1e-6]
        if any(bool(o.any()) for o in outside):
            raise InputError("the input lies outside of [low, high]; pass the bounds of the preprocessed pixels")
        clip = (lambda z: z) if low is None and high is None else lambda z: torch.clamp(z, low, high)
        return nearest_root(function.value, function.slope, function.x, clip, self.tolerance, self.n_steps)


@dataclass(frozen=True, eq=False)
class RootTowards:
    """Search strategy for the nearest root on the straight lines to given samples, such as data of other classes.

    >>> whence.SimpleTaylor(whence.roots.RootTowards(x_train[:100]))

    `samples` `[M, …]` have the structure of the input. Raises `ModelError` if the output changes sign on none of the lines.
    """

    samples: Tree
    tolerance: float = 1e-4

    def __post_init__(self):
        _check_tolerance(self.tolerance)

    def near(self, function: ScalarFunction) -> Tensor:
        ends = function.row(feature_masks.background(self.samples, function.task.inputs))
        best, distance = torch.zeros_like(function.x), torch.full_like(function.x[:, 0], float("inf"))
        start = function.value(function.x)
        for end in ends:
            way = end - function.x
            t, found = root_on_curve(
                lambda t, way=way: function.value(function.x + t[:, None] * way), start, torch.ones_like(start),
                SECTION_FRACTIONS, self.tolerance,
            )  # fmt: skip
            nearer = found & (t * way.norm(dim=1) < distance)
            best[nearer] = (function.x + t[:, None] * way)[nearer]
            distance[nearer] = (t * way.norm(dim=1))[nearer]
        _check_roots_found(distance < float("inf"), "on the lines to the given samples; add samples of other classes")
        return best


@dataclass(frozen=True, eq=False)
class RootOnManifold:
    """Search strategy for a root on the manifold of a decoder, nearest to the code of each sample in code space.

    >>> whence.SimpleTaylor(whence.roots.RootOnManifold(decoder, codes))

    `decoder` maps codes `[N, k]` to inputs `[N, …]`; `codes` are those of the samples, or an encoder that returns them. The
    reconstruction error of the decoder is a part of x − x̃ as well, and of the remainder.
    """

    decoder: Callable[[Tensor], Tensor]
    codes: Tensor | Callable[[Tensor], Tensor]
    tolerance: float = 1e-4
    n_steps: int = 30

    def __post_init__(self):
        _check_tolerance(self.tolerance)

    def near(self, function: ScalarFunction) -> Tensor:
        inputs = function.task.inputs
        if len(inputs.explained) != 1:
            raise InputError(f"a decoder generates one input, but the model has {len(inputs.explained)}")
        x = inputs.parts[inputs.explained[0]]
        with torch.no_grad():
            codes = self.codes if isinstance(self.codes, Tensor) else self.codes(x)
            codes = codes.detach().to(x)
        if codes.dim() != 2 or len(codes) != len(x):
            raise InputError(f"codes of shape {tuple(codes.shape)} for {len(x)} samples; expected [{len(x)}, k]")

        def slope(z: Tensor) -> tuple[Tensor, Tensor]:
            with gradients_enabled():
                z = z.clone().requires_grad_()
                made = self._made(z, x)
                value, g = function.slope(made.detach().flatten(1))
                (back,) = torch.autograd.grad(made.flatten(1), z, g)
            return value, back

        def value(z: Tensor) -> Tensor:
            with torch.no_grad():
                return function.value(self._made(z, x).flatten(1))

        found = nearest_root(value, slope, codes, lambda z: z, self.tolerance, self.n_steps)
        with torch.no_grad():
            return self._made(found, x).flatten(1)

    def _made(self, z: Tensor, x: Tensor) -> Tensor:
        made = self.decoder(z)
        if made.shape[1:] != x.shape[1:]:
            raise InputError(f"the decoder returned shape {tuple(made.shape)}, expected the input's shape {tuple(x.shape)}")
        return made


def nearest_root(
    value: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    clip: Callable[[Tensor], Tensor],
    tolerance: float,
    n_steps: int,
) -> Tensor:
    """Return the nearest root found from `start` `[N, numbers]`, by line searches.

    A root z is a nearest one only if x − z lies along ∇f(z). So from each root found the next line leads to a point between it
    and the projection of x on its tangent plane, half as far where that was no nearer. Until a first root is found, the lines
    follow Newton steps along the current gradient.
    """
    first, g = slope(start)
    best, distance = start.clone(), torch.full_like(first, float("inf"))
    walk, f_walk, share, going = start, first, torch.ones_like(first), torch.ones_like(first, dtype=torch.bool)
    along = _newton_step(first, g)[:, None] * g
    for _ in range(n_steps):
        t, found = root_on_curve(
            lambda t, along=along: value(clip(start - t[:, None] * along)),
            first,
            torch.ones_like(first),
            STEP_MULTIPLES,
            tolerance,
        )
        root = clip(start - t[:, None] * along)
        gone = (root - start).norm(dim=1)
        nearer, missed = going & found & (gone < distance), distance.isinf() & ~found
        share = torch.where(nearer, (2 * share).clamp(max=1), share / 2)
        best[nearer], distance[nearer] = root[nearer], gone[nearer]
        walk = torch.where(missed[:, None], clip(walk - _newton_step(f_walk, g)[:, None] * g), best)
        f_walk, g = slope(walk)
        aside = _newton_step(((start - walk) * g).sum(1), g)[:, None] * g - (start - walk)
        going = going & (missed | ((aside.norm(dim=1) > DECODER_TOLERANCE * distance) & (share > MIN_STEP_SHARE)))
        if not going.any():
            break
        along = torch.where(missed[:, None], start - walk, start - walk + share[:, None] * aside)
    _check_roots_found(
        distance < float("inf"), "along its gradient; use RootTowards(samples), root='origin' or a root of your own"
    )
    return best


def _newton_step(f: Tensor, g: Tensor) -> Tensor:
    """The step along g that would reach the root of a linear map."""
    steepness = g.square().sum(1)
    return torch.where(steepness > 0, f / steepness.clamp(min=torch.finfo(g.dtype).tiny), 0)


def root_on_curve(
    value: Callable[[Tensor], Tensor], first: Tensor, step: Tensor, multiples: tuple[float, ...], tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return the position t `[N]` of a root on each sample's curve, and whether one was found.

    `value(t)` is f on the curves, `first` f at t = 0. A sign change is bracketed at `multiples` of `step` and refined by
    false position (the Illinois algorithm), to |f| ≤ tolerance · |first|.
    """
    enough = max(tolerance, 4 * torch.finfo(first.dtype).eps) * first.abs()
    near, f_near = torch.zeros_like(first), first.clone()
    far, f_far = near.clone(), f_near.clone()
    for multiple in multiples:
        searching = f_far * first > 0
        if not searching.any():
            break
        near, f_near = torch.where(searching, far, near), torch.where(searching, f_far, f_near)
        far = torch.where(searching, multiple * step, far)
        f_far = torch.where(searching, value(far), f_far)
    found = (f_far * first <= 0) | (f_far.abs() <= enough)
    for _ in range(MAX_REFINEMENTS):
        open_still = found & (f_far.abs() > enough)
        if not open_still.any():
            break
        fraction = f_far / (f_far - f_near)
        between = torch.where(open_still, far - fraction * (far - near), far)
        f_between = value(between)
        crossed = f_between * f_far < 0
        near, f_near = torch.where(crossed, far, near), torch.where(crossed, f_far, f_near / 2)
        far, f_far = torch.where(open_still, between, far), torch.where(open_still, f_between, f_far)
    flat = found & (f_far == 0) & (value(far - FLAT_SLOPE * (far - near)) == 0)
    for _ in range(MAX_HALVINGS if flat.any() else 0):  # to where the zeros of a ReLU begin
        between = (near + far) / 2
        zero = value(between) == 0
        near, far = torch.where(flat & ~zero, between, near), torch.where(flat & zero, between, far)
    return far, found & (f_far.abs() <= enough)


def _bound(bound: Any, function: ScalarFunction, default: float) -> Tensor | None:
    if bound is None:
        return None
    found = feature_masks.baselines(bound, function.task.inputs, default)
    return function.row({i: found[i].expand(len(function.x), *found[i].shape[1:]) for i in function.task.inputs.explained})


def _check_roots_found(found: Tensor, where: str) -> None:
    if not found.all():
        samples = ", ".join(map(str, (~found).nonzero().flatten().tolist()[:5]))
        raise ModelError(f"no root of the output found for sample {samples} {where}")


def _check_tolerance(tolerance: float) -> None:
    if not 0 < tolerance < 1:
        raise RuleError(f"tolerance={value_repr(tolerance)}; expected a fraction of the output between 0 and 1")
