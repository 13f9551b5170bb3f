"""All methods by their short names."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Protocol

from whence.core.argument_checks import check_init
from whence.core.explanation import Explanation
from whence.core.method_aliases import ALIASES, DIFFERENT, plain_name
from whence.core.public_names import equivalent
from whence.errors import RuleError, suggest_or_list, value_repr
from whence.lrp.rules.composites import Composite
from whence.lrp.rules.presets import PRESETS, preset_name
from whence.methods.forward_backward import Task
from whence.methods.full_gradient import FullGrad
from whence.methods.gradient_cams import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from whence.methods.gradients import Deconvnet, GradientTimesInput, GuidedBackprop, Sensitivity
from whence.methods.integrated_gradients import ExpectedGradients, IntegratedGradients
from whence.methods.lrp import LRP
from whence.methods.perturbation import RISE, FeatureAblation, Occlusion
from whence.methods.perturbation_cams import AblationCAM, ScoreCAM
from whence.methods.shapley import Shapley
from whence.methods.simple_taylor import SimpleTaylor
from whence.methods.smoothgrad import SmoothGrad


class Method(Protocol):
    """Protocol of explanation methods: a frozen dataclass with a short name."""

    name: ClassVar[str]

    def explanations(self, task: Task) -> Iterator[Explanation]:
        """Yield an explanation for each target of the task."""
        ...


METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (LRP, GradientTimesInput, Sensitivity, IntegratedGradients, SmoothGrad, GuidedBackprop, Deconvnet, GradCAM,
                   LayerCAM, GradCAMPlusPlus, HiResCAM, XGradCAM, EigenCAM, ScoreCAM, AblationCAM, FullGrad, SimpleTaylor,
                   Occlusion, FeatureAblation, RISE, Shapley)
}  # fmt: skip

SINGLE_GRAPH_METHODS = (
    LRP,
    GradientTimesInput,
    Sensitivity,
    GuidedBackprop,
    Deconvnet,
    GradCAM,
    LayerCAM,
    GradCAMPlusPlus,
    HiResCAM,
    XGradCAM,
    EigenCAM,
    FullGrad,
)  # no draws, no searches

for _kind in (*METHODS.values(), ExpectedGradients):
    check_init(_kind)


def resolve_method(method: Method | str | None) -> Method:
    """Return the method itself, that of a name or of a preset of LRP rules, or the default for None."""
    if method is None:
        return LRP()
    if isinstance(method, str):
        return LRP(method) if preset_name(method) else METHODS[method_name(method)]()
    if isinstance(method, Composite | Mapping):
        raise RuleError("got rules where a method was expected; pass whence.LRP(rules)")
    if isinstance(method, type) and hasattr(method, "explanations"):
        raise RuleError(f"{method.__name__} is a class, not an instance; pass {method.__name__}()")
    if not hasattr(method, "explanations"):
        raise RuleError(f"{value_repr(method)} is not a method; pass one such as whence.LRP() or a name: {', '.join(METHODS)}")
    return method


def check_single_graph(method: Method) -> None:
    """Raise `RuleError` for methods that call the model several times, which cannot be captured as one graph."""
    if not isinstance(method, SINGLE_GRAPH_METHODS):
        raise RuleError(
            f"{type(method).__name__} calls the model several times and cannot be captured as one "
            f"graph; choose one of {', '.join(kind.__name__ for kind in SINGLE_GRAPH_METHODS)}"
        )


def method_name(name: str) -> str:
    """Return the short name of a method by any of its names: short, of its class, or of another library.

    Raise `RuleError` for others, with what to use where the method has no equivalent.
    """
    if name in METHODS:
        return name
    plain = plain_name(name)
    same = next((known for known, kind in METHODS.items() if plain in (plain_name(known), plain_name(kind.__name__))), None)
    if same is not None:
        return same
    if plain in ALIASES:
        return ALIASES[plain]
    if plain in DIFFERENT:
        raise RuleError(f"no method {name!r}: {DIFFERENT[plain]}")
    here = equivalent(name)
    hint = f"; pass method={here}(…)" if here is not None else suggest_or_list(name, [*METHODS, *PRESETS])
    raise RuleError(f"unknown method {name!r}{hint}")
