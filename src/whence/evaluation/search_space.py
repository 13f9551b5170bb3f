"""Candidate LRP rule sets for a network: presets, constant γ, γ that varies with depth, and rules for the input layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.trees import Tree
from whence.errors import RuleError, value_repr
from whence.lrp.rules import presets
from whence.lrp.rules.composites import input_layer
from whence.lrp.rules.rules import Flat, RisingGamma, WSquare, ZBox, ZPlus
from whence.methods.layer_reader import layer_shapes
from whence.methods.lrp import LRP

Bounds = tuple[float | Tensor, float | Tensor]
CONVOLUTIONAL = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LINEAR = (*CONVOLUTIONAL, nn.Linear)
GAMMAS = (0.05, 0.25, 1.0)
STEPS = (0.03, 0.3, 1.0)  # of γ from layer to layer, besides that of the default
GAMMA_RAMPS = ((1.0, 0.01), (1.0, 0.1), (0.25, 0.01), (0.1, 1.0))


@check_arguments
def rule_sets(model: Callable[..., Any], inputs: Tree, bounds: Bounds | None = None) -> dict[str, LRP]:
    """Return candidate LRP rule sets for a network, for `tune`.

    >>> whence.tune(model, (x, y), whence.experiments.rule_sets(model, x[:1], bounds=(low, high)))

    Networks with attention or several dense layers get candidates with γ for those layers too.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        inputs: A small batch, `[N, …]`, or a tuple or dict of tensors; the model runs on it to determine the order of its
        layers. bounds: The lowest and the highest value of the pixels; if given, z^B rules for the input layer are candidates
        too.
    Returns:
        `LRP` methods by name.
    """
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    order = [name for name in layer_shapes(model, inputs) if isinstance(modules.get(name), LINEAR)]
    spatial = [name for name in order if isinstance(modules[name], CONVOLUTIONAL)]
    found: dict[str, Any] = {"default": LRP()}
    if len(order) - len(spatial) > 2:
        found |= {f"attn_lrp(gamma={g:g})": presets.attn_lrp(gamma=g) for g in GAMMAS}
        found |= {f"cp_lrp(gamma={g:g})": presets.cp_lrp(gamma=g) for g in (0.0, *GAMMAS)}
    if spatial:
        found |= _around_the_default(spatial, bounds)
        found |= {f"epsilon_gamma(gamma={g:g})": presets.epsilon_gamma(gamma=g) for g in (*GAMMAS, 0.5)}
        found |= {"epsilon_plus()": presets.epsilon_plus(), "epsilon_plus_flat()": presets.epsilon_plus_flat(),
                  "epsilon_alpha2_beta1()": presets.epsilon_alpha2_beta1(), "flat, γ 0.25": _uniform_gamma(0.25)}  # fmt: skip
    layers = order if len(order) - len(spatial) > 2 else spatial
    if len(layers) > 2:
        found |= {f"γ {a:g} → {b:g}": presets.falling_gamma(layers, a, b) for a, b in GAMMA_RAMPS}
    if bounds is not None:
        low, high = bounds
        box = {f"z^B, γ {g:g}": presets.epsilon_gamma_box(low, high, gamma=g) for g in (*GAMMAS, 0.5)}
        falls = {
            f"z^B, γ {a:g} → {b:g}": presets.falling_gamma(layers, a, b, low, high) for a, b in GAMMA_RAMPS if len(layers) > 2
        }
        found |= box | falls
    return {name: rules if isinstance(rules, LRP) else LRP(rules) for name, rules in found.items()}


def vary_fields(method: Any, choices: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return copies of the method with every combination of values of its fields, by name.

    >>> list(vary_fields(whence.IntegratedGradients(), {"n_steps": [8, 32]}))
    ['n_steps=8', 'n_steps=32']
    """
    if not hasattr(method, "explanations") or isinstance(method, type):
        raise RuleError(f"expected a method with fields, such as whence.IntegratedGradients(); got {value_repr(method)}")
    known = [f.name for f in fields(method)]
    unknown = [name for name in choices if name not in known]
    if unknown:
        raise RuleError(f"{type(method).__name__} has no field {unknown[0]!r}; it has {', '.join(known)}")
    combined = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    found: dict[str, Any] = {}
    for given in combined:
        name = ", ".join(f"{field}={_shorten(value)}" for field, value in given.items())
        found[name if name not in found else f"{name} ({len(found) + 1})"] = replace(method, **given)
    return found


def _around_the_default(spatial: Sequence[str], bounds: Bounds | None) -> dict[str, LRP]:
    """Return the default with a rule of the input layer, other steps of γ, and z⁺ in the lower half of the convolutions.

    The default has the flat rule at color pictures, and γ at other inputs; each is tried where the other is the default.
    """
    default: Any = LRP().rules
    found = {
        "flat input, default": LRP({input_layer: Flat()} | default),
        "w² input, default": LRP({input_layer: WSquare()} | default),
        "γ input, default": LRP({input_layer: RisingGamma()} | default),
    }
    if bounds is not None:
        found["z^B, default"] = LRP({input_layer: ZBox(*bounds)} | default)
    for step in STEPS:
        rule: Any = {CONVOLUTIONAL: RisingGamma(step)}
        found[f"γ input, step {step:g}"] = LRP(rule | default)
        found[f"flat input, step {step:g}"] = LRP({input_layer: Flat()} | (rule | default))
    half = len(spatial) // 2
    if half:
        lower: Any = {tuple(spatial[:half]): ZPlus()}
        found["z⁺ below, default"] = LRP(lower | default)
    if half > 1:  # the first is that of the input
        lower = {tuple(spatial[1:half]): ZPlus()}
        found["flat input, z⁺ below, default"] = LRP({input_layer: Flat()} | (lower | default))
    return found


def _uniform_gamma(gamma: float) -> LRP:
    first: Any = {input_layer: Flat()}
    return LRP(first | presets.epsilon_gamma(gamma=gamma))


def _shorten(value: Any) -> str:
    return f"tensor{list(value.shape)}" if isinstance(value, torch.Tensor) and value.dim() else repr(value)
