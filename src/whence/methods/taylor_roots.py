"""Search for roots f(x̃) = 0 of an output: near a sample, within bounds, towards other samples or on a decoder's manifold."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from whence.core.trees import Tree
from whence.errors import InputError, ModelError, RuleError, value_repr
from whence.methods import feature_masks
from whence.methods.backward_passes import gradients_enabled
from whence.methods.batching import automatic_batch_size, rows_are_independent
from whence.methods.forward_backward import Task, target_values
from whence.methods.gradients import input_gradients

STEP_MULTIPLES = tuple(2.0**k for k in range(8))  # of the step that would reach the root of a linear map
WAY_MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)  # of the way to a point that is expected near a root
SECTION_FRACTIONS = tuple(k / 16 for k in range(1, 17))  # of the way to another sample
MAX_REFINEMENTS = 60
MAX_HALVINGS = 30
FLAT_SLOPE = 1e-3  # of the last step: if f is 0 so far before a root too, it is 0 all around
IDS_ERROR = "Taylor decomposition needs floating-point inputs; for token ids use gradient_times_input or LRP"
DECODER_TOLERANCE = 1e-3  # of the distance: how far a root may lie beside the projection on its tangent plane
MIN_STEP_SHARE = 1 / 100  # of the way to that projection
ATTEMPTS = 3  # with other random starts, while no root is found
START_RADII = (0.5, 1.0, 2.0, 4.0)  # of random starts around the sample, in units of the distance of the root found before
STEPS_PER_START, CUTTING_STEPS, CUTS, DUAL_SWEEPS = 10, 8, 6, 30
SMALL_INPUT, STARTS_IF_SMALL, STARTS_IF_LARGE = 1024, 16, 2  # numbers of a sample, and starts of the search for its root


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

    def value(self, points: Tensor) -> Tensor:
        """Return f, `[rounds · N]`."""
        return torch.cat([target_values(task)[0][0].to(self.x.dtype) for task in self._tasks(points)])

    def slope(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return f `[rounds · N]` and its gradient `[rounds · N, numbers]`."""
        values, gradients = [], []
        for task in self._tasks(points):
            (found,) = input_gradients(task)
            if found.looked_up:
                raise InputError(IDS_ERROR)
            values.append(found.output.to(self.x.dtype))
            gradients.append(self.row({i: g for i, (_, g) in found.inputs.items()}).to(self.x.dtype))
        return torch.cat(values), torch.cat(gradients)

    def _tasks(self, points: Tensor) -> Iterator[Task]:
        """Yield the tasks for the points, of as many rounds at once as memory and the model allow."""
        for rounds in points.split((self._at_once if len(points) > len(self.x) else 1) * len(self.x)):
            yield self.task.moved(len(rounds) // len(self.x), self.parts(rounds), [self._target])

    @cached_property
    def _at_once(self) -> int:
        one = self.task.inputs.whole or not rows_are_independent(self.task)
        return 1 if one else max(1, automatic_batch_size(self.task.inputs) // len(self.x))


@dataclass(frozen=True)
class NearestRoot:
    """Search strategy for a near root, by line searches from x that follow the Lagrange condition x̃ = x − λ ∇f(x̃).

    >>> whence.SimpleTaylor(whence.roots.NearestRoot())
    >>> whence.SimpleTaylor(whence.roots.NearestRoot(low=0.0, high=1.0))          # within a pixel box

    For a linear f the first step is the closed form x̃ = x − f(x) w / ‖w‖². In a network each line search ends at a root,
    |f(x̃)| ≤ `tolerance` · |f(x)|: along the gradient first, then from the origin and random points around the sample, then over
    the kinks of ReLUs, where several linear pieces meet (cutting planes, Kelley 1960). The nearest root found is taken. That is
    the nearest of all for a linear f; of a network another root may be nearer. Raises `ModelError` for a sample without a root
    on any of these lines.

    Args:
        low: Lower bound of the root, a number or a tensor like the input.
        high: Upper bound of the root.
        tolerance: Largest |f(x̃)| as a share of |f(x)|.
        n_steps: Number of line searches along the gradient.
        n_starts: Number of starts around the sample, the origin among them; 0 for none. By default 16 for inputs of up to 1024
            numbers, and 2 for larger ones, in which random points find little.
        seed: Random seed of the starts.
    """

    low: Any = None
    high: Any = None
    tolerance: float = 1e-4
    n_steps: int = 30
    n_starts: int | None = None
    seed: int = 0

    def __post_init__(self):
        _check_tolerance(self.tolerance)
        if self.n_steps < 1:
            raise RuleError(f"n_steps={value_repr(self.n_steps)}; expected at least 1")
        if self.n_starts is not None and self.n_starts < 0:
            raise RuleError(f"n_starts={value_repr(self.n_starts)}; expected 0 or more, or None")

    def near(self, function: ScalarFunction) -> Tensor:
        low, high = _bound(self.low, function, -torch.inf), _bound(self.high, function, torch.inf)
        outside = [] if low is None else [function.x < low - 1e-6]
        outside += [] if high is None else [function.x > high + 1e-6]
        if any(bool(o.any()) for o in outside):
            raise InputError("the input lies outside of [low, high]; pass the bounds of the preprocessed pixels")
        unbounded = low is None and high is None
        clip = (lambda z: z) if unbounded else lambda z: z.unflatten(0, (-1, len(function.x))).clamp(low, high).flatten(0, 1)
        search = RootSearch(function.value, function.slope, function.x, clip, self.tolerance)
        search.along_gradients(self.n_steps)
        count = STARTS_IF_SMALL if function.x.shape[1] <= SMALL_INPUT else STARTS_IF_LARGE
        for attempt in range(ATTEMPTS):
            among = ~search.found | (attempt == 0)
            with suppress(ModelError):  # the output may be infinite far from the sample
                search.from_starts(count if self.n_starts is None else self.n_starts, self.seed + attempt, among)
            if search.found.all():
                break
        with suppress(ModelError):
            search.over_kinks(CUTTING_STEPS)
        return search.result()


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

        search = RootSearch(value, slope, codes, lambda z: z, self.tolerance)
        search.along_gradients(self.n_steps)
        with torch.no_grad():
            return self._made(search.result(), x).flatten(1)

    def _made(self, z: Tensor, x: Tensor) -> Tensor:
        made = self.decoder(z)
        if made.shape[1:] != x.shape[1:]:
            raise InputError(f"the decoder returned shape {tuple(made.shape)}, expected the input's shape {tuple(x.shape)}")
        return made


class RootSearch:
    """Search for a root near each sample `[N, numbers]`, by line searches from it; the nearest root found is kept."""

    def __init__(
        self,
        value: Callable[[Tensor], Tensor],
        slope: Callable[[Tensor], tuple[Tensor, Tensor]],
        x: Tensor,
        clip: Callable[[Tensor], Tensor],
        tolerance: float,
    ):
        self.value, self.slope, self.x, self.clip, self.tolerance = value, slope, x, clip, tolerance
        self.first, self.first_slope = slope(x)
        self.best, self.distance = x.clone(), torch.full_like(self.first, float("inf"))

    def result(self) -> Tensor:
        """Return the nearest roots found; raise `ModelError` if there is none for a sample."""
        _check_roots_found(self.found, "near it; use RootTowards(samples), root='origin' or a root of your own")
        return self.best

    @property
    def found(self) -> Tensor:
        """Whether a root was found, for each sample."""
        return self.distance < float("inf")

    def line(self, ways: Tensor, multiples: tuple[float, ...], among: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the roots on the lines from the samples along `ways` `[rounds · N, numbers]`, where there are any, and nearer.

        `multiples` of each way are the positions between which a change of sign is looked for. Roots of samples `among` are
        kept, those of all by default.
        """
        rounds = len(ways) // len(self.x)
        x, first = self.x.repeat(rounds, 1), self.first.repeat(rounds)
        at = lambda t: self.clip(x + t[:, None] * ways)  # noqa: E731
        t, found = root_on_curve(lambda t: self.value(at(t)), first, torch.ones_like(first), multiples, self.tolerance)
        roots = at(t)
        gone = torch.where(found, (roots - x).norm(dim=1), float("inf")).view(rounds, -1)
        shortest, which = gone.min(0)
        nearer = shortest < self.distance if among is None else (shortest < self.distance) & among
        self.best[nearer] = roots.view(rounds, *self.x.shape)[which, torch.arange(len(self.x))][nearer]
        self.distance[nearer] = shortest[nearer]
        return roots, found, nearer

    def along_gradients(self, n_steps: int) -> None:
        """Search along the gradient at the sample, then at the roots found.

        A root z is a nearest one only if x − z lies along ∇f(z). So from each root found the next line leads to a point between
        it and the projection of x on its tangent plane, half as far where that was no nearer. Until a first root is found, the
        lines follow Newton steps along the current gradient.
        """
        x, f_walk, g = self.x, self.first, self.first_slope
        walk, share, going = x, torch.ones_like(f_walk), torch.ones_like(f_walk, dtype=torch.bool)
        way = -_newton_step(f_walk, g)[:, None] * g
        for _ in range(n_steps):
            _, found, nearer = self.line(way, STEP_MULTIPLES, going)
            missed = self.distance.isinf() & ~found
            share = torch.where(nearer, (2 * share).clamp(max=1), share / 2)
            walk = torch.where(missed[:, None], self.clip(walk - _newton_step(f_walk, g)[:, None] * g), self.best)
            f_walk, g = self.slope(walk)
            aside = _newton_step(((x - walk) * g).sum(1), g)[:, None] * g - (x - walk)
            improves = (aside.norm(dim=1) > DECODER_TOLERANCE * self.distance) & (share > MIN_STEP_SHARE)
            going = going & (missed | improves)
            if not going.any():
                break
            way = torch.where(missed[:, None], walk - x, walk - x - share[:, None] * aside)

    def from_starts(self, count: int, seed: int, among: Tensor) -> None:
        """Search on the lines to the origin and to random points, and to the projections of x on the tangent planes there.

        Roots of samples `among` are kept.
        """
        if not count:
            return
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, 1, self.x.shape[1], generator=random, dtype=torch.float64).to(self.x)  # for each sample
        scale = torch.where(self.distance.isinf(), 4 * self.x.norm(dim=1), self.distance)[:, None]
        radii = torch.tensor([START_RADII[i % len(START_RADII)] for i in range(count)]).to(self.x)[:, None, None]
        starts = self.x + radii * scale * noise / noise.norm(dim=2, keepdim=True)
        starts[0] = 0
        points, x = self.clip(starts.flatten(0, 1)), self.x.repeat(count, 1)
        for step in range(STEPS_PER_START):
            roots, found, _ = self.line(points - x, WAY_MULTIPLES, among)
            points = torch.where(found[:, None], roots, points)
            f, g = self.slope(points)
            projected = x - _newton_step(f + ((x - points) * g).sum(1), g)[:, None] * g
            share = 1.0 if step % 2 == 0 else 0.5  # whole steps alone may go to and fro between two pieces
            points = torch.where(g.any(1)[:, None], self.clip(points + share * (projected - points)), points)

    def over_kinks(self, n_steps: int) -> None:
        """Search towards the points nearest to x on the root side of the tangent planes met so far.

        At a kink several pieces of f bound the roots, and x − z is a combination of their gradients.
        """
        x, cuts = self.x, [(self.x, self.first, self.first_slope)]
        for _ in range(n_steps):
            z, f, g = (torch.stack(parts, 1) for parts in zip(*cuts[-CUTS:], strict=True))
            point = self.clip(nearest_below(x, z, f, g, self.first.sign()))
            self.line(point - x, WAY_MULTIPLES)
            cuts.append((point, *self.slope(point)))


def nearest_below(x: Tensor, z: Tensor, f: Tensor, g: Tensor, sign: Tensor) -> Tensor:
    """Return the points y nearest to x `[N, numbers]` with sign · (f_j + g_j · (y − z_j)) ≤ 0 for all planes `[N, planes, …]`.

    The dual problem is solved by coordinate ascent (Hildreth 1957).
    """
    g = g * sign[:, None, None]
    above = sign[:, None] * f + (g * (x[:, None] - z)).sum(2)  # of each plane, at x
    products = g @ g.transpose(1, 2)
    weights = torch.zeros_like(above)
    for _ in range(DUAL_SWEEPS):
        for j in range(above.shape[1]):
            slack = above[:, j] - (products[:, j] * weights).sum(1)
            weights[:, j] = (weights[:, j] + slack / products[:, j, j].clamp(min=torch.finfo(g.dtype).tiny)).clamp(min=0)
    return x - (weights[:, :, None] * g).sum(1)


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
