"""Explanations of trained PyTorch networks: why a network gives an output, and which inputs best represent its concepts."""

import sys as _sys
from importlib.metadata import version as _version
from types import ModuleType as _ModuleType

from whence import (
    attacks,
    callbacks,
    conditions,
    errors,
    experiments,
    images,
    imputers,
    layers,
    metrics,
    objectives,
    presets,
    priors,
    results,
    roots,
)
from whence.auditing.artifact_removal import cure
from whence.auditing.audit import audit
from whence.auditing.interventions import prove
from whence.benchmarking.bench import bench
from whence.contexts.sources import sources
from whence.core.activation_checkpointing import checkpointed
from whence.core.aggregation import token_passages
from whence.core.argument_checks import check_init as _check_init
from whence.core.conditions import Directions, Features, Heads, Nodes, Places
from whence.core.detection import Detection
from whence.core.explain import explain, explain_targets
from whence.core.explain_detections import explain_detections
from whence.core.explainer import Explainer
from whence.core.explanation import Explanation, load
from whence.core.generation import explain_generation
from whence.core.missing_names import missing_name as _missing_name
from whence.core.region import Region
from whence.core.targets import Logit, Span
from whence.evaluation.comparison import compare
from whence.evaluation.evaluate import evaluate
from whence.evaluation.regions import superpixels
from whence.evaluation.reliability import reliability
from whence.evaluation.tuning import tune
from whence.exporting.program import export
from whence.exporting.program_files import check_exported
from whence.lrp.rules.rules import (
    AlphaBeta,
    Constant,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    Identity,
    RisingGamma,
    WSquare,
    ZBox,
    ZPlus,
)
from whence.lrp.training.relevance_rules import relevance_rules
from whence.mechanistic.attribution_graph import attribution_graph
from whence.mechanistic.channel_relevance import channel_relevance
from whence.mechanistic.concepts import concepts
from whence.mechanistic.patching import patching
from whence.mechanistic.relevance_flow import flow
from whence.mechanistic.similarity import explain_similarity
from whence.mechanistic.subspaces import subspaces
from whence.mechanistic.walks import subgraph_relevance, walks
from whence.methods.feature_masks import patches
from whence.methods.full_gradient import FullGrad
from whence.methods.gradient_cams import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from whence.methods.gradients import Deconvnet, GradientTimesInput, GuidedBackprop, Sensitivity
from whence.methods.integrated_gradients import ExpectedGradients, IntegratedGradients
from whence.methods.lrp import LRP
from whence.methods.perturbation import RISE, FeatureAblation, Occlusion
from whence.methods.perturbation_cams import AblationCAM, ScoreCAM
from whence.methods.shapley import Shapley
from whence.methods.shapley_values import shapley_values
from whence.methods.simple_taylor import SimpleTaylor
from whence.methods.smoothgrad import SmoothGrad
from whence.models.preprocessing import Preprocessing
from whence.models.registry import LoadedModel, load_model
from whence.neuralization.estimators import neuralize
from whence.plotting.palettes import palette
from whence.prototypes.activation_maximization import prototype
from whence.prototypes.top_samples import top_samples
from whence.robustness.attack import attack
from whence.robustness.explanation_attacks import attack_explanation, explain_attack
from whence.stores.explain_dataset import explain_dataset
from whence.stores.store import open_store

__version__ = _version("whence")
__all__ = [
    "LRP",
    "RISE",
    "AblationCAM",
    "AlphaBeta",
    "Constant",
    "Deconvnet",
    "Detection",
    "Directions",
    "EigenCAM",
    "Epsilon",
    "ExpectedGradients",
    "Explainer",
    "Explanation",
    "FeatureAblation",
    "Features",
    "Flat",
    "FullGrad",
    "Gamma",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientTimesInput",
    "GuidedBackprop",
    "Heads",
    "HiResCAM",
    "Identity",
    "IntegratedGradients",
    "LayerCAM",
    "LoadedModel",
    "Logit",
    "Nodes",
    "Occlusion",
    "Places",
    "Preprocessing",
    "Region",
    "RisingGamma",
    "ScoreCAM",
    "Sensitivity",
    "Shapley",
    "SimpleTaylor",
    "SmoothGrad",
    "Span",
    "WSquare",
    "XGradCAM",
    "ZBox",
    "ZPlus",
    "attack",
    "attack_explanation",
    "attacks",
    "attribution_graph",
    "audit",
    "bench",
    "callbacks",
    "channel_relevance",
    "check_exported",
    "checkpointed",
    "compare",
    "concepts",
    "conditions",
    "cure",
    "errors",
    "evaluate",
    "experiments",
    "explain",
    "explain_attack",
    "explain_dataset",
    "explain_detections",
    "explain_generation",
    "explain_similarity",
    "explain_targets",
    "export",
    "flow",
    "images",
    "imputers",
    "layers",
    "load",
    "load_model",
    "metrics",
    "neuralize",
    "objectives",
    "open_store",
    "palette",
    "patches",
    "patching",
    "presets",
    "priors",
    "prototype",
    "prove",
    "relevance_rules",
    "reliability",
    "results",
    "roots",
    "shapley_values",
    "sources",
    "subgraph_relevance",
    "subspaces",
    "superpixels",
    "token_passages",
    "top_samples",
    "tune",
    "walks",
]
_NAMESPACES: tuple[_ModuleType, ...] = (
    attacks,
    conditions,
    errors,
    experiments,
    images,
    imputers,
    layers,
    metrics,
    objectives,
    presets,
    priors,
    results,
    roots,
)

for _public in [globals()[_name] for _name in __all__] + [
    vars(_space)[_name] for _space in _NAMESPACES for _name in vars(_space).get("__all__", ())
]:
    if isinstance(_public, type) and not issubclass(_public, Exception) and _public.__init__ is not object.__init__:
        _check_init(_public)


for _space in _NAMESPACES:
    _space.__getattr__ = _missing_name(_space.__name__, _space.__all__, [_sys.modules[__name__], *_NAMESPACES])
__getattr__ = _missing_name("whence", __all__, _NAMESPACES)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
