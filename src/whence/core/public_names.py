"""Public names: preparation of their classes, and messages for names that a module does not have."""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, TypeVar

from whence.core.argument_checks import check_init
from whence.core.method_aliases import DIFFERENT, plain_name
from whence.errors import suggest

T = TypeVar("T")
NAMESPACES = (
    "adapters", "attacks", "callbacks", "conditions", "errors", "experiments", "images", "imputers", "layers", "metrics",
    "objectives", "plots", "presets", "priors", "results", "roots",
)  # fmt: skip

EQUIVALENTS = {  # of captum, SHAP, zennit and pytorch-grad-cam, in lower case without underscores
    "deconvolution": "Deconvnet",
    "deeplift": "LRP",
    "deepliftshap": "ExpectedGradients",
    "epsilonplus": "presets.epsilon_plus",
    "epsilonplusflat": "presets.epsilon_plus_flat",
    "epsilongammabox": "presets.epsilon_gamma_box",
    "epsilonalpha2beta1": "presets.epsilon_alpha2_beta1",
    "expectedgradients": "ExpectedGradients",
    "gradientshap": "ExpectedGradients",
    "guidedgradcam": "GradCAM",
    "inputxgradient": "GradientTimesInput",
    "kernelexplainer": "Shapley",
    "kernelshap": "Shapley",
    "layergradcam": "GradCAM",
    "noisetunnel": "SmoothGrad",
    "saliency": "Sensitivity",
    "shapleyvaluesampling": "Shapley",
}
RENAMED = {  # before 1.0
    "AttackExplained": "results.AttackExplanation",
    "Attacked": "results.AttackResult",
    "Cured": "results.ProjectedModel",
    "ExplanationAttacked": "results.ExplanationAttackResult",
    "Flow": "results.RelevanceFlow",
    "Proof": "results.InterventionTest",
    "Similarity": "results.SimilarityExplanation",
    "Walks": "results.WalkRelevance",
}


def equivalent(name: str) -> str | None:
    """Return the dotted name in `whence` of what another library calls `name`, or None.

    >>> equivalent("Saliency")
    'whence.Sensitivity'
    """
    here = RENAMED.get(name) or EQUIVALENTS.get(name.replace("_", "").lower())
    return f"whence.{here}" if here else None


def missing_name(module: str, name: str, public: Iterable[str]) -> AttributeError:
    """Return the error for a name that a public module does not have: where it is, or what it is called here."""
    missing = f"module '{module}' has no attribute {name!r}"
    for space in NAMESPACES:
        if f"whence.{space}" != module and name in import_module(f"whence.{space}").__all__:
            return AttributeError(f"{missing}; use whence.{space}.{name}")
    front = import_module("whence").__all__
    here = f"whence.{name}" if name in front and name not in public else equivalent(name)
    sentence = DIFFERENT.get(plain_name(name))
    hint = f"; use {here}" if here else suggest(name, public) if sentence is None else ""
    return AttributeError(missing + hint + (f": {sentence}" if sentence else ""))


def namespace(module: str, names: dict[str, Any]) -> Callable[[str], object]:
    """Return the `__getattr__` of a namespace, whose public classes are prepared."""
    for name in names["__all__"]:
        prepare(names[name])

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module '{module}' has no attribute {name!r}")
        raise missing_name(module, name, names["__all__"])

    return __getattr__


def prepare(public: T) -> T:
    """Return a public name; the constructors of its classes check their keywords."""
    if isinstance(public, type) and not issubclass(public, Exception) and public.__init__ is not object.__init__:
        check_init(public)
    return public  # type: ignore[return-value]
