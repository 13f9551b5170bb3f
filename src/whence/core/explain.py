"""explain(): model + input + target + method -> Explanation."""

from collections.abc import Callable, Sequence
from typing import Any

from whence.core.argument_checks import check_arguments
from whence.core.conditions import ThroughMapping
from whence.core.explainer import DisplayNames, Names, check_single_condition, explanations
from whence.core.explanation import Explanation
from whence.core.inputs import check_model
from whence.core.progress import Progress
from whence.core.targets import Target
from whence.core.trees import Tree
from whence.lrp.engine.prepared_model import PreparedModel
from whence.methods.registry import Method, resolve_method


@check_arguments
def explain(
    model: Callable[..., Any],
    inputs: Tree,
    target: Target = None,
    *,
    method: Method | str | None = None,
    layers: Sequence[str] = (),
    through: ThroughMapping | None = None,
    class_names: Names = (),
    feature_names: Any = None,
    progress: Progress = True,
) -> Explanation:
    """Why this output? Relevance of every input feature for the target output of each sample.

    >>> e = whence.explain(model, x, target=483)
    >>> e.relevance          # like x
    >>> e.conservation       # output = relevance + absorbed, to rounding

    `model` is any callable made of torch functions, in eval mode if it is a module; it is left as it was. `inputs` is a
    tensor `[N, …]`, a tuple of them, or a dict that is passed as keyword arguments; token ids `[N, T]` get a score each. NumPy
    arrays and data frames go to functions of NumPy (`forest.predict_proba`), which methods without gradients explain.
    `target` is None (the arg max), a class, one class a sample, a `Logit` (of a token at a position, rather than another)
    or `Span` of a text, or a function from outputs to `[N]`. `method` is a method or its short name; LRP with rules that
    fit most networks (`presets.attn_lrp()`) if not given. `layers` names modules whose outputs' relevance is wanted too,
    with * for any one part of a path: "model.layers.*" ("input of model.layers.3.mlp" is what goes into it). `through` gives
    what flows through parts of layers alone (CRP, Achtibat et al. 2023): `{"features.28": [17, 230]}` channels, or `Places`,
    `Heads`, `Directions`, `Features`; several layers multiply, and `conservation` accounts for what they let through. Over all
    channels of a layer it adds up to what flows through the layer. `class_names` are those of the outputs and `feature_names`
    those of a vector's numbers or a series' channels (a dict of them by input where there are several), for pictures. Methods
    that take seconds show a bar; `progress` False shows none, and a function is told (done, total) instead.

    Raises `whence.errors.WhenceError`; never returns an explanation it knows to be wrong.
    """
    check_single_condition(through)
    check_model(model)
    names = DisplayNames(class_names, feature_names)
    chosen = resolve_method(method)
    return next(explanations(PreparedModel(model), chosen, inputs, [target], layers, progress, names, through))


@check_arguments
def explain_targets(
    model: Callable[..., Any],
    inputs: Tree,
    targets: Sequence[Target],
    *,
    method: Method | str | None = None,
    layers: Sequence[str] = (),
    through: ThroughMapping | Sequence[ThroughMapping] | None = None,
    class_names: Names = (),
    feature_names: Any = None,
    progress: Progress = True,
) -> list[Explanation]:
    """Explain several targets of the same inputs: one forward pass for all, one backward pass each.

    >>> cat, dog = whence.explain_targets(model, x, targets=[281, 207])
    >>> channels = whence.explain_targets(model, x, [281], through=[{"features.28": c} for c in range(512)])

    With several conditions `through` layers, each target has an explanation under each, from the same forward pass. All are
    returned in one list; `Explainer(model).iter_targets(…)` yields them one at a time, where together they would not fit.
    """
    check_model(model)
    names = DisplayNames(class_names, feature_names)
    chosen = resolve_method(method)
    return list(explanations(PreparedModel(model), chosen, inputs, targets, layers, progress, names, through))
