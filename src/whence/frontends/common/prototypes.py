"""Prototypes of a loaded model, with priors and image parameterizations by name."""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from whence.errors import InputError, RuleError
from whence.prototypes.activation_maximization import prototype
from whence.prototypes.image_parameterizations import CPPN, MACO, Fourier, Pixels
from whence.prototypes.priors import L2, CodeSpace

if TYPE_CHECKING:
    from whence.models.loaded_model import LoadedModel
    from whence.prototypes.prototypes import Prototypes

PARAMETERIZATIONS = {"pixels": Pixels, "fourier": Fourier, "maco": MACO, "cppn": CPPN}
PRIORS = ("none", "l2", "expert", "decoder")
STRENGTHS = {"l2": 0.3, "expert": 0.3, "decoder": 0.1}


def search_prototypes(
    loaded: "LoadedModel",
    concepts: list[Any],
    prior: str,
    strength: float | None,
    image: str | None,
    size: int | None,
    settings: dict[str, Any],
) -> "Prototypes":
    """Search for prototypes as images of the model's input size and pixel bounds."""
    preprocessing = loaded.preprocessing
    if preprocessing.size is None and size is None:
        raise InputError(f"{loaded.name} does not state its input size; pass --size")
    height, width = (size, size) if size is not None else preprocessing.size or (0, 0)
    shape = (preprocessing.channels, height, width)
    bounds = preprocessing.bounds
    written = PARAMETERIZATIONS[image](*bounds) if image else default_image(prior, shape, bounds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the note reports them
        found = prototype(
            loaded.model,
            concepts,
            prior=_prior(prior, loaded, strength),
            strength=(STRENGTHS["expert"] if strength is None else strength) if prior == "expert" else 1.0,
            shape=shape,
            image=written,
            **settings,
        )
    names = [loaded.class_name(int(name)) if name.isdecimal() else name for name in found.names]
    return replace(found, bounds=bounds, names=names)


def default_image(prior: str, shape: tuple[int, ...], bounds: tuple[Any, Any]) -> Any:
    """Return bounded Fourier coefficients for photos, or bounded pixels; None with a prior, which bounds pixels itself."""
    if prior != "none":
        return None
    return Fourier(*bounds) if min(shape[1:]) > 64 else Pixels(*bounds)


def _prior(name: str, loaded: "LoadedModel", strength: float | None) -> Any:
    if name == "none":
        return None
    if name == "l2":
        return L2(STRENGTHS["l2"] if strength is None else strength)
    if loaded.name != "digits":
        raise RuleError(
            f"--prior {name} is only bundled for the digits model; fit one in Python: "
            "whence.priors.GaussianRBM, whence.priors.VAE"
        )
    from whence.models.digits import digit_decoder, digit_expert

    if name == "expert":
        return digit_expert()
    return CodeSpace(digit_decoder(), STRENGTHS["decoder"] if strength is None else strength)
