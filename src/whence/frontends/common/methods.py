"""Methods by the names that the command line knows, as fits a model and its input."""

from collections.abc import Sequence
from dataclasses import fields
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
           "epsilon_alpha2_beta1", "deep_taylor")  # fmt: skip
BOX_PRESETS = ("epsilon_gamma_box", "deep_taylor")
ALL_NAMES = [*METHODS, Random.name, *PRESETS]  # what may be compared
METHODS_HELP = f"Names with commas: {', '.join([*METHODS, Random.name])}; or presets of lrp: {', '.join(PRESETS)}."


def split_names(names: str) -> list[str]:
    """The names between commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def check_names(given: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raise for the first name that is none of those known."""
    for name in given:
        if name not in known:
            raise RuleError(f"no {what} {name!r}{suggest_or_list(name, known)}")


def check_rules(method: str, rules: str | None) -> None:
    """Raise for a method or rules of it that there are none of."""
    check_method_name(method)
    if rules is not None and (method != "lrp" or rules not in PRESETS):
        raise RuleError(f"--rules {rules}: choose from {', '.join(PRESETS)}, with --method lrp")


def method_or_preset(name: str, loaded: "LoadedModel", x: Any, is_picture: bool) -> Any:
    """A method, a preset of LRP, or chance."""
    if name == Random.name:
        return Random()
    return (
        make_method("lrp", name, loaded, x, is_picture) if name in PRESETS else make_method(name, None, loaded, x, is_picture)
    )


def make_method(name: str, rules: str | None, loaded: "LoadedModel", x: Any, is_picture: bool) -> Any:
    """The method of that name as fits the model and its input."""
    return LRP(_rules(rules, loaded, is_picture)) if name == "lrp" else _method(name, loaded, x)


def _rules(name: str | None, loaded: "LoadedModel", is_picture: bool) -> Composite:
    """The preset of that name; that of `LRP()` if none is given."""
    name = name or "attn_lrp"
    if name not in BOX_PRESETS:
        return getattr(presets, name)()
    if not (is_picture and loaded.preprocessing.bounds_known):
        raise RuleError(f"--rules {name} needs pixel bounds, which {loaded.name} does not state; choose another")
    return getattr(presets, name)(*loaded.preprocessing.bounds)


def _method(name: str, loaded: "LoadedModel", x: Any) -> Any:
    """The method of that name, with features fit for looking at: patches of a picture, tokens of a text."""
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
    """How parts are taken away, as the metrics by name do; of texts, what stands in their place."""
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
        raise InputError(f"--imputer {given}: give a number or one of {', '.join(IMPUTERS)}") from error
