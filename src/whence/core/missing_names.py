"""Messages for names that a module does not have: where the name is, what it is called here, or the most similar name."""

from collections.abc import Callable, Iterable
from types import ModuleType

from whence.errors import suggest

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


def missing_name(module: str, public: Iterable[str], namespaces: Iterable[ModuleType]) -> Callable[[str], object]:
    """Return a module's `__getattr__`, which raises an `AttributeError` that says where or what the name is."""
    public, namespaces = list(public), list(namespaces)

    def __getattr__(name: str) -> object:
        missing = f"module '{module}' has no attribute {name!r}"
        if name.startswith("__"):
            raise AttributeError(missing)
        for space in namespaces:
            if name in getattr(space, "__all__", ()):
                raise AttributeError(f"{missing}; use {space.__name__}.{name}")
        here = equivalent(name)
        raise AttributeError(missing + (f"; use {here}" if here else suggest(name, public)))

    return __getattr__
