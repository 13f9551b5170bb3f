"""compare(): one input, several methods, one figure."""

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
from whence.evaluation.case import EvaluationBatch, MethodAdapter
from whence.evaluation.method_adapters import Methods, make_adapters
from whence.lrp.engine.prepared_model import PreparedModel
from whence.methods.forward_backward import make_explanation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("lrp", "gradient_times_input", "integrated_gradients", "sensitivity", "grad_cam", "occlusion")
MAX_SAMPLES = 4  # in a figure


@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Result):
    """The same inputs by several methods.

    >>> c = whence.compare(model, x, ["lrp", "integrated_gradients"], target=3)
    >>> c["lrp"].relevance
    >>> c.save("compared.png")

    `explanations` holds one by each method. In the figure each heatmap has its own scale, or one for all of a sample with
    `common_scale`; under the name stand the sum of relevance and the share of counter-relevance, Σ|R⁻| / Σ|R|.
    """

    explanations: Mapping[str, Explanation]
    common_scale: bool = False

    def __getitem__(self, method: str) -> Explanation:
        return self.explanations[method]

    def __len__(self) -> int:
        return len(self.explanations)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each sample and method: target, output, sum of relevance, share of counter-relevance."""
        rows = []
        for name, e in self.explanations.items():
            against, targets = negative_share(e), e.target_names()
            for i in range(len(e)):
                output, total = float(e.output[i]), float(e.conservation.relevance[i])
                rows.append({"sample": i, "method": name, "target": targets[i], "output": output, "relevance": total,
                             "counter_relevance": float(against[i])})  # fmt: skip
        return sorted(rows, key=lambda row: row["sample"])

    def with_tokens(self, tokenizer: Any) -> "Comparison":
        """The same with token ids as words (`Explanation.with_tokens`)."""
        return replace(self, explanations={name: e.with_tokens(tokenizer) for name, e in self.explanations.items()})

    def __repr__(self) -> str:
        lines = [
            f"  {r['method']}: f = {r['output']:.4g}, ΣR = {r['relevance']:.4g}, {r['counter_relevance']:.0%} counter-relevance"
            for r in self.table
            if r["sample"] == 0
        ]
        return "\n".join([f"Comparison of {len(self)} methods; of sample 0:", *lines])

    def figure(self) -> "Figure":
        """A row for each of the first samples, with the input and its heatmaps side by side; what is no picture one below the
        other."""
        from whence.plotting.panels import stack_panels
        from whence.plotting.side_by_side import method_rows_figure

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
    """The same inputs explained by several methods, side by side.

    >>> whence.compare(model, x, ["lrp", "gradient_times_input"], target=483).save("compared.png")
    >>> whence.compare(model, x, {"γ = 0": whence.LRP(...), "γ = 1": whence.LRP(...), "theirs": their_function})

    `methods` as in `whence.evaluate`; a method that cannot explain this model is an error that names it. All explain the same
    target: the arg max is taken once.
    """
    check_model(model)
    given = Inputs.of(inputs).detached()
    batch = EvaluationBatch.of(PreparedModel(model), given, target)
    found = {way.name: _explain_batch(way, batch) for way in make_adapters(model, methods or default_methods(given))}
    return Comparison({name: replace(e, class_names=class_names or e.class_names) for name, e in found.items()}, common_scale)


def default_methods(inputs: Inputs) -> list[str]:
    """The methods that are compared where none are named: those that these inputs have."""
    if not inputs.explained:
        return [name for name in METHODS if name not in ("grad_cam", "occlusion")]
    pictures = any(inputs.parts[i].dim() == 4 for i in inputs.explained)
    return [name for name in METHODS if pictures or name != "grad_cam"]


def negative_share(e: Explanation) -> Tensor:
    """Σ|R⁻| / Σ|R| of each sample, `[N]`."""
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
