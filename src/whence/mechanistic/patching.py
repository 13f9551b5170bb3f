"""`patching`: the effect of each component of a network on the difference between two inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.conditions import Heads
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress, progress
from whence.core.result import Result
from whence.core.targets import Target, select
from whence.core.trees import Tree
from whence.errors import InputError, ModelError, RuleError, SelectorError, suggest_or_list, value_repr
from whence.lrp.engine.model_outputs import first_tensor, with_first_tensor
from whence.lrp.engine.prepared_model import PreparedModel
from whence.lrp.rules import presets
from whence.lrp.torch_compat.module_tracker import INPUT_OF, named_layers
from whence.lrp.torch_compat.torch_patches import enter_all, temporary_hook
from whence.mechanistic.channel_relevance import unravel
from whence.methods.forward_backward import Gradients, Task, record_internals, target_values
from whence.methods.gradients import input_gradients
from whence.methods.lrp import LRP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Estimator = Literal["relevance", "gradient", "exact"]
ESTIMATORS = ("relevance", "gradient", "exact")
ComponentParts = str | Heads  # "places", "channels", or heads
PATCHES_PER_PASS = 64  # patched copies of the inputs in one forward pass
DEFAULT_COMPONENTS = ("*.layers.*", "*.h.*", "layers.*", "h.*", "blocks.*")  # common names of transformer layers


@dataclass(frozen=True, repr=False, eq=False)
class Patching(Result):
    """The change of a metric when the activation of each component is replaced by that for the corrupted input.

    >>> found = whence.patching(model, clean, corrupted, whence.Logit(mary, rather_than=john), estimator=["relevance", "exact"])
    >>> found.effects["relevance"]["model.layers.3"]            # [N, T], or [N, T, heads], [N, T, channels]
    >>> found.correlation("relevance", "exact")
    >>> found.top(10)                                           # (layer, position, …, effect), the strongest first

    Args:
        effects: The effects by estimator and layer: `[N, T]` for positions, `[N, T, heads]` or `[N, T, channels]`.
        clean: The metric on the clean inputs, `[N]`.
        corrupted: The metric on the corrupted inputs, `[N]`.
        target: The target that defines the metric, with its indices filled in.
    """

    effects: Mapping[str, Mapping[str, Tensor]]  # estimator -> layer -> [N, T, …]
    clean: Tensor
    corrupted: Tensor
    target: Any = None

    def __repr__(self) -> str:
        lines = [f"Patching: metric {float(self.clean.mean()):.4g} clean, {float(self.corrupted.mean()):.4g} corrupted"]
        lines += [f"  {layer} {place}: {effect:.4g}" for layer, *place, effect in self.top(5)]
        if "exact" in self.effects:
            others = [by for by in self.effects if by != "exact"]
            lines += [f"  correlation of {by} with exact: {self.correlation(by, 'exact'):.3f}" for by in others]
        return "\n".join(lines)

    def flat(self, estimator: str, layers: Sequence[str] | None = None) -> Tensor:
        """Return the effects by an estimator as a vector, of some layers or all."""
        if estimator not in self.effects:
            raise RuleError(f"no effects were estimated by {value_repr(estimator)}{suggest_or_list(estimator, self.effects)}")
        found = self.effects[estimator]
        return torch.cat([found[layer].flatten() for layer in layers or found])

    def correlation(self, estimator: str, other: str, layers: Sequence[str] | None = None) -> float:
        """Return the Pearson correlation of two estimators over all components, or those of some layers."""
        both = torch.stack([self.flat(estimator, layers), self.flat(other, layers)]).double()
        return float(torch.corrcoef(both)[0, 1])

    def top(self, count: int = 10, estimator: str | None = None) -> list[tuple]:
        """Return the components of largest mean |effect| as (layer, position, [head or channel], mean effect)."""
        rows = []
        for layer, effect in self.effects[estimator or next(iter(self.effects))].items():
            mean = effect.mean(0)
            for index in mean.flatten().abs().topk(min(count, mean.numel())).indices:
                where = unravel(int(index), mean.shape)
                rows.append((layer, *where, float(mean[where])))
        return sorted(rows, key=lambda row: -abs(row[-1]))[:count]

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each estimator and component, the strongest first: layer, position, head or channel, mean effect."""
        rows = []
        for estimator, effects in self.effects.items():
            for layer, *where, effect in self.top(sum(e[0].numel() for e in effects.values()), estimator):
                part = {"part": where[1]} if len(where) > 1 else {}
                rows.append({"estimator": estimator, "layer": layer, "position": where[0], **part, "effect": effect})
        return rows

    def figure(self) -> "Figure":
        """Return a figure with a map per estimator: layers by positions, averaged over samples, summed over channels."""
        from whence.plotting.matrices import matrix_figure

        drawn = {}
        for by, found in self.effects.items():
            lines = [effect.mean(0).flatten(1).sum(1) if effect.dim() > 2 else effect.mean(0) for effect in found.values()]
            drawn[by] = torch.stack(lines)
        return matrix_figure(drawn, list(next(iter(self.effects.values()))), "position")


@check_arguments
def patching(
    model: Callable[..., Any],
    inputs: Tree,
    corrupted: Tree,
    target: Target = None,
    components: Sequence[str] | Mapping[str, ComponentParts] = DEFAULT_COMPONENTS,
    *,
    estimator: Estimator | Sequence[Estimator] = "relevance",
    method: LRP | None = None,
    progress: Progress = True,
) -> Patching:
    """Estimate which components of a network carry the difference between two inputs.

    >>> whence.patching(model, clean, corrupted, whence.Logit(mary, rather_than=john), ["model.layers.*", "model.layers.*.mlp"])
    >>> heads = {"input of model.layers.*.self_attn.o_proj": whence.Heads((), of=8)}
    >>> whence.patching(model, clean, corrupted, target, heads, estimator=["relevance", "gradient", "exact"])

    The effect of a component is the change of the metric m if its activation a on the clean input is replaced by its activation
    a' on the corrupted input. The estimators are:

    * "relevance": relevance patching (RelP, arXiv 2508.21258), (a' − a) · R/a with the rules of `method`, in two forward passes
      and one backward pass for all components;
    * "gradient": attribution patching, (a' − a) · ∂m/∂a, at the same cost;
    * "exact": the true effect, by one patched forward pass per component (64 patched copies at once).

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: The clean inputs.
        corrupted: The corrupted inputs, of the same structure and shapes.
        target: The metric m, as the target of `explain`; the logit of the predicted class by default.
        components: Module paths, with * for any one part of a path; "input of PATH" is the input of that module. Components are
            the positions (tokens) of these layers or, with a dict from path to kind, the "places" (positions), "channels"
            (neurons at each position) or attention heads at each position, `whence.Heads((), of=n)`. By default the usual
            names of transformer layers.
        estimator: "relevance", "gradient", "exact", or several of them.
        method: The `LRP` of the relevance estimator; CP-LRP if not given.
        progress: False for no progress bar, or a function that is called with (done, total).

    Returns:
        A `Patching` result.

    Raises:
        InputError: If the clean and the corrupted inputs differ in structure or shapes.
        SelectorError: If the model has no such layers, or a layer's output is not `[N, T, C]` or `[N, C]`.
        RuleError: If `estimator` or `components` is invalid.
        ModelError: If a layer is not called, or called more than once.
    """
    check_model(model)
    ways = [estimator] if isinstance(estimator, str) else list(estimator)
    if not ways:
        raise RuleError(f"estimator=[]; choose among {', '.join(ESTIMATORS)}")
    for way in ways:
        if way not in ESTIMATORS:
            raise RuleError(f"estimator={value_repr(way)}{suggest_or_list(way, ESTIMATORS)}")
    both = [Inputs.of(x).detached() for x in (inputs, corrupted)]
    _check_same_structure(*both)
    parts = _component_parts(model, components)
    prepared = PreparedModel(model)
    here = Task(prepared, both[0], [target], tuple(parts), progress=False)
    gradients = {way: _clean_gradients(here, way, method) for way in ways if way != "exact"}
    output, resolved = next(((g.output, g.target) for g in gradients.values()), None) or target_values(here)[0]
    other, there = _record(Task(prepared, both[1], [resolved], tuple(parts), progress=False))
    found: dict[str, dict[str, Tensor]] = {}
    for way in ways:
        if way == "exact":
            found[way] = _exact_effects(replace(here, targets=[resolved]), output, there, parts, progress)
        else:
            found[way] = {layer: _effect(*_single_call(gradients[way], layer), there[layer], parts[layer]) for layer in parts}
    return Patching(found, output, other, resolved)


def _check_same_structure(clean: Inputs, corrupted: Inputs) -> None:
    shapes = [[tuple(getattr(part, "shape", ())) for part in inputs.parts] for inputs in (clean, corrupted)]
    if clean.names != corrupted.names or shapes[0] != shapes[1]:
        raise InputError(
            f"clean inputs have shapes {shapes[0]}, corrupted inputs {shapes[1]}; components are compared "
            "position by position; pass inputs of the same shape"
        )


def _component_parts(model: Any, components: Sequence[str] | Mapping[str, ComponentParts]) -> dict[str, ComponentParts]:
    """Return the kind of components of each layer, by its full name."""
    if isinstance(components, str):
        components = [components]
    given = components if isinstance(components, Mapping) else dict.fromkeys(components, "places")
    found: dict[str, ComponentParts] = {}
    usual = components is DEFAULT_COMPONENTS
    for name, parts in given.items():
        if isinstance(parts, Heads) and parts.numbers != ():
            raise RuleError("every head is patched on its own; pass whence.Heads((), of=n)")
        if not isinstance(parts, Heads) and parts not in ("places", "channels"):
            raise RuleError(
                f"components={{{name!r}: {value_repr(parts)}}}; choose 'places', 'channels' or whence.Heads((), of=n)"
            )
        try:
            found |= dict.fromkeys(named_layers(model, [name]), parts)
        except SelectorError:
            if not usual:
                raise
    if not found:
        raise SelectorError("no layers with conventional names found; name the components, as in ['blocks.*', 'blocks.*.mlp']")
    return found


def _record(task: Task) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the metric and the outputs of the layers for the task's inputs, from one forward pass."""
    found: dict[str, Tensor] = {}
    scope = task.scope

    def keep(layer: str, out: Tensor) -> None:
        if layer in found:
            raise ModelError(f"layer '{layer}' runs more than once; name one that runs once")
        found[layer] = out.detach().clone()

    scope.tap({layer: lambda out, layer=layer: keep(layer, out) for layer in task.layers})
    reading = record_internals(task, scope)
    with enter_all(torch.no_grad(), scope):
        outputs = task.inputs.run(task.model)
    missing = [layer for layer in task.layers if layer not in found]
    if missing:
        raise ModelError(f"layer '{missing[0]}' was not called in the forward pass; it cannot be patched")
    metric, _ = select(outputs, task.targets[0], task.inputs, reading)
    return metric, found


def _clean_gradients(task: Task, way: str, method: LRP | None) -> Gradients:
    if way == "gradient":
        return next(input_gradients(task))
    rules = LRP(presets.cp_lrp()) if method is None else method
    return next(rules.gradients(task))[0]


def _single_call(gradients: Gradients, layer: str) -> tuple[Tensor, Tensor]:
    (pair,) = gradients.layers[layer]
    return pair


def _effect(a: Tensor, g: Tensor, there: Tensor, parts: ComponentParts) -> Tensor:
    return _reduce_effect((there - a) * g, parts)


def _reduce_effect(effect: Tensor, parts: ComponentParts) -> Tensor:
    """Sum the effects `[N, T, C]` over each component of a layer."""
    if effect.dim() not in (2, 3):
        raise SelectorError(
            f"a layer output of shape {tuple(effect.shape)} has no tokens to patch; expected [N, T, C] or [N, C]"
        )
    effect = effect[:, None] if effect.dim() == 2 else effect
    if isinstance(parts, Heads):
        return parts.divided(effect).sum(-1)
    return effect if parts == "channels" else effect.sum(-1)


def _exact_effects(
    task: Task, output: Tensor, there: Mapping[str, Tensor], parts: Mapping[str, ComponentParts], shown: Progress
) -> dict[str, Tensor]:
    """Compute the change of the metric when one component at a time is patched."""
    n = task.inputs.batch_size
    shapes = {layer: _reduce_effect(there[layer], parts[layer]).shape[1:] for layer in parts}
    found = {layer: output.new_zeros(n, shape.numel()) for layer, shape in shapes.items()}
    with progress("exact patching", sum(shape.numel() for shape in shapes.values()), shown) as advance:
        for layer, shape in shapes.items():
            for numbers in torch.arange(shape.numel()).split(max(1, PATCHES_PER_PASS // n)):
                moved = task.moved(len(numbers), {})
                masks = _masks(there[layer], parts[layer], numbers, n)
                with _patch_layer(task.model, layer, there[layer].repeat(len(numbers), *[1] * (there[layer].dim() - 1)), masks):
                    ((patched, _),) = target_values(moved)
                found[layer][:, numbers] = (patched.view(len(numbers), n) - output).T
                advance(len(numbers))
    return {layer: effect.view(n, *shapes[layer]) for layer, effect in found.items()}


def _masks(like: Tensor, parts: ComponentParts, numbers: Tensor, n: int) -> Tensor:
    """Return boolean masks of the entries of a layer that belong to each component, `[components · n, T, C]`."""
    places, channels = like.shape[1:-1], like.shape[-1]
    sizes = {"places": 1, "channels": channels}
    count = parts.of if isinstance(parts, Heads) else sizes[parts]
    one_hot = torch.zeros(len(numbers), places.numel() * count, dtype=torch.bool, device=like.device)
    one_hot[torch.arange(len(numbers)), numbers] = True
    masks = one_hot.view(len(numbers), *places, count, 1).expand(*[-1] * (len(places) + 2), channels // count)
    return masks.flatten(-2).repeat_interleave(n, 0)


def _patch_layer(model: Any, layer: str, there: Tensor, masks: Tensor) -> enter_all:
    """Replace activations of a layer where the mask is true, as a context manager."""
    module: nn.Module = named_layers(model, [layer])[layer]

    def of_input(module: nn.Module, args: tuple) -> tuple:
        return (torch.where(masks, there, args[0]), *args[1:])

    def of_output(module: nn.Module, args: tuple, out: Any) -> Any:
        here = first_tensor(out)
        assert here is not None  # `_record` has read it
        return with_first_tensor(out, torch.where(masks, there, here), layer)

    if layer.startswith(INPUT_OF):
        return temporary_hook(lambda: module.register_forward_pre_hook(of_input))
    return temporary_hook(lambda: module.register_forward_hook(of_output))
