"""prototype(): model + concept + prior -> Prototypes."""

import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from whence.errors import InputError, RuleError
from whence.inputs import check_model
from whence.methods.passes import differentiating
from whence.progress import Progress, progress as progressing
from whence.prototypes.images import Codes, Fourier, Image, Pixels
from whence.prototypes.objectives import Concept, Objective, objectives
from whence.prototypes.priors import CodeSpace, Prior
from whence.prototypes.prototypes import Prototypes
from whence.prototypes.readings import Reader
from whence.prototypes.transforms import Jiggle, Transform

SMALLEST_PHOTO = 32  # sides from which a picture of three channels is taken for a photo
STRAIGHT_ON = 0.95  # of the way that so many steps can lead
MANY = 64  # steps, after which one should have arrived
WARM_UP = 16  # steps in which gradients are led round ReLUs that are off


def prototype(
    model: Callable[..., Any],
    target: Concept | Iterable[Concept],
    *,
    prior: Prior | CodeSpace | None = None,
    strength: float = 1.0,
    shape: Sequence[int] | None = None,
    image: Image | None = None,
    transforms: Transform | Literal["auto"] | None = "auto",
    steps: int = 512,
    lr: float | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    diversity: float = 0.0,
    progress: Progress = True,
) -> Prototypes:
    """What does the network take a concept to be? The input that maximises it, for each of K concepts at once.

    >>> p = whence.prototype(model, range(10), prior=whence.L2(0.3), shape=(1, 28, 28))       # ten classes
    >>> p.images, p.activation, p.log_prob                                                     # [10, 1, 28, 28], [10], [10]
    >>> whence.prototype(model, "features.10:0-15", shape=(3, 224, 224)).save("grid.png")      # sixteen channels
    >>> whence.prototype(model, whence.Channel("features.10", 3) - whence.Channel("features.10", 5), shape=(3, 224, 224))

    `target` is a class, "layer:channel", "layer", an objective (`Channel`, `Neuron`, `Direction`, `Caricature`, …, sums of
    them), what `explain` takes, or a list of these. Maximised is objective(x) + `strength` · log p(x) (Montavon et al. 2018,
    section 3). A class is its logit; `LogProbability` is log p(ω|x), which saturates, so that the prior decides in the end,
    where a logit goes on growing against it. `prior` is `L2`, `GaussianExpert`, `GaussianRBM`, `CodeSpace`, or any object with
    `log_prob`.

    `shape` is that of one input, where neither prior, `start` nor model tell it. `image` is how it is written down: `Pixels`,
    `Fourier` (for photos, if not given), `MACO`, `CPPN`. `transforms` change it a little between steps: "auto" is `Jiggle()`
    for photos without a prior, None is none. Adam with a rate `lr` that falls to 0 as a cosine takes `steps` steps from noise,
    around the prior's mean if it has one, or from `start` `[K or 1, …]`. `diversity` pushes prototypes of the same target
    apart. Draws are set by `seed` and the concept, so that K at once equal K single runs.

    A search that meets NaN or infinite values, moves a unit by nothing or does not arrive ends with a warning and a `note`.
    """
    check_model(model)
    if not isinstance(steps, int) or steps < 1:
        raise RuleError(f"steps={steps!r}; give at least 1")
    concepts = objectives(target)
    size = _shape(model, shape, prior, start)
    written = _image(image, prior, size)
    randoms = _generators(concepts, seed)
    reader = Reader(model, [layer for concept in concepts for layer in concept.layers], any(c.output for c in concepts))
    concepts = [concept.prepared(lambda x, layers: Reader(model, layers)(x)) for concept in concepts]
    run = _Run(reader, concepts, prior, strength, size, written, _transform(transforms, written, prior, size), diversity)
    with differentiating():
        parameters = run.start(start, randoms)
        return run.maximise(parameters, steps, written.lr if lr is None else lr, randoms, progress)


@dataclass(frozen=True)
class _Run:
    reader: Reader
    concepts: list[Objective]
    prior: Any
    strength: float
    shape: tuple[int, ...]
    image: Any
    transform: Transform | None
    diversity: float

    def start(self, start: Tensor | None, randoms: Sequence[torch.Generator]) -> list[Tensor]:
        if start is None:
            noise = self.image.start(self.shape, randoms)
            typical = getattr(self.prior, "typical", None)
            if typical is not None and hasattr(self.image, "written"):
                noise = [p + t for p, t in zip(noise, self.image.written(typical[None].to(noise[0])), strict=True)]
            return [p.requires_grad_() for p in noise]
        if not hasattr(self.image, "written"):
            raise RuleError(f"{type(self.image).__name__} cannot start from an input; use Pixels or Fourier")
        if start.shape[1:] != self.shape and not isinstance(self.image, Codes):
            raise InputError(f"start of shape {tuple(start.shape)} for inputs of {self.shape}")
        if len(start) not in (1, len(self.concepts)):
            raise InputError(f"start has {len(start)} inputs for {len(self.concepts)} targets; give one, or one each")
        written = self.image.written(start.detach().expand(len(self.concepts), *start.shape[1:]))
        return [p.clone().requires_grad_() for p in written]

    def maximise(
        self, parameters: list[Tensor], steps: int, lr: float, randoms: Sequence[torch.Generator], shown: Progress
    ) -> Prototypes:
        optimizer = torch.optim.Adam(parameters, lr, maximize=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        history: list[tuple[Tensor, Tensor]] = []
        moved = torch.zeros(len(self.concepts), dtype=torch.bool, device=parameters[0].device)
        note, reach = "", 0.0
        began = [p.detach().clone() for p in parameters]
        kept = [p.detach().clone() for p in parameters]
        with progressing("prototype", steps, shown) as advance:
            for step in range(steps):
                warming = step < min(WARM_UP, steps // 2)
                activation, log_prob = self._terms(self._changed(parameters, randoms), warming)
                total = activation + self.strength * log_prob
                gradients = torch.autograd.grad(total.sum() + self._apart(parameters), parameters, allow_unused=True)
                if not all(bool(torch.isfinite(t).all()) for t in (total, *gradients) if t is not None):
                    note = f"the objective is NaN or infinite after {step} steps; these are the last good inputs"
                    break
                if not warming:
                    moved |= torch.stack([g.flatten(1).abs().amax(1) > 0 for g in gradients if g is not None]).any(0)
                kept = [p.detach().clone() for p in parameters]
                history.append((activation.detach(), log_prob.detach()))
                for p, g in zip(parameters, gradients, strict=True):
                    p.grad = g
                reach += optimizer.param_groups[0]["lr"]
                optimizer.step()
                schedule.step()
                advance(1, f"activation {float(activation.detach().mean()):.3g}" if shown else "")
        final = kept if note else [p.detach() for p in parameters]
        went = max(float((p - b).abs().max()) for p, b in zip(final, began, strict=True))
        unbounded = isinstance(self.image, Pixels) and self.image.low is None
        if not note and not moved.all():
            dead = ", ".join(str(self.concepts[k]) for k in (~moved).nonzero().flatten().tolist())
            note = f"the gradient of {dead} has been zero everywhere: dead units; try start=, an input that moves them"
        elif (
            not note and unbounded and steps >= MANY and went > STRAIGHT_ON * reach
        ):  # Adam moves no number by more than its rate
            note = (
                f"some numbers went the same way at all of the {steps} steps and may not have arrived; take more steps or a "
                "larger lr, or bound what grows without end by a prior or image=whence.Pixels(low, high)"
            )
        return self._prototypes(final, history, note)

    def _terms(self, rendered: tuple[Tensor, Tensor, int], redirected: bool = False) -> tuple[Tensor, Tensor]:
        """Objective and log-prior of each prototype, `[K]`."""
        x, given, copies = rendered
        reading = self.reader(given, redirected)
        activation = torch.stack(
            [c.value(reading.of(slice(k * copies, (k + 1) * copies))).mean() for k, c in enumerate(self.concepts)]
        )
        return activation, torch.zeros_like(activation) if self.prior is None else self._log_prob(x)

    def _changed(self, parameters: list[Tensor], randoms: Sequence[torch.Generator]) -> tuple[Tensor, Tensor, int]:
        """What the prior is asked of, what the model is given, and how many copies of each prototype that holds."""
        x = self.image.render(parameters, self.shape)
        given = x if self.transform is None else self.transform(x, randoms)
        if len(given) % len(x):
            raise InputError(f"the transforms made {len(given)} inputs of {len(x)}; they must make as many of each")
        return parameters[0] if isinstance(self.prior, CodeSpace) else x, given, len(given) // len(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        found = self.prior.log_prob(x)
        if not isinstance(found, Tensor) or found.shape != (len(x),):
            given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"the prior's log_prob gave {given} for {len(x)} inputs, not [{len(x)}]")
        return found

    def _apart(self, parameters: list[Tensor]) -> Tensor:
        """−diversity · Σ cos(x_i, x_j) over prototypes of the same target."""
        if not self.diversity:
            return parameters[0].new_zeros(())
        x = self.image.render(parameters, self.shape).flatten(1)
        x = torch.nn.functional.normalize(x - x.mean(1, keepdim=True), dim=1)
        names = [str(concept) for concept in self.concepts]
        same = torch.tensor([[i != j and a == b for j, b in enumerate(names)] for i, a in enumerate(names)]).to(x)
        return -self.diversity * ((x @ x.T) * same).sum()

    @torch.no_grad()
    def _prototypes(self, parameters: list[Tensor], history: list[tuple[Tensor, Tensor]], note: str) -> Prototypes:
        x = self.image.render(parameters, self.shape).detach()
        asked = parameters[0] if isinstance(self.prior, CodeSpace) else x
        activation, log_prob = self._terms((asked, x, 1))
        if note:
            warnings.warn(note, stacklevel=5)
        return Prototypes(
            images=x,
            names=[str(concept) for concept in self.concepts],
            activation=activation.detach(),
            log_prob=None if self.prior is None else log_prob.detach(),
            codes=parameters[0] if isinstance(self.image, Codes) else None,
            history={
                "activation": torch.stack([a for a, _ in history]) if history else activation[None][:0],
                "log_prob": torch.stack([p for _, p in history]) if history else log_prob[None][:0],
            },
            bounds=_bounds(self.image),
            note=note,
        )


def _shape(model: Any, shape: Sequence[int] | None, prior: Any, start: Tensor | None) -> tuple[int, ...]:
    """The shape of one input: as given, or as prior, start or the model's first layer tell."""
    if shape is not None:
        if not all(isinstance(n, int) and n > 0 for n in shape):
            raise InputError(f"shape={tuple(shape)}; give the positive sizes of one input, such as (3, 224, 224)")
        found = tuple(shape)
    elif isinstance(prior, CodeSpace):
        found = tuple(getattr(prior.decoder, "shape", ()))
    elif getattr(prior, "shape", None) is not None:
        found = tuple(prior.shape)
    elif start is not None:
        found = tuple(start.shape[1:])
    else:
        found = _first_layer(model)
    known = getattr(prior, "shape", found)
    if found != tuple(known):
        raise InputError(f"the prior is of inputs of {tuple(known)}, not {found}")
    return found


def _first_layer(model: Any) -> tuple[int, ...]:
    weighted = (
        (m for m in model.modules() if getattr(m, "weight", None) is not None) if isinstance(model, torch.nn.Module) else ()
    )
    first = next(iter(weighted), None)
    if isinstance(first, torch.nn.Linear):
        return (first.in_features,)
    raise InputError("the model does not say what shape its inputs have; pass shape=(3, 224, 224) or so, without the batch")


def _image(image: Any, prior: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(prior, CodeSpace):
        if image is not None:
            raise RuleError("with a CodeSpace the decoder makes the inputs; leave image out")
        return Codes(prior)
    if image is not None:
        return image
    return Fourier() if _is_photo(shape) and prior is None else Pixels()


def _is_photo(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= SMALLEST_PHOTO


def _transform(given: Any, image: Any, prior: Any, shape: tuple[int, ...]) -> Any:
    if given == "auto":
        return Jiggle() if prior is None and _is_photo(shape) and not isinstance(image, Codes) else None
    if given is not None and not callable(given):
        raise RuleError(f"transforms={given!r}; give whence.Jiggle(), a function of pictures and generators, or None")
    return given


def _generators(concepts: list[Objective], seed: int) -> list[torch.Generator]:
    """A generator for each prototype, by its concept and how often that came before: the same alone as among others."""
    seen: Counter[str] = Counter()
    randoms = []
    for name in map(str, concepts):
        randoms.append(torch.Generator().manual_seed((zlib.crc32(f"{name}#{seen[name]}".encode()) << 16) + seed))
        seen[name] += 1
    return randoms


def _bounds(image: Any) -> tuple[Any, Any] | None:
    return None if getattr(image, "low", None) is None else (image.low, image.high)
