"""All methods by their short names."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Protocol

from whence.core.argument_checks import check_init
from whence.core.explanation import Explanation
from whence.core.public_names import equivalent
from whence.errors import RuleError, suggest_or_list, value_repr
from whence.lrp.rules.composites import Composite
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
    """Return the method itself, the method with a short name, or the default for None."""
    if method is None:
        return LRP()
    if isinstance(method, str):
        check_method_name(method)
        return METHODS[method]()
    if isinstance(method, Composite | Mapping):
        raise RuleError("got rules where a method was expected; pass whence.LRP(rules)")
    if not hasattr(method, "explanations"):
        raise RuleError(f"{value_repr(method)} is not a method; pass one such as whence.LRP() or a name: {', '.join(METHODS)}")
    if isinstance(method, type):
        raise RuleError(f"{method.__name__} is a class, not an instance; pass {method.__name__}()")
    return method


def check_single_graph(method: Method) -> None:
    """Raise `RuleError` for methods that call the model several times, which cannot be captured as one graph."""
    if not isinstance(method, SINGLE_GRAPH_METHODS):
        raise RuleError(
            f"{type(method).__name__} calls the model several times and cannot be captured as one "
            f"graph; choose one of {', '.join(kind.__name__ for kind in SINGLE_GRAPH_METHODS)}"
        )


def check_method_name(name: str) -> None:
    """Raise `RuleError` if no method has this short name."""
    if name not in METHODS:
        by_class = next((known for known, kind in METHODS.items() if kind.__name__.lower() == name.lower()), None)
        here = equivalent(name)
        if by_class is not None:
            hint = f"; did you mean {by_class!r}?"
        elif here is not None and here.startswith("whence.presets."):
            hint = f" (a preset of rules); pass method=whence.LRP({here}())"
        else:
            hint = f"; pass method={here}(…)" if here is not None else suggest_or_list(name, METHODS)
        raise RuleError(f"unknown method {name!r}{hint}")
