"""`prototype()`: activation maximisation of classes, channels and other objectives under a prior."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.devices import device_of, first_weight
from whence.core.inputs import check_model
from whence.core.progress import Progress
from whence.errors import InputError, RuleError, value_repr
from whence.methods.forward_backward import gradients_enabled
from whence.methods.layer_reader import LayerReader
from whence.prototypes.gradient_ascent import PrototypeSearch, make_generators
from whence.prototypes.image_parameterizations import Codes, Fourier, ImageParameterization, Pixels
from whence.prototypes.multi_start import best_of_starts, supports_multi_start
from whence.prototypes.objectives import Concept, parse_objectives
from whence.prototypes.priors import CodeSpace, Prior
from whence.prototypes.prototypes import Prototypes
from whence.prototypes.random_transforms import Jiggle, Transform

MIN_PHOTO_SIDE = 32  # pixels; smaller inputs of three channels are not treated as photos


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
    """Find the input that maximises each of K concepts (activation maximisation), all at once.

    >>> p = whence.prototype(model, range(10), prior=whence.priors.L2(0.3), shape=(1, 28, 28))       # ten classes
    >>> p.images, p.activation, p.log_prob                                                     # [10, 1, 28, 28], [10], [10]
    >>> whence.prototype(model, "features.10:0-15", shape=(3, 224, 224)).save("grid.png")      # sixteen channels
    >>> difference = whence.objectives.Channel("features.10", 3) - whence.objectives.Channel("features.10", 5)
    >>> whence.prototype(model, difference, shape=(3, 224, 224))

    The search maximises objective(x) + `strength` · log p(x) (Montavon et al. 2018, section 3) by Adam with a cosine learning
    rate schedule that ends at 0. It starts from noise, around the mean if the prior is a Gaussian or an RBM, or from `start`.
    A class is maximised as its logit; `whence.objectives.LogProbability` maximises log p(ω|x) instead, which saturates, so that
    the prior decides in the end, while a logit keeps growing against the prior. Random numbers depend on `seed` and the concept
    alone, so that K concepts at once give the same prototypes as K single runs.

    A warning and the `note` of the result report NaN or infinite values, units whose gradient is zero everywhere, and searches
    that have not converged.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        concept: A class index, "layer:channel", "layer:first-last", "layer", an objective (`Channel`, `Neuron`, `Direction`,
            `Caricature`, …, or a sum of them), a `Logit`, a callable of the outputs, or a list of these.
        prior: `L2`, `GaussianExpert`, `GaussianRBM`, `CodeSpace`, or any object with `log_prob(x)` that returns `[K]`.
        strength: Weight of log p(x).
        shape: Shape of one input, without the batch; needed if it cannot be inferred from `prior`, `start` or the model.
        image: How the input is parameterized: `Pixels`, `Fourier` (default for photos without a prior), `MACO` or `CPPN`.
        transforms: Random transforms between steps. "auto" is `Jiggle()` for photos without a prior, None means no transforms.
            A callable is called with images `[K, …]` and a `torch.Generator` for each of them, and returns the same number of
            transformed images for each prototype, those of one prototype after another.
        n_steps: Number of Adam steps.
        lr: Initial learning rate; the default depends on `image`.
        seed: Random seed.
        start: Inputs to start from, `[K, …]` or `[1, …]`; codes if `prior` is a `CodeSpace`.
        diversity: Weight of the penalty on cosine similarity between prototypes of the same target.
        progress: Show a progress bar.

    Returns:
        `Prototypes` with images `[K, …]`, activations and log-probabilities `[K]`.

    Raises:
        InputError: The shape is unknown, or the prior, the start or the transforms do not fit it.
        RuleError: A setting is out of range or of the wrong kind.
        TargetError: A class, channel or position does not exist.
        SelectorError: A layer does not exist, or the name of a concept cannot be parsed.
        ModelError: The objective does not depend on the input, or is not finite at the start.
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
    """Raise for invalid settings before anything is computed."""
    if not isinstance(steps, int) or steps < 1:
        raise RuleError(f"n_steps must be an int of at least 1, got {value_repr(steps)}")
    if not isinstance(seed, int) or seed < 0:
        raise RuleError(f"seed must be a non-negative int, got {value_repr(seed)}")
    if not strength >= 0 or (lr is not None and not lr > 0):
        raise RuleError(
            f"strength must not be negative and lr must be positive, got strength={value_repr(strength)}, lr={value_repr(lr)}"
        )
    if prior is None and strength != 1:
        raise RuleError(f"strength={value_repr(strength)} is the weight of log p(x) and has no effect without prior=")
    if prior is not None and (isinstance(prior, type) or not hasattr(prior, "log_prob")):
        raise RuleError(
            f"expected a prior such as whence.priors.L2(0.1), or any object with log_prob(x), got {value_repr(prior)}"
        )
    if image is not None and (isinstance(image, type) or not hasattr(image, "render")):
        raise RuleError(f"expected an image parameterization such as whence.images.Fourier(low, high), got {value_repr(image)}")
    if start is not None and not (isinstance(start, Tensor) and start.is_floating_point() and start.dim() > 1):
        raise InputError("start must be a batch of floating-point inputs, [K, …] or [1, …]")
    if isinstance(prior, CodeSpace):
        check_model(prior.decoder)


def _shape(model: Any, shape: Sequence[int] | None, prior: Any, start: Tensor | None) -> tuple[int, ...]:
    """Return the shape of one input: as given, or inferred from the prior, the start or the model's first layer."""
    if shape is not None:
        if not isinstance(shape, Sequence) or not all(isinstance(n, int) and n > 0 for n in shape):
            raise InputError(f"shape must be the positive sizes of one input, such as (3, 224, 224), got {value_repr(shape)}")
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
        raise InputError(f"the prior expects inputs of shape {tuple(known)}, got {found}")
    return found


def _first_layer(model: Any) -> tuple[int, ...]:
    weighted = (
        (m for m in model.modules() if getattr(m, "weight", None) is not None) if isinstance(model, torch.nn.Module) else ()
    )
    first = next(iter(weighted), None)
    if isinstance(first, torch.nn.Linear):
        return (first.in_features,)
    raise InputError("cannot infer the input shape from the model; pass shape=, such as shape=(3, 224, 224), without the batch")


def _image(image: Any, prior: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(prior, CodeSpace):
        if image is not None:
            raise RuleError("image cannot be combined with a CodeSpace, whose decoder renders the inputs; leave image out")
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
        raise RuleError(
            "transforms must be 'auto', whence.images.Jiggle(), a callable of images and generators, or None, got "
            f"{value_repr(given)}"
        )
    return given


def _empty_like_model(model: Any) -> Tensor:
    """Return an empty tensor in the model's dtype and on its device."""
    first = first_weight(model)
    return torch.empty(0) if first is None else torch.empty(0, dtype=first.dtype, device=device_of(model))
