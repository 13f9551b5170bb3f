"""The search for prototypes: gradient ascent on all of them at once, each as if it were alone."""

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

MIN_LBFGS_STEPS = 32  # steps
WARMUP_STEPS = 16  # steps in which gradients are led round ReLUs that are off
MANY_PROTOTYPES = 64  # steps, after which one should have arrived
STRAIGHT_PATH = 0.95  # of the way that so many steps can lead


@dataclass(frozen=True)
class PrototypeSearch:
    """What is maximised, and how it is written down."""

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
        """The parameters to start from, in single precision at least."""
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
            raise RuleError(f"{type(self.image).__name__} cannot start from an input; use Pixels or Fourier")
        wanted = (self.image.space.code_size(),) if isinstance(self.image, Codes) else self.shape
        if start.shape[1:] != wanted:
            raise InputError(f"start of shape {tuple(start.shape)} for {'codes' if len(wanted) == 1 else 'inputs'} of {wanted}")
        if len(start) not in (1, len(self.concepts)):
            raise InputError(f"start has {len(start)} inputs for {len(self.concepts)} targets; give one, or one each")
        return self.image.written(start.detach().expand(len(self.concepts), *start.shape[1:]))

    def run(
        self, parameters: list[Tensor], steps: int, lr: float, randoms: Sequence[torch.Generator], shown: Progress
    ) -> Prototypes:
        """Adam, and on from there. A prototype whose terms are no longer finite stays where it was."""
        course = self._climbed(parameters, steps, lr, randoms, shown)
        found = [p.detach() for p in parameters]
        rising = torch.zeros_like(course.alive)
        if self._smooth:
            found, rising = self._ascended(found, course.alive, max(MIN_LBFGS_STEPS, steps // 4))
        return self._prototypes(found, course, steps, rising)

    def scouted(
        self, parameters: list[Tensor], steps: int, lr: float, randoms: Sequence[torch.Generator]
    ) -> tuple[list[Tensor], Tensor]:
        """How far a search of so few steps comes, and how high `[K]`."""
        parameters = [p.detach().requires_grad_() for p in parameters]
        self._climbed(parameters, steps, lr, randoms, shown=False)
        with torch.no_grad():
            height = self._height(parameters)
        return [p.detach() for p in parameters], height.nan_to_num(nan=-torch.inf)

    def _height(self, parameters: list[Tensor]) -> Tensor:
        """What is maximised, of the inputs as they are, `[K]`."""
        x = self._rendered(parameters)
        activation, log_prob = self._terms(parameters, x, x, redirected=False)
        return activation + self.strength * log_prob

    def _climbed(
        self, parameters: list[Tensor], steps: int, lr: float, randoms: Sequence[torch.Generator], shown: Progress
    ) -> "SearchState":
        """Adam with a rate that falls to 0 as a cosine."""
        optimizer = torch.optim.Adam(parameters, lr, maximize=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        course = SearchState(len(self.concepts), parameters)
        warm_up = min(WARMUP_STEPS, steps // 2)
        with progressing("prototype", steps, shown) as advance:
            for step in range(steps):
                x = self._rendered(parameters)
                activation, log_prob = self._terms(parameters, x, self._changed(x, randoms), redirected=step < warm_up)
                if not activation.requires_grad:
                    raise ModelError("the objective does not depend on the input; there is nothing to climb")
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
        """Whether nothing is random and something bounds the search, so that it has an end to be reached."""
        bounded = self.prior is not None and self.strength > 0  # a sigmoid bounds it too, but has no end
        return self.transform is None and not self.diversity and bounded

    def _ascended(self, parameters: list[Tensor], alive: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
        """On to where nothing rises any more, and which still rise."""
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
        """The step that a gradient asks for against the prior alone, where the parameters are what it is a prior of."""
        response = getattr(self.prior, "response", None)
        plain = isinstance(self.image, Codes) or (isinstance(self.image, Pixels) and self.image.low is None)
        return None if response is None or not plain else lambda g: response(g) / self.strength

    def _terms(self, parameters: list[Tensor], x: Tensor, given: Tensor, redirected: bool) -> tuple[Tensor, Tensor]:
        """Objective and log-prior of each prototype `[K]`, the model given as many copies of each, one after the other."""
        copies = len(given) // len(x)
        reading = self.reader(given.to(self.of_model), redirected)
        found = []
        for concept, part in zip(self.concepts, reading.parted(copies), strict=True):
            value = concept.value(part)
            if value.shape != (copies,):
                raise InputError(f"the objective {concept} gave {tuple(value.shape)} for {copies} samples, not one value each")
            found.append(value.mean())
        activation = torch.stack(found)
        if self.prior is None:
            return activation, torch.zeros_like(activation)
        return activation, self._log_prob(parameters[0] if isinstance(self.prior, CodeSpace) else x).to(activation)

    def _changed(self, x: Tensor, randoms: Sequence[torch.Generator]) -> Tensor:
        """What the model is given of the prototypes."""
        given = x if self.transform is None else self.transform(x, randoms)
        if not isinstance(given, Tensor) or not len(given) or len(given) % len(x):
            made = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f"the transforms made {made} of {tuple(x.shape)}; they must make as many pictures of each")
        return given

    def _rendered(self, parameters: list[Tensor]) -> Tensor:
        try:
            x = self.image.render(parameters, self.shape)
        except (RuntimeError, TypeError) as error:
            if isinstance(error, WhenceError) or is_out_of_memory(error) or not isinstance(self.image, Codes):
                raise
            sizes = tuple(parameters[0].shape)
            raise InputError(f"the decoder cannot make inputs of codes {sizes}: {first_line(error)}") from error
        if self.shape and tuple(x.shape[1:]) != self.shape:
            raise InputError(f"the decoder makes inputs of {tuple(x.shape[1:])}, not {self.shape}")
        return x

    def _log_prob(self, x: Tensor) -> Tensor:
        found = self.prior.log_prob(x)
        if not isinstance(found, Tensor) or found.shape != (len(x),):
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"the prior's log_prob gave {given} for {len(x)} inputs, not [{len(x)}]")
        return found

    def _apart(self, x: Tensor) -> Tensor:
        """−diversity · Σ cos(x_i, x_j) over prototypes of the same target."""
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

    def _note(self, course: "SearchState", steps: int, rising: Tensor) -> str:
        """What went wrong, in words."""
        notes = [
            f"the objective of {self.concepts[k]} is NaN or infinite after {step} steps; this is its last good input"
            for k, step in course.ended.items()
        ]
        dead = ", ".join(str(self.concepts[k]) for k in (course.alive & ~course.moved).nonzero().flatten().tolist())
        if dead:
            notes.append(f"the gradient of {dead} has been zero everywhere: dead units; try start=, an input that moves them")
        if rising.any() and steps >= MANY_PROTOTYPES:
            names = ", ".join(str(self.concepts[k]) for k in rising.nonzero().flatten().tolist())
            notes.append(f"{names} still rose when the {steps} steps ended; take more")
        unbounded = isinstance(self.image, Pixels) and self.image.low is None and not self._smooth
        # Adam moves no number by more than its rate
        if not notes and unbounded and steps >= MANY_PROTOTYPES and course.went() > STRAIGHT_PATH * course.reach:
            notes.append(
                f"some numbers went the same way at all of the {steps} steps and may not have arrived; take more steps or a "
                "larger lr, or bound what grows without end by a prior or image=whence.images.Pixels(low, high)"
            )
        return "; ".join(notes)


@dataclass
class SearchState:
    """How a search has gone."""

    count: int
    parameters: list[Tensor]
    reach: float = 0.0  # as far as any number can have gone
    ended: dict[int, int] = field(default_factory=dict)  # which prototype is no longer finite, after how many steps
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
        """Note a step, and which prototypes are finite no longer."""
        finite = torch.isfinite(total.detach())
        for g in gradients:
            if g is not None:
                finite = finite & torch.isfinite(g).flatten(1).all(1)
        for k in (self.alive & ~finite).nonzero().flatten().tolist():
            self.ended[k] = step
        if self.ended and not step:
            raise ModelError("the objective or the prior is NaN or infinite at the start; begin from another input (start=)")
        self.alive &= finite
        for p, good in zip(self.parameters, self._good, strict=True):
            good[self.alive] = p.detach()[self.alive]
        if self.alive.any():
            self.activations.append(activation.detach())
            self.log_probs.append(log_prob.detach())

    @torch.no_grad()
    def hold(self) -> None:
        """After a step: ended prototypes go back to where they last were good."""
        for p, good in zip(self.parameters, self._good, strict=True):
            p[~self.alive] = good[~self.alive]

    def went(self) -> float:
        """The farthest that any number has gone."""
        return max(float((p.detach() - b).abs().max()) for p, b in zip(self.parameters, self._began, strict=True))


def make_generators(concepts: list[Objective], seed: int) -> list[torch.Generator]:
    """A generator for each prototype, by its concept and how often that came before: the same alone as among others."""
    randoms = []
    for k, concept in enumerate(concepts):
        before = sum(same_objective(concept, earlier) for earlier in concepts[:k])
        name = f"{type(concept).__name__} {concept}, {before}, {seed}"
        randoms.append(torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return randoms


def same_objective(a: Objective, b: Objective) -> bool:
    """Whether two concepts are one."""
    if a is b:
        return True
    try:
        return bool(a == b)
    except RuntimeError:  # of targets with one index for each of several samples
        return False


def _parameters(prior: Any) -> Sequence[Tensor]:
    decoder = getattr(prior, "decoder", None)
    return list(decoder.parameters()) if isinstance(decoder, torch.nn.Module) else []


def _any_gradient(gradients: Sequence[Tensor | None]) -> Tensor:
    """Of which prototypes any gradient is not zero."""
    return torch.stack([g.flatten(1).abs().amax(1) > 0 for g in gradients if g is not None]).any(0)
