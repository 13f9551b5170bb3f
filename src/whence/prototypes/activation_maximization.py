"""prototype(): model + concept + prior -> Prototypes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.devices import first_weight
from whence.core.inputs import check_model
from whence.core.progress import Progress
from whence.errors import InputError, RuleError
from whence.methods.forward_backward import gradients_enabled
from whence.methods.layer_reader import LayerReader
from whence.prototypes.gradient_ascent import PrototypeSearch, make_generators
from whence.prototypes.image_parameterizations import Codes, Fourier, ImageParameterization, Pixels
from whence.prototypes.multi_start import best_of_starts, supports_multi_start
from whence.prototypes.objectives import Concept, parse_objectives
from whence.prototypes.priors import CodeSpace, Prior
from whence.prototypes.prototypes import Prototypes
from whence.prototypes.random_transforms import Jiggle, Transform

MIN_PHOTO_SIDE = 32  # sides from which a picture of three channels is taken for a photo


@check_arguments
def prototype(
    model: Callable[..., Any],
    concept: Concept | Iterable[Concept],
    *,
    prior: Prior | CodeSpace | None = None,
    strength: float = 1.0,
    shape: Sequence[int] | None = None,
    image: ImageParameterization | None = None,
    transforms: Transform | Literal["auto"] | None = "auto",
    n_steps: int = 512,
    lr: float | None = None,
    seed: int = 0,
    start: Tensor | None = None,
    diversity: float = 0.0,
    progress: Progress = True,
) -> Prototypes:
    """What does the network take a concept to be? The input that maximises it, for each of K concepts at once.

    >>> p = whence.prototype(model, range(10), prior=whence.priors.L2(0.3), shape=(1, 28, 28))       # ten classes
    >>> p.images, p.activation, p.log_prob                                                     # [10, 1, 28, 28], [10], [10]
    >>> whence.prototype(model, "features.10:0-15", shape=(3, 224, 224)).save("grid.png")      # sixteen channels
    >>> whence.prototype(model, whence.objectives.Channel("features.10", 3) - whence.objectives.Channel("features.10", 5), shape=(3, 224, 224))

    `concept` is a class, "layer:channel", "layer", an objective (`Channel`, `Neuron`, `Direction`, `Caricature`, …, sums of
    them), what `explain` takes, or a list of these. Maximised is objective(x) + `strength` · log p(x) (Montavon et al. 2018,
    section 3). A class is its logit; `LogProbability` is log p(ω|x), which saturates, so that the prior decides in the end,
    where a logit goes on growing against it. `prior` is `L2`, `GaussianExpert`, `GaussianRBM`, `CodeSpace`, or any object with
    `log_prob`.

    `shape` is that of one input, where neither prior, `start` nor model tell it. `image` is how it is written down: `Pixels`,
    `Fourier` (for photos, if not given), `MACO`, `CPPN`. `transforms` change it a little between steps: "auto" is `Jiggle()`
    for photos without a prior, None is none. Adam with a rate `lr` that falls to 0 as a cosine takes `n_steps` steps from noise,
    around the mean of a Gaussian or an RBM, or from `start` `[K or 1, …]`. `diversity` pushes prototypes of the same target
    apart. Draws are set by `seed` and the concept, so that K at once equal K single runs. A function as `transforms` is called
    with pictures `[K, …]` and a `torch.Generator` for each, and gives as many of each one after the other.

    A search that meets NaN or infinite values, a unit that nothing moves, or one that has not arrived: a warning and a `note`.
    """
    check_model(model)
    _check(prior, strength, image, n_steps, lr, seed, start)
    concepts = parse_objectives(concept)
    of_model = _empty_like_model(model)
    size = _shape(model, shape, prior, start)
    written = _image(image, prior, size)
    reader = LayerReader(model, [layer for concept in concepts for layer in concept.layers], any(c.output for c in concepts))
    concepts = [concept.prepared(lambda x, layers: LayerReader(model, layers)(x.to(of_model))) for concept in concepts]
    changes = _transform(transforms, written, prior, size)
    search = PrototypeSearch(reader, concepts, prior, strength, size, written, changes, diversity, of_model)
    with gradients_enabled():
        randoms = make_generators(concepts, seed)
        if start is None and supports_multi_start(search):
            return best_of_starts(search, n_steps, written.lr if lr is None else lr, seed, randoms, progress)
        return search.run(search.start(start, randoms), n_steps, written.lr if lr is None else lr, randoms, progress)


def _check(prior: Any, strength: float, image: Any, steps: int, lr: float | None, seed: int, start: Tensor | None) -> None:
    """What can be refused before anything is computed."""
    if not isinstance(steps, int) or steps < 1:
        raise RuleError(f"n_steps={steps!r}; give at least 1")
    if not isinstance(seed, int) or seed < 0:
        raise RuleError(f"seed={seed!r}; give a whole number from 0 on")
    if not strength >= 0 or (lr is not None and not lr > 0):
        raise RuleError(f"strength={strength!r}, lr={lr!r}; neither may be negative")
    if prior is not None and (isinstance(prior, type) or not hasattr(prior, "log_prob")):
        raise RuleError(f"{prior!r} is no prior; give one such as whence.priors.L2(0.1), or any object with log_prob(x)")
    if image is not None and (isinstance(image, type) or not hasattr(image, "render")):
        raise RuleError(f"{image!r} is no image; give one such as whence.images.Fourier(low, high)")
    if start is not None and not (isinstance(start, Tensor) and start.is_floating_point() and start.dim() > 1):
        raise InputError("start must be a batch of floating-point inputs, [K, …] or [1, …]")
    if isinstance(prior, CodeSpace):
        check_model(prior.decoder)


def _shape(model: Any, shape: Sequence[int] | None, prior: Any, start: Tensor | None) -> tuple[int, ...]:
    """The shape of one input: as given, or as prior, start or the model's first layer tell."""
    if shape is not None:
        if not isinstance(shape, Sequence) or not all(isinstance(n, int) and n > 0 for n in shape):
            raise InputError(f"shape={shape!r}; give the positive sizes of one input, such as (3, 224, 224)")
        found = tuple(shape)
    elif isinstance(prior, CodeSpace):
        found = tuple(getattr(prior.decoder, "shape", ()))
    elif getattr(prior, "shape", None) is not None:
        found = tuple(prior.shape)
    elif start is not None:
        found = tuple(start.shape[1:])
    else:
        found = _first_layer(model)
    known = getattr(prior.decoder if isinstance(prior, CodeSpace) else prior, "shape", found)
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
    return Fourier() if _is_natural_image(shape) and prior is None else Pixels()


def _is_natural_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= MIN_PHOTO_SIDE


def _transform(given: Any, image: Any, prior: Any, shape: tuple[int, ...]) -> Any:
    if given == "auto":
        return Jiggle() if prior is None and _is_natural_image(shape) and not isinstance(image, Codes) else None
    if given is not None and not callable(given):
        raise RuleError(f"transforms={given!r}; give whence.images.Jiggle(), a function of pictures and generators, or None")
    return given


def _empty_like_model(model: Any) -> Tensor:
    """An empty tensor in the model's dtype and on its device."""
    first = first_weight(model)
    return torch.empty(0) if first is None else first.detach().new_empty(0)
