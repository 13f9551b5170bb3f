"""Explanation methods by their command-line names, configured for a model and its input."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from whence.errors import InputError, RuleError, suggest_or_list
from whence.evaluation.imputers import IMPUTERS
from whence.evaluation.metrics.registry import METRICS, removes_regions
from whence.evaluation.random_baseline import Random
from whence.lrp.rules import presets
from whence.lrp.rules.composites import Composite
from whence.methods.feature_masks import PATCHES_PER_SIDE, patches
from whence.methods.lrp import LRP
from whence.methods.registry import METHODS, check_method_name

if TYPE_CHECKING:
    from whence.models.registry import LoadedModel

PRESETS = ("attn_lrp", "cp_lrp", "epsilon_gamma", "epsilon_gamma_box", "epsilon_plus", "epsilon_plus_flat",
           "epsilon_alpha2_beta1", "deep_taylor", "vgg16_falling_gamma")  # fmt: skip
BOX_PRESETS = ("epsilon_gamma_box", "deep_taylor")
ALL_NAMES = [*METHODS, Random.name, *PRESETS]  # of all methods that can be compared
METHODS_HELP = (
    f"Names separated by commas: {', '.join([*METHODS, Random.name])}; or presets of LRP rules: {', '.join(PRESETS)}."
)


def split_names(names: str) -> list[str]:
    """Return the names in a comma-separated list."""
    return [name.strip() for name in names.split(",") if name.strip()]


def check_names(given: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raise `RuleError` for the first unknown name."""
    for name in given:
        if name not in known:
            raise RuleError(f"unknown {what} {name!r}{suggest_or_list(name, known)}")


def check_rules(method: str, rules: str | None) -> None:
    """Raise `RuleError` for an unknown method or preset of rules."""
    check_method_name(method)
    if rules is not None and (method != "lrp" or rules not in PRESETS):
        raise RuleError(f"--rules {rules}: choose from {', '.join(PRESETS)}, with --method lrp")


def method_or_preset(name: str, loaded: "LoadedModel", x: Any, is_picture: bool) -> Any:
    """Return a method, LRP with a preset of rules, or the random baseline."""
    if name == Random.name:
        return Random()
    return (
        make_method("lrp", name, loaded, x, is_picture) if name in PRESETS else make_method(name, None, loaded, x, is_picture)
    )


def make_method(name: str, rules: str | None, loaded: "LoadedModel", x: Any, is_picture: bool) -> Any:
    """Return the method of this name, configured for the model and its input."""
    return LRP(_rules(rules, loaded, is_picture)) if name == "lrp" else _method(name, loaded, x)


def _rules(name: str | None, loaded: "LoadedModel", is_picture: bool) -> Composite:
    """Return the preset of this name; that of `LRP()` if none is given."""
    name = name or "attn_lrp"
    if name == "vgg16_falling_gamma":  # by the paths of one network: of any other, the default rules would be used instead
        composite = presets.vgg16_falling_gamma()
        return replace(composite, required=len(composite.entries))
    if name not in BOX_PRESETS:
        return getattr(presets, name)()
    if not (is_picture and loaded.preprocessing.bounds_known):
        raise RuleError(f"--rules {name} needs pixel bounds, which {loaded.name} does not state; choose other rules")
    return getattr(presets, name)(*loaded.preprocessing.bounds)


def _method(name: str, loaded: "LoadedModel", x: Any) -> Any:
    """Return the method of this name, with features that can be displayed: patches of an image, tokens of a text."""
    method = METHODS[name]
    given: dict[str, Any] = {}
    takes = {f.name for f in fields(cast(Any, method))}
    if "feature_mask" in takes and isinstance(x, Tensor) and x.dim() == 4:
        given["feature_mask"] = patches(x, -(-max(x.shape[2:]) // PATCHES_PER_SIDE))
    if "baselines" in takes and loaded.text is not None:
        given["baselines"] = {"input_ids": loaded.text.blank_id}
    return method(**given)


def removal_settings(
    regions: str | None, imputer: str | None, score: str | None, loaded: "LoadedModel", metrics: list[str]
) -> dict[str, Any]:
    """Return the keyword arguments of metrics that remove regions; for texts the replacement is the blank token."""
    given: dict[str, Any] = {}
    if regions is not None:
        given["regions"] = int(regions) if regions.isdecimal() else regions
    if imputer is not None:
        given["imputer"] = imputer if imputer in IMPUTERS else _parse_number(imputer)
    elif loaded.text is not None and any(removes_regions(METRICS[name]()) for name in metrics):
        given["imputer"] = loaded.text.blank_id
    if score is not None:
        given["score"] = score
    return given


def _parse_number(given: str) -> float | int:
    try:
        return int(given) if given.lstrip("-").isdecimal() else float(given)
    except ValueError as error:
        raise InputError(f"--imputer {given}: expected a number or one of {', '.join(IMPUTERS)}") from error
