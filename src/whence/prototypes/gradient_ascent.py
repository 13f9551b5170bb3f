"""The search for prototypes: gradient ascent on all of them at once, independently of each other."""

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.core.progress import Progress, progress as progressing
from whence.errors import InputError, ModelError, RuleError, WhenceError, first_line, is_out_of_memory
from whence.methods.layer_reader import LayerReader
from whence.prototypes.image_parameterizations import Codes, Pixels
from whence.prototypes.lbfgs import Precondition, ascend
from whence.prototypes.objectives import Objective
from whence.prototypes.priors import CodeSpace
from whence.prototypes.prototypes import Prototypes
from whence.prototypes.random_transforms import Transform

MIN_LBFGS_STEPS = 32
WARMUP_STEPS = 16  # steps in which gradients bypass inactive ReLUs
MANY_PROTOTYPES = 64  # steps after which a search should have converged
STRAIGHT_PATH = 0.95  # share of the largest distance that Adam can move in these steps


@dataclass(frozen=True)
class PrototypeSearch:
    """The objectives and the prior to maximise, and the parameterization of the inputs."""

    reader: LayerReader
    concepts: list[Objective]
    prior: Any
    strength: float
    shape: tuple[int, ...]
    image: Any
    transform: Transform | None
    diversity: float
    of_model: Tensor  # empty, in the model's dtype and on its device

    def start(self, start: Tensor | None, randoms: Sequence[torch.Generator]) -> list[Tensor]:
        """Return the parameters to start from, at least in single precision."""
        parameters = self._noise(randoms) if start is None else self._written(start)
        of_decoder = next((p for p in _parameters(self.prior) if p.is_floating_point()), self.of_model)
        wide = of_decoder.dtype if of_decoder.dtype.itemsize >= 4 else torch.float32
        return [p.to(self.of_model.device, wide).clone().requires_grad_() for p in parameters]

    def _noise(self, randoms: Sequence[torch.Generator]) -> list[Tensor]:
        noise = self.image.start(self.shape, randoms)
        typical = getattr(self.prior, "typical", None)
        if typical is None or not hasattr(self.image, "written"):
            return noise
        return [p + t for p, t in zip(noise, self.image.written(typical[None].to(noise[0])), strict=True)]

    def _written(self, start: Tensor) -> list[Tensor]:
        if not hasattr(self.image, "written"):
            raise RuleError(f"{type(self.image).__name__} cannot start from an input; use whence.images.Pixels or Fourier")
        wanted = (self.image.space.code_size(),) if isinstance(self.image, Codes) else self.shape
        if start.shape[1:] != wanted:
            raise InputError(
                f"start of shape {tuple(start.shape)} does not fit {'codes' if len(wanted) == 1 else 'inputs'} of shape "
                f"{wanted}"
            )
        if len(start) not in (1, len(self.concepts)):
            raise InputError(f"start has {len(start)} inputs for {len(self.concepts)} targets; pass one, or one for each")
        return self.image.written(start.detach().expand(len(self.concepts), *start.shape[1:]))

    def run(
        self, parameters: list[Tensor], steps: int, lr: float, randoms: Sequence[torch.Generator], shown: Progress
    ) -> Prototypes:
        """Maximise by Adam, then by L-BFGS if nothing is random; non-finite prototypes keep their last finite value."""
        course = self._climbed(parameters, steps, lr, randoms, shown)
        found = [p.detach() for p in parameters]
        rising = torch.zeros_like(course.alive)
        if self._smooth:
            found, rising = self._ascended(found, course.alive, max(MIN_LBFGS_STEPS, steps // 4))
        return self._prototypes(found, course, steps, rising)

    def scouted(
        self, parameters: list[Tensor], steps: int, lr: float, randoms: Sequence[torch.Generator]
    ) -> tuple[list[Tensor], Tensor]:
        """Return the parameters after a short search, and the maximised value `[K]`."""
        parameters = [p.detach().requires_grad_() for p in parameters]
        self._climbed(parameters, steps, lr, randoms, shown=False)
        with torch.no_grad():
            height = self._height(parameters)
        return [p.detach() for p in parameters], height.nan_to_num(nan=-torch.inf)

    def _height(self, parameters: list[Tensor]) -> Tensor:
        """Return the maximised value `[K]` of the inputs without transforms."""
        x = self._rendered(parameters)
        activation, log_prob = self._terms(parameters, x, x, redirected=False)
        return activation + self.strength * log_prob

    def _climbed(
        self, parameters: list[Tensor], steps: int, lr: float, randoms: Sequence[torch.Generator], shown: Progress
    ) -> "SearchState":
        """Run Adam with a cosine learning rate schedule that ends at 0."""
        optimizer = torch.optim.Adam(parameters, lr, maximize=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        course = SearchState(len(self.concepts), parameters)
        warm_up = min(WARMUP_STEPS, steps // 2)
        with progressing("prototype", steps, shown) as advance:
            for step in range(steps):
                x = self._rendered(parameters)
                activation, log_prob = self._terms(parameters, x, self._changed(x, randoms), redirected=step < warm_up)
                if not activation.requires_grad:
                    raise ModelError("the objective does not depend on the input; there is no gradient to follow")
                if step in (warm_up, steps - 1):
                    course.moved |= _any_gradient(
                        torch.autograd.grad(activation.sum(), parameters, retain_graph=True, allow_unused=True)
                    )
                total = activation + self.strength * log_prob
                gradients = torch.autograd.grad(total.sum() + self._apart(x), parameters, allow_unused=True)
                course.follow(step, total, gradients, activation, log_prob)
                if not course.alive.any():
                    course.hold()
                    break
                for p, g in zip(parameters, gradients, strict=True):
                    p.grad = torch.zeros_like(p) if g is None else torch.nan_to_num(g, 0, 0, 0)
                course.reach += optimizer.param_groups[0]["lr"]
                optimizer.step()
                schedule.step()
                course.hold()
                advance(1, f"activation {float(activation.detach().mean()):.3g}" if shown else "")
        return course

    @property
    def _smooth(self) -> bool:
        """Whether the maximised function is deterministic and bounded, so that a maximum can be reached."""
        bounded = self.prior is not None and self.strength > 0  # a sigmoid is bounded as well, but has no maximum
        return self.transform is None and not self.diversity and bounded

    def _ascended(self, parameters: list[Tensor], alive: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
        """Return the parameters after L-BFGS, and which prototypes were still improving."""
        shapes, sizes = [p.shape for p in parameters], [p[0].numel() for p in parameters]
        count = len(self.concepts)

        def parted(row: Tensor) -> list[Tensor]:
            return [part.reshape(shape) for part, shape in zip(row.split(sizes, 1), shapes, strict=True)]

        def evaluate(row: Tensor) -> tuple[Tensor, Tensor]:
            leaves = [part.detach().requires_grad_() for part in parted(row)]
            total = self._height(leaves)
            gradients = torch.autograd.grad(total.sum(), leaves, allow_unused=True)
            flat = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients, strict=True)]
            return total.detach().to(row.dtype), torch.cat([g.reshape(count, -1) for g in flat], 1)

        start = torch.cat([p.reshape(count, -1) for p in parameters], 1)
        found, rising = ascend(evaluate, start, steps, self._response())
        found = torch.where(alive[:, None], found, start)
        return parted(found), rising & alive

    def _response(self) -> Precondition | None:
        """Return the Newton step of the prior alone, if the prior is one of the parameters themselves."""
        response = getattr(self.prior, "response", None)
        plain = isinstance(self.image, Codes) or (isinstance(self.image, Pixels) and self.image.low is None)
        return None if response is None or not plain else lambda g: response(g) / self.strength

    def _terms(self, parameters: list[Tensor], x: Tensor, given: Tensor, redirected: bool) -> tuple[Tensor, Tensor]:
        """Return objective and log-prior `[K]`; `given` has equally many copies of each prototype, one after the other."""
        copies = len(given) // len(x)
        reading = self.reader(given.to(self.of_model), redirected)
        found = []
        for concept, part in zip(self.concepts, reading.parted(copies), strict=True):
            value = concept.value(part)
            if value.shape != (copies,):
                raise InputError(
                    f"the objective {concept} returned shape {tuple(value.shape)} for {copies} samples, expected ({copies},)"
                )
            found.append(value.mean())
        activation = torch.stack(found)
        if self.prior is None:
            return activation, torch.zeros_like(activation)
        return activation, self._log_prob(parameters[0] if isinstance(self.prior, CodeSpace) else x).to(activation)

    def _changed(self, x: Tensor, randoms: Sequence[torch.Generator]) -> Tensor:
        """Return the transformed prototypes that the model reads."""
        given = x if self.transform is None else self.transform(x, randoms)
        if not isinstance(given, Tensor) or not len(given) or len(given) % len(x):
            made = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InputError(
                f"the transforms returned {made} for images {tuple(x.shape)}, expected the same number of images for each"
            )
        return given

    def _rendered(self, parameters: list[Tensor]) -> Tensor:
        try:
            x = self.image.render(parameters, self.shape)
        except (RuntimeError, TypeError) as error:
            if isinstance(error, WhenceError) or is_out_of_memory(error) or not isinstance(self.image, Codes):
                raise
            sizes = tuple(parameters[0].shape)
            raise InputError(f"the decoder failed on codes of shape {sizes}: {first_line(error)}") from error
        if self.shape and tuple(x.shape[1:]) != self.shape:
            raise InputError(f"the decoder returned inputs of shape {tuple(x.shape[1:])}, expected {self.shape}")
        return x

    def _log_prob(self, x: Tensor) -> Tensor:
        found = self.prior.log_prob(x)
        if not isinstance(found, Tensor) or found.shape != (len(x),):
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"the prior's log_prob returned {given} for {len(x)} inputs, expected ({len(x)},)")
        return found

    def _apart(self, x: Tensor) -> Tensor:
        """Return −diversity · Σ cos(x_i, x_j) over prototypes of the same target."""
        if not self.diversity:
            return x.new_zeros(())
        x = x.flatten(1)
        x = F.normalize(x - x.mean(1, keepdim=True), dim=1)
        pairs = [[i != j and same_objective(a, b) for j, b in enumerate(self.concepts)] for i, a in enumerate(self.concepts)]
        return -self.diversity * ((x @ x.T) * torch.tensor(pairs).to(x)).sum()

    @torch.no_grad()
    def _prototypes(self, parameters: list[Tensor], course: "SearchState", steps: int, rising: Tensor) -> Prototypes:
        x = self._rendered(parameters).detach()
        activation, log_prob = self._terms(parameters, x, x, redirected=False)
        note = self._note(course, steps, rising)
        if note:
            warnings.warn(note, stacklevel=5)
        elif self._unpenalised and course.rose():
            note = (
                "the input has neither a prior nor bounds, and the objective was still rising: it may have no maximum, and the "
                "result depends on n_steps and lr; pass prior=whence.priors.L2(0.01) or image=whence.images.Pixels(low, high)"
            )
        low, high = getattr(self.image, "low", None), getattr(self.image, "high", None)
        return Prototypes(
            images=x,
            names=[str(concept) for concept in self.concepts],
            activation=activation.detach(),
            log_prob=None if self.prior is None else log_prob.detach(),
            codes=parameters[0] if isinstance(self.image, Codes) else None,
            history={"activation": torch.stack(course.activations), "log_prob": torch.stack(course.log_probs)},
            bounds=None if low is None else (low, high),
            note=note,
        )

    @property
    def _unpenalised(self) -> bool:
        """Whether nothing keeps the values of the input small."""
        weight = 0 if self.prior is None else self.strength * getattr(self.prior, "strength", 1)
        return weight == 0 and isinstance(self.image, Pixels) and self.image.low is None

    def _note(self, course: "SearchState", steps: int, rising: Tensor) -> str:
        """Return a description of everything that went wrong."""
        notes = [
            f"the objective of {self.concepts[k]} is NaN or infinite after {step} steps; returned is the last finite input"
            for k, step in course.ended.items()
        ]
        dead = ", ".join(str(self.concepts[k]) for k in (course.alive & ~course.moved).nonzero().flatten().tolist())
        if dead:
            notes.append(
                f"the gradient of {dead} has been zero everywhere (dead units); pass start=, an input that activates them"
            )
        if rising.any() and steps >= MANY_PROTOTYPES:
            names = ", ".join(str(self.concepts[k]) for k in rising.nonzero().flatten().tolist())
            notes.append(f"{names} had not converged after {steps} steps; increase n_steps")
        unbounded = isinstance(self.image, Pixels) and self.image.low is None and not self._smooth
        # Adam moves a number by at most its learning rate in each step
        if not notes and unbounded and steps >= MANY_PROTOTYPES and course.went() > STRAIGHT_PATH * course.reach:
            notes.append(
                f"some values moved in one direction in all {steps} steps and may not have converged; increase n_steps or lr, "
                "or bound the search by a prior or by image=whence.images.Pixels(low, high)"
            )
        return "; ".join(notes)


@dataclass
class SearchState:
    """The history of a search, and its last finite parameters."""

    count: int
    parameters: list[Tensor]
    reach: float = 0.0  # the largest distance that a parameter can have moved
    ended: dict[int, int] = field(default_factory=dict)  # prototypes that are no longer finite, and the step
    activations: list[Tensor] = field(default_factory=list)
    log_probs: list[Tensor] = field(default_factory=list)

    def __post_init__(self):
        self._began = [p.detach().clone() for p in self.parameters]
        self._good = [p.detach().clone() for p in self.parameters]
        self.alive = torch.ones(self.count, dtype=torch.bool, device=self.parameters[0].device)
        self.moved = torch.zeros_like(self.alive)

    def follow(
        self, step: int, total: Tensor, gradients: Sequence[Tensor | None], activation: Tensor, log_prob: Tensor
    ) -> None:
        """Record a step, and which prototypes are no longer finite."""
        finite = torch.isfinite(total.detach())
        for g in gradients:
            if g is not None:
                finite = finite & torch.isfinite(g).flatten(1).all(1)
        for k in (self.alive & ~finite).nonzero().flatten().tolist():
            self.ended[k] = step
        if self.ended and not step:
            raise ModelError("the objective or the prior is NaN or infinite at the start; pass another input as start=")
        self.alive &= finite
        for p, good in zip(self.parameters, self._good, strict=True):
            good[self.alive] = p.detach()[self.alive]
        if self.alive.any():
            self.activations.append(activation.detach())
            self.log_probs.append(log_prob.detach())

    def rose(self) -> bool:
        """Return whether the objective of any prototype rose in the last step."""
        return len(self.activations) > 1 and bool((self.activations[-1] > self.activations[-2]).any())

    @torch.no_grad()
    def hold(self) -> None:
        """Reset prototypes that are no longer finite to their last finite parameters."""
        for p, good in zip(self.parameters, self._good, strict=True):
            p[~self.alive] = good[~self.alive]

    def went(self) -> float:
        """Return the largest distance that a parameter has moved."""
        return max(float((p.detach() - b).abs().max()) for p, b in zip(self.parameters, self._began, strict=True))


def make_generators(concepts: list[Objective], seed: int) -> list[torch.Generator]:
    """Return a generator for each prototype, seeded by its concept and its repetition, so that batches equal single runs."""
    randoms = []
    for k, concept in enumerate(concepts):
        before = sum(same_objective(concept, earlier) for earlier in concepts[:k])
        name = f"{type(concept).__name__} {concept}, {before}, {seed}"
        randoms.append(torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return randoms


def same_objective(a: Objective, b: Objective) -> bool:
    """Return whether two objectives are equal."""
    if a is b:
        return True
    try:
        return bool(a == b)
    except RuntimeError:  # targets with tensors of several indices
        return False


def _parameters(prior: Any) -> Sequence[Tensor]:
    decoder = getattr(prior, "decoder", None)
    return list(decoder.parameters()) if isinstance(decoder, torch.nn.Module) else []


def _any_gradient(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return which prototypes have a gradient that is not zero."""
    return torch.stack([g.flatten(1).abs().amax(1) > 0 for g in gradients if g is not None]).any(0)
