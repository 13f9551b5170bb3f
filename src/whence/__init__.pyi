"""The front door: what `whence` exports, and where it is defined. Names are imported when they are first used."""

from . import (
    adapters as adapters,
    attacks as attacks,
    callbacks as callbacks,
    conditions as conditions,
    errors as errors,
    experiments as experiments,
    images as images,
    imputers as imputers,
    layers as layers,
    metrics as metrics,
    objectives as objectives,
    plots as plots,
    presets as presets,
    priors as priors,
    results as results,
    roots as roots,
)
from .auditing.artifact_removal import cure as cure
from .auditing.audit import audit as audit
from .auditing.interventions import prove as prove
from .benchmarking.bench import bench as bench
from .contexts.sources import sources as sources
from .core.activation_checkpointing import checkpointed as checkpointed
from .core.aggregation import token_passages as token_passages
from .core.conditions import Directions as Directions, Features as Features, Heads as Heads, Nodes as Nodes, Places as Places
from .core.detection import Detection as Detection
from .core.explain import explain as explain, explain_targets as explain_targets
from .core.explain_detections import explain_detections as explain_detections
from .core.explainer import Explainer as Explainer
from .core.explanation import Explanation as Explanation, load as load
from .core.generation import explain_generation as explain_generation
from .core.region import Region as Region
from .core.targets import Logit as Logit, Span as Span
from .evaluation.comparison import compare as compare
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.regions import superpixels as superpixels
from .evaluation.reliability import reliability as reliability
from .evaluation.tuning import tune as tune
from .exporting.program import export as export
from .exporting.program_files import check_exported as check_exported
from .lrp.rules.rules import (
    AlphaBeta as AlphaBeta,
    Constant as Constant,
    Epsilon as Epsilon,
    Flat as Flat,
    Gamma as Gamma,
    Gradient as Gradient,
    Identity as Identity,
    RisingGamma as RisingGamma,
    WSquare as WSquare,
    ZBox as ZBox,
    ZPlus as ZPlus,
)
from .lrp.training.relevance_rules import relevance_rules as relevance_rules
from .mechanistic.attribution_graph import attribution_graph as attribution_graph
from .mechanistic.channel_relevance import channel_relevance as channel_relevance
from .mechanistic.concepts import concepts as concepts
from .mechanistic.patching import patching as patching
from .mechanistic.relevance_flow import flow as flow
from .mechanistic.similarity import explain_similarity as explain_similarity
from .mechanistic.subspaces import subspaces as subspaces
from .mechanistic.walks import subgraph_relevance as subgraph_relevance, walks as walks
from .methods.feature_masks import patches as patches
from .methods.full_gradient import FullGrad as FullGrad
from .methods.gradient_cams import (
    EigenCAM as EigenCAM,
    GradCAM as GradCAM,
    GradCAMPlusPlus as GradCAMPlusPlus,
    HiResCAM as HiResCAM,
    LayerCAM as LayerCAM,
    XGradCAM as XGradCAM,
)
from .methods.gradients import (
    Deconvnet as Deconvnet,
    GradientTimesInput as GradientTimesInput,
    GuidedBackprop as GuidedBackprop,
    Sensitivity as Sensitivity,
)
from .methods.integrated_gradients import ExpectedGradients as ExpectedGradients, IntegratedGradients as IntegratedGradients
from .methods.lrp import LRP as LRP
from .methods.perturbation import RISE as RISE, FeatureAblation as FeatureAblation, Occlusion as Occlusion
from .methods.perturbation_cams import AblationCAM as AblationCAM, ScoreCAM as ScoreCAM
from .methods.shapley import Shapley as Shapley
from .methods.shapley_values import shapley_values as shapley_values
from .methods.simple_taylor import SimpleTaylor as SimpleTaylor
from .methods.smoothgrad import SmoothGrad as SmoothGrad
from .models.csv_inputs import SeriesReader as SeriesReader, TableReader as TableReader
from .models.loaded_model import LoadedModel as LoadedModel
from .models.preprocessing import Preprocessing as Preprocessing
from .models.registry import load_model as load_model
from .neuralization.estimators import neuralize as neuralize
from .plotting.palettes import palette as palette
from .prototypes.activation_maximization import prototype as prototype
from .prototypes.top_samples import top_samples as top_samples
from .robustness.attack import attack as attack
from .robustness.explanation_attacks import attack_explanation as attack_explanation, explain_attack as explain_attack
from .stores.explain_dataset import explain_dataset as explain_dataset
from .stores.store import open_store as open_store

__version__: str
