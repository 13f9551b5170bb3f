"""Explanation methods by their command-line names, configured for a model and its input."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from whence.core.inputs import Inputs
from whence.errors import InputError, RuleError, suggest_or_list
from whence.evaluation.imputers import IMPUTERS, BackgroundSamples
from whence.evaluation.metrics.registry import METRICS, removes_regions
from whence.evaluation.random_baseline import Random
from whence.frontends.common.choices import BOX_PRESETS, PRESETS
from whence.lrp.rules.composites import Composite
from whence.lrp.rules.presets import preset
from whence.methods.feature_masks import PATCHES_PER_SIDE, patches
from whence.methods.lrp import LRP
from whence.methods.registry import METHODS, method_name

if TYPE_CHECKING:
    from whence.models.loaded_model import LoadedModel

METHODS_OF_FUNCTIONS = ("shapley", "feature_ablation", "occlusion")  # which only evaluate the model
ALL_NAMES = [*METHODS, Random.name, *PRESETS]  # of all methods that can be compared


def default_method(loaded: "LoadedModel") -> str:
    """Return the name of the method for a model that none is named for: Shapley values for tables, otherwise LRP."""
    return "lrp" if loaded.table is None else "shapley"


def row_imputer(loaded: "LoadedModel") -> BackgroundSamples | None:
    """Return what replaces the columns of a single row of a table: the training rows; None for other models."""
    return None if loaded.table is None else BackgroundSamples(cast(Tensor, Inputs.of(loaded.table.background).nest))


def split_names(names: str) -> list[str]:
    """Return the names in a comma-separated list."""
    return [name.strip() for name in names.split(",") if name.strip()]


def check_names(given: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raise `RuleError` for the first unknown name."""
    for name in given:
        if name not in known:
            raise RuleError(f"unknown {what} {name!r}{suggest_or_list(name, known)}")


def method_and_rules(method: str, rules: str | None = None) -> tuple[str, str | None]:
    """Return the short name of a method and its preset of LRP rules; the name of a preset is also that of a method.

    Raise `RuleError` for an unknown method or preset of rules.
    """
    name, given = ("lrp", method) if method in PRESETS else (method_name(method), rules)
    if given is not None and (name != "lrp" or given not in PRESETS or rules not in (None, given)):
        if given in PRESETS:
            raise RuleError(f"--rules {rules} cannot be combined with --method {method}; omit one of them")
        raise RuleError(f"--rules {given}: choose from {', '.join(PRESETS)}")
    return name, given


def check_methods(given: Sequence[str]) -> None:
    """Raise `RuleError` for the first name that is not of a method, a preset of LRP rules or the random baseline."""
    for name in given:
        if name != Random.name:
            method_and_rules(name)


def method_or_preset(name: str, loaded: "LoadedModel", x: Any, is_picture: bool) -> Any:
    """Return a method, LRP with a preset of rules, or the random baseline."""
    if name == Random.name:
        return Random()
    return make_method(name, None, loaded, x, is_picture)


def make_method(name: str, rules: str | None, loaded: "LoadedModel", x: Any, is_picture: bool) -> Any:
    """Return the method of this name, configured for the model and its input."""
    name, rules = method_and_rules(name, rules)
    if rules is None and name == "lrp" and not isinstance(loaded.model, nn.Module):
        raise RuleError(f"{loaded.name} is not a torch.nn.Module; choose a method that only evaluates it: --method shapley")
    return LRP(_rules(rules, loaded, is_picture)) if name == "lrp" else _method(name, loaded, x)


def _rules(name: str | None, loaded: "LoadedModel", is_picture: bool) -> Composite:
    """Return the preset of this name; that of `LRP()` if none is given."""
    known = is_picture and loaded.preprocessing.bounds_known
    if name in BOX_PRESETS and not known:
        raise RuleError(f"--rules {name} needs pixel bounds, which {loaded.name} does not state; choose other rules")
    return preset(name or "attn_lrp", loaded.preprocessing.bounds if known else None)


def _method(name: str, loaded: "LoadedModel", x: Any) -> Any:
    """Return the method of this name, with features that can be displayed: patches of an image, tokens of a text."""
    method = METHODS[name]
    given: dict[str, Any] = {}
    takes = {f.name for f in fields(cast(Any, method))}
    if "feature_mask" in takes and isinstance(x, Tensor) and x.dim() == 4:
        given["feature_mask"] = patches(x, -(-max(x.shape[2:]) // PATCHES_PER_SIDE))
    if "background" in takes and loaded.table is not None:
        given["background"] = loaded.table.background
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
