"""Layer-wise relevance propagation as one of the methods of `whence.explain`."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from whence.core.detection import Detection
from whence.core.explanation import Explanation
from whence.core.fingerprints import fingerprint
from whence.core.inputs import Inputs
from whence.core.targets import reads_outputs
from whence.errors import ConservationWarning, ModelError, RuleError, value_repr
from whence.lrp.engine.conservation import Conservation, ConservationMeter, batch_dot
from whence.lrp.engine.function_mode import RelevanceMode, Unknown
from whence.lrp.engine.op_context import UnguardedOverwrite
from whence.lrp.rules import presets
from whence.lrp.rules.composites import Composite, Selector, has_input_rule
from whence.lrp.rules.rules import Rule
from whence.lrp.torch_compat.deferred_checks import check_holds
from whence.methods import feature_masks
from whence.methods.forward_backward import (
    Gradients,
    Task,
    input_leaves,
    make_explanation,
    record_internals,
    sum_relevance,
    target_gradients,
)


@dataclass(frozen=True)
class LRP:
    """Layer-wise relevance propagation (Bach et al. 2015) with rules for the layers of any network.

    >>> whence.LRP()                                              # presets.attn_lrp(), which fits most networks
    >>> whence.LRP(whence.presets.epsilon_plus())
    >>> whence.LRP({
    ...     "features.0": whence.ZBox(low, high),                 # module path, shell globs allowed
    ...     torch.nn.Conv2d: whence.Gamma(0.25),                  # module class
    ...     torch.nn.functional.linear: whence.Epsilon(1e-6),     # torch function, wherever it is called
    ... })

    Args:
        rules: Ordered mapping of selectors to rules, a `whence.presets.Composite`, or the name of a preset without arguments
            ("epsilon_plus"); the first match wins. A selector is a module path, a module, a module class or a torch function;
            all but the last select everything that runs inside the module. Linear maps without a match get `Epsilon()`.
            `whence.presets.attn_lrp()` by default.
        baseline: Baseline x̃ that relevance is measured from, as in `IntegratedGradients`; None is 0. R = (x − x̃) · g, where
            g = R / x by the rules, so features that are 0 and differ from the baseline have relevance too; x̃ · g counts as
            absorbed. Pass the mean of the data where 0 is not the absence of a feature. Rules of the input layer know no
            baseline: those of presets, the flat rule of the default among them, are left out. Not for token ids.
        unknown: What to do at a torch function that is neither linear nor known to whence: "error" raises an
            `UnknownFunctionError`, "warn" warns and uses its gradient, "gradient" uses its gradient silently.
    Raises:
        RuleError: `rules` is not a mapping of selectors to rules, or `unknown` is not one of the three; or a baseline is given
            with a rule of the input layer in front of a preset, or for token ids.
    """

    rules: Mapping[Selector, Rule] | Composite | str = field(default_factory=presets.attn_lrp)
    unknown: Unknown = "error"
    baseline: feature_masks.Baselines = None

    name: ClassVar[str] = "lrp"

    def __post_init__(self):
        if isinstance(self.rules, str):
            object.__setattr__(self, "rules", presets.preset(self.rules))
        _ = self.composite
        if self.unknown not in ("error", "warn", "gradient"):
            raise RuleError(f"unknown={value_repr(self.unknown)}; choose 'error', 'warn' or 'gradient'")

    @property
    def composite(self) -> Composite:
        """The rules as a composite."""
        return Composite.of(self.rules)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        same = (self.rules, self.unknown) == (other.rules, other.unknown)
        return same and fingerprint(self.baseline) == fingerprint(other.baseline)  # tensors cannot be compared with ==

    def __hash__(self) -> int:
        return hash((self.composite, self.unknown))

    def explanations(self, task: Task) -> Iterator[Explanation]:
        for found, mode in self.gradients(task):
            mode.matcher.check_all_matched(mode.bench.prepared.outline.modules)
            _check_relevance_arrives(found, mode)
            if self.baseline is not None:
                found = self._from_baseline(found, task.inputs, mode.meter)
            at_lookups = found.at_lookups(torch.mul, mode.beside_lookups)
            scores = found.at_inputs(torch.mul) | mode.lookups.scores(at_lookups)
            for amount in mode.lookups.elsewhere(at_lookups):
                mode.meter.add("ids created inside the model", amount)
            conservation = mode.meter.read(found.output, sum_relevance(scores, found.output.shape[0]), found.conditional_output)
            _warn_if_unbalanced(conservation)
            notes = [mode.saturated if _is_selected(found.target) else "", mode.picture_note, self._baseline_note(mode)]
            layers, note = found.at_layers(torch.mul), found.noted(", ".join(filter(None, notes)))
            yield make_explanation(self, task, found.output, found.target, scores, conservation, layers, note=note)

    def _baseline_note(self, mode: RelevanceMode) -> str:
        """Return the note that a baseline replaces rules of the input layer, where there are any."""
        left_out = self.baseline is not None and (mode.bench.reads_picture or has_input_rule(self.composite))
        return "the baseline replaces the preset's rules of the input layer" if left_out else ""

    def _from_baseline(self, found: Gradients, inputs: Inputs, meter: ConservationMeter) -> Gradients:
        """Return the gradients with the inputs as differences from the baseline; x̃ · g counts as absorbed."""
        starts = feature_masks.baselines(self.baseline, inputs)
        if any(i in inputs.ids for i in starts) or not inputs.explained:
            raise RuleError("LRP(baseline=…) is for floating-point inputs; for token ids use IntegratedGradients(baselines=id)")
        feature_masks.reject_shared_parts(inputs, "LRP(baseline=…)")
        for i, (x, g) in found.inputs.items():
            meter.add("baseline", batch_dot(starts[i].expand_as(x), g))
        return replace(found, inputs={i: (x - starts[i], g) for i, (x, g) in found.inputs.items()})

    def gradients(self, task: Task) -> Iterator[tuple[Gradients, RelevanceMode]]:
        """Yield the modified gradients g = R/a of each target, with the mode that computed them."""
        try:
            yield from self._gradients(task)
        except UnguardedOverwrite:
            task.prepared.guarded = True
            yield from self._gradients(task)

    def _gradients(self, task: Task) -> Iterator[tuple[Gradients, RelevanceMode]]:
        taps, lookups, several = task.taps(), task.lookups, len(task.targets) > 1 or bool(task.through)
        sources, prepared = input_leaves(task.inputs), task.prepared.for_several() if several else task.prepared
        scope = task.scope
        prepared.kept.begin()
        rules: Any = self.rules  # the object itself, by which the prepared model knows them
        if self.baseline is not None:
            rules = self.composite.without_input_rules("whose relevance does not depend on a baseline; omit one of the two")
        mode = RelevanceMode(rules, scope, prepared, self.unknown, sources, lookups, explains=True, several=several)
        scope.tap(taps.callbacks(mode.pin))
        reading = record_internals(task, scope, mode.bench.see)
        try:
            for found in target_gradients(task, sources, mode, taps, reading):
                task.prepared.guarded = mode.bench.overwrote
                yield found, mode
        finally:
            mode.forget()


def _is_selected(target: Any) -> bool:
    """Return whether a target selects a value among the outputs, which may be a probability that has a logit."""
    return reads_outputs(target) or isinstance(target, Detection)


def _warn_if_unbalanced(account: Conservation) -> None:
    if not account.rounded:
        worst = float(account.error.max())
        largest = max(account.by_layer, key=lambda layer: float(account.by_layer[layer].abs().max()), default="(none)")
        warnings.warn(
            f"relevance plus the absorbed share differs from the output by {worst:.0e} of its value. Either large terms cancel "
            f"(the largest amount was absorbed in '{largest}'; explain model.double() to check), or the model modifies a "
            "gradient where whence cannot see it",
            ConservationWarning,
            stacklevel=2,
        )


def _check_relevance_arrives(found: Gradients, mode: RelevanceMode) -> None:
    """Raise `ModelError` if gates blocked all relevance, since zeros would look like a valid explanation."""
    gradients = [g for _, g in (*found.inputs.values(), *found.looked_up)] + found.extras
    arrived = torch.stack([g.any() for g in gradients]).any()
    if mode.meter.gates_reached and found.flow is None and not check_holds(arrived | ~found.output.any()):
        raise ModelError(f"no relevance reaches the input{mode.what_blocks()}")
