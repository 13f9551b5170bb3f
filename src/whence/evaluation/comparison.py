"""`compare`: the same inputs explained by several methods, in one figure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.explainer import Names
from whence.core.explanation import Explanation
from whence.core.inputs import Inputs, check_model
from whence.core.result import Result
from whence.core.targets import Target
from whence.core.trees import Tree, named_leaves
from whence.errors import ModelError, WhenceError, first_line
from whence.evaluation.evaluation_batch import EvaluationBatch, MethodAdapter
from whence.evaluation.method_adapters import Methods, make_adapters
from whence.lrp.engine.prepared_model import PreparedModel
from whence.methods.forward_backward import make_explanation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("lrp", "gradient_times_input", "integrated_gradients", "sensitivity", "grad_cam", "occlusion")
MAX_SAMPLES = 4  # shown in a figure


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Result):
    """Explanations of the same inputs by several methods.

    >>> c = whence.compare(model, x, ["lrp", "integrated_gradients"], target=3)
    >>> c["lrp"].relevance
    >>> c.save("compared.png")

    The figure shows, below the name of each method, the sum of relevance and the share of negative relevance
    (counter-relevance), Σ|R⁻| / Σ|R|.

    Args:
        explanations: The explanation by each method, by name.
        common_scale: Whether all heatmaps of a sample share one scale; otherwise each heatmap has its own.
    """

    explanations: Mapping[str, Explanation]
    common_scale: bool = False

    def __getitem__(self, method: str) -> Explanation:
        return self.explanations[method]

    def __len__(self) -> int:
        return len(self.explanations)

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per sample and method: target, output, sum of relevance, share of negative relevance."""
        rows = []
        for name, e in self.explanations.items():
            against, targets = negative_share(e), e.target_names()
            for i in range(len(e)):
                output, total = float(e.output[i]), float(e.conservation.relevance[i])
                rows.append({"sample": i, "method": name, "target": targets[i], "output": output, "relevance": total,
                             "counter_relevance": float(against[i])})  # fmt: skip
        return sorted(rows, key=lambda row: row["sample"])

    def with_tokens(self, tokenizer: Any) -> "Comparison":
        """Return a copy with token ids decoded to strings.

        Args:
            tokenizer: As for `Explanation.with_tokens`.
        """
        return replace(self, explanations={name: e.with_tokens(tokenizer) for name, e in self.explanations.items()})

    def __repr__(self) -> str:
        lines = [
            f"  {r['method']}: f = {r['output']:.4g}, ΣR = {r['relevance']:.4g}, {r['counter_relevance']:.0%} counter-relevance"
            for r in self.table
            if r["sample"] == 0
        ]
        return "\n".join([f"Comparison of {len(self)} methods; sample 0:", *lines])

    def figure(self) -> "Figure":
        """Return a figure with a row for each of the first samples (at most four): the image and its heatmaps side by side.

        Explanations of inputs other than single images are drawn below one another.
        """
        from whence.plotting.side_by_side import method_rows_figure
        from whence.plotting.stacked_panels import stack_panels

        first = next(iter(self.explanations.values()))
        drawn = range(min(len(first), MAX_SAMPLES))
        given = named_leaves(first.inputs)
        if len(given) == 1 and (x := next(iter(given.values()))).dim() == 4 and not first.patches:
            return method_rows_figure([(x[i], self._heading(i), self._heatmaps(i)) for i in drawn], self.common_scale)
        panels = [(name, panel) for i in drawn for name, e in self.explanations.items() for panel in e.panels(i)]
        return stack_panels([replace(panel, title=f"{name}   {panel.title}") for name, panel in panels])  # type: ignore

    def _heading(self, sample: int) -> str:
        first = next(iter(self.explanations.values()))
        return f"{first.heading(sample)}:  f = {float(first.output[sample]):.4g}"

    def _heatmaps(self, sample: int) -> list[tuple[str, Tensor]]:
        found = []
        for name, e in self.explanations.items():
            total, against = float(e.conservation.relevance[sample]), float(negative_share(e)[sample])
            heat = next(iter(named_leaves(e.relevance).values()))[sample]
            adds_up = f"ΣR = {total:.4g}, " if e.conservation.adds_up else ""
            found.append((f"{name}\n{adds_up}{against:.0%} against", heat))
        return found


@check_arguments
def compare(
    model: Callable[..., Any],
    inputs: Tree,
    methods: Methods | None = None,
    target: Target = None,
    *,
    common_scale: bool = False,
    class_names: Names = (),
) -> Comparison:
    """Explain the same inputs by several methods, side by side.

    >>> whence.compare(model, x, ["lrp", "gradient_times_input"], target=483).save("compared.png")
    >>> whence.compare(model, x, {"γ = 0": whence.LRP(...), "γ = 1": whence.LRP(...), "theirs": their_function})

    All methods explain the same target: the arg max is computed once.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        inputs: Tensor `[N, …]`, or a tuple or dict of tensors.
        methods: Methods or their short names, or a dict of them by name; the dict may also contain functions
            `(model, inputs, target) → relevance` of other libraries. Defaults to LRP, gradient × input, integrated gradients,
            sensitivity, Grad-CAM and occlusion, as far as they apply to the inputs.
        target: None (the arg max) or any other target that `explain` takes.
        common_scale: Whether all heatmaps of a sample share one scale; otherwise each heatmap has its own.
        class_names: Names of the model's outputs, for the figure.
    Returns:
        A `Comparison`, with one `Explanation` per method.
    Raises:
        WhenceError: A method cannot explain the model; the message begins with the name of the method.
        ModelError: A method raised an error of another library.
    """
    check_model(model)
    given = Inputs.of(inputs).detached()
    batch = EvaluationBatch.of(PreparedModel(model), given, target)
    found = {way.name: _explain_batch(way, batch) for way in make_adapters(model, methods or default_methods(given))}
    return Comparison({name: replace(e, class_names=class_names or e.class_names) for name, e in found.items()}, common_scale)


def default_methods(inputs: Inputs) -> list[str]:
    """Return the names of the methods that are compared by default, as far as they apply to the inputs."""
    if not inputs.explained:
        return [name for name in METHODS if name not in ("grad_cam", "occlusion")]
    pictures = any(inputs.parts[i].dim() == 4 for i in inputs.explained)
    return [name for name in METHODS if pictures or name != "grad_cam"]


def negative_share(e: Explanation) -> Tensor:
    """Compute the share of negative relevance of each sample, Σ|R⁻| / Σ|R|, `[N]`."""
    rows = [r.detach().double().cpu().reshape(len(e), -1) for r in named_leaves(e.relevance).values()]
    flat = torch.cat(rows, 1)
    return flat.clamp(max=0).abs().sum(1) / flat.abs().sum(1).clamp(min=1e-300)


def _explain_batch(way: MethodAdapter, batch: EvaluationBatch) -> Explanation:
    try:
        case = way.case(batch)
    except WhenceError as error:
        raise type(error)(f"{way.name}: {error}") from error
    except Exception as error:
        raise ModelError(f"{way.name} failed: {type(error).__name__}: {first_line(error)}") from error
    if case.explanation is not None:
        return case.explanation
    return make_explanation(way.name, batch.task, batch.output, batch.target, case.relevance)
