"""The functions `explain` and `explain_targets`."""

from collections.abc import Callable, Sequence
from typing import Any

from whence.core.argument_checks import check_arguments
from whence.core.conditions import ThroughMapping
from whence.core.explainer import DisplayNames, Names, check_single_condition, explanations, single_explanation
from whence.core.explanation import Explanation
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress
from whence.core.targets import Target
from whence.core.texts import TextModel
from whence.core.trees import Tree
from whence.lrp.engine.prepared_model import PreparedModel
from whence.methods.registry import Method


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
    tokenizer: Any = None,
    progress: Progress = True,
) -> Explanation:
    """Compute the relevance of every input feature for the target output of each sample.

    >>> e = whence.explain(model, x, target=483)
    >>> e.relevance          # like x
    >>> e.conservation       # output = relevance + absorbed, to rounding

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is not modified. A pipeline of
            transformers and a `LoadedModel` are read as the model and tokenizer in them. A fitted estimator of scikit-learn is
            explained by its probabilities, or else its decision function or predictions.
        inputs: Tensor `[N, …]`, or a tuple or dict of tensors; a dict is passed as keyword arguments. Each token id of `[N, T]`
            has a relevance score. With a tokenizer, a text, a list of texts, or chat messages. NumPy arrays and data frames are
            passed to functions of NumPy arrays (`forest.predict_proba`), which methods without gradients explain.
        target: Class index or name, or one per sample; for a language model the id or text of a token; None for the class with
            the largest output (arg max); a `Logit` (of a token at a position, or the difference of two) or `Span` of a text; an
            objective inside the network (`whence.objectives`); or a function from the model's outputs to values `[N]`.
        method: A method or its short name ("lrp"); by default LRP with rules that fit most networks
            (`whence.presets.attn_lrp()`), and for functions of arrays and estimators Shapley values against up to 50 of the
            given rows.
        layers: Module paths whose outputs' relevance is returned too, with * for any one component of a path:
            "model.layers.*"; "input of model.layers.3.mlp" is the relevance at the module's input.
        through: Dict from layers to parts of them, to compute the relevance that flows through these parts alone (CRP,
            Achtibat et al. 2023): channels as in `{"features.28": [17, 230]}`, or `Places`, `Nodes`, `Heads`, `Directions`,
            `Features`. Several layers multiply; `conservation` accounts for the share that passes. Summed over all channels
            of a layer, it is the relevance that flows through the layer.
        class_names: Names of the outputs, for figures.
        feature_names: Names of a vector's features or a time series' channels, for figures, or the fitted transformer of
            scikit-learn that made the columns, which also knows the one-hot columns of a feature; a dict by input where there
            are several inputs.
        tokenizer: The tokenizer of the model, for inputs that are texts, and for the names of tokens.
        progress: Whether to show a progress bar where a method takes several seconds, or a function that is called with
            (done, total) instead.

    Returns:
        An `Explanation`, whose `relevance` has the structure and shapes of `inputs`.

    Raises:
        WhenceError: The model, inputs, target or settings cannot be explained (see `whence.errors` for the subclasses). An
            explanation that is known to be wrong is never returned.
    """
    check_single_condition(through)
    texts = TextModel.of(model, tokenizer, class_names)
    check_model(texts.model)
    names = DisplayNames(texts.class_names, feature_names)
    given = Inputs.of(texts.read(inputs)).detached()
    chosen, prepared = texts.method(method, given), PreparedModel(texts.model)
    found = explanations(prepared, chosen, given, [texts.target(target)], layers, progress, names, through)
    return texts.named(single_explanation(found))


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
    tokenizer: Any = None,
    progress: Progress = True,
) -> list[Explanation]:
    """Compute explanations of several targets of the same inputs, by one forward pass for all and one backward pass each.

    >>> cat, dog = whence.explain_targets(model, x, targets=[281, 207])
    >>> channels = whence.explain_targets(model, x, [281], through=[{"features.28": c} for c in range(512)])

    All explanations are in memory at once; `Explainer(model).iter_targets(…)` yields them one at a time instead.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        inputs: Tensor `[N, …]`, or a tuple or dict of tensors, as for `explain`.
        targets: List of targets, each as for `explain`.
        method: A method or its short name; LRP by default.
        layers: Module paths whose outputs' relevance is returned too, with * for any one component of a path.
        through: Condition as for `explain`, or a list of them: each target is then explained under each condition, from the
            same forward pass.
        class_names: Names of the outputs, for figures.
        feature_names: Names of features or channels, for figures; a dict by input where there are several inputs.
        tokenizer: The tokenizer of the model, for inputs that are texts, and for the names of tokens.
        progress: Whether to show a progress bar, or a function that is called with (done, total) instead.

    Returns:
        List of `Explanation`, by target, and for each target by condition.

    Raises:
        WhenceError: The model, inputs, targets or settings cannot be explained (see `whence.errors`).
    """
    texts = TextModel.of(model, tokenizer, class_names)
    check_model(texts.model)
    names = DisplayNames(texts.class_names, feature_names)
    given = Inputs.of(texts.read(inputs)).detached()
    chosen, prepared = texts.method(method, given), PreparedModel(texts.model)
    found = explanations(prepared, chosen, given, texts.targets(targets), layers, progress, names, through)
    return [texts.named(e) for e in found]
