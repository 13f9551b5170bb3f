"""whence opens trained PyTorch networks: why this output, and what does it take a concept to be?"""

from importlib.metadata import version as _version

from whence import errors as errors
from whence.auditing.artifact_removal import ProjectedModel as ProjectedModel, cure as cure
from whence.auditing.audit import Audit as Audit, audit as audit
from whence.auditing.interventions import InterventionTest as InterventionTest, prove as prove
from whence.core.activation_checkpointing import checkpointed as checkpointed
from whence.core.conditions import (
    Directions as Directions,
    Features as Features,
    Heads as Heads,
    Nodes as Nodes,
    Places as Places,
)
from whence.core.explain import explain as explain, explain_targets as explain_targets
from whence.core.explainer import Explainer as Explainer
from whence.core.explanation import Explanation as Explanation
from whence.core.explanation_io import load as load
from whence.core.generation import Generation as Generation, explain_generation as explain_generation
from whence.core.pixel_bounds import Box as Box
from whence.core.targets import Logit as Logit, Span as Span
from whence.evaluation import imputers as imputers
from whence.evaluation.comparison import Comparison as Comparison, compare as compare
from whence.evaluation.evaluate import evaluate as evaluate
from whence.evaluation.metrics import registry as metrics  # noqa: F401
from whence.evaluation.regions import superpixels as superpixels
from whence.evaluation.results import Evaluation as Evaluation
from whence.evaluation.tuning import Tuning as Tuning, tune as tune
from whence.exporting.program import export as export
from whence.exporting.program_files import check_exported as check_exported
from whence.lrp.engine.conservation import Conservation as Conservation
from whence.lrp.rules import presets as presets
from whence.lrp.rules.composites import Composite as Composite, input_layer as input_layer
from whence.lrp.rules.rules import (
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
from whence.lrp.training.relevance_rules import relevance_rules as relevance_rules
from whence.mechanistic.attribution_graph import AttributionGraph as AttributionGraph, attribution_graph as attribution_graph
from whence.mechanistic.channel_relevance import channel_relevance as channel_relevance
from whence.mechanistic.concepts import Concepts as Concepts, concepts as concepts
from whence.mechanistic.patching import Patching as Patching, patching as patching
from whence.mechanistic.relevance_flow import RelevanceFlow as RelevanceFlow, flow as flow
from whence.mechanistic.similarity import (
    SimilarityExplanation as SimilarityExplanation,
    explain_similarity as explain_similarity,
)
from whence.mechanistic.subspaces import Subspaces as Subspaces, subspaces as subspaces
from whence.mechanistic.walks import WalkRelevance as WalkRelevance, subgraph_relevance as subgraph_relevance, walks as walks
from whence.methods.class_activation_maps import GradCAM as GradCAM, LayerCAM as LayerCAM
from whence.methods.feature_masks import patches as patches
from whence.methods.gradients import (
    Deconvnet as Deconvnet,
    GradientTimesInput as GradientTimesInput,
    GuidedBackprop as GuidedBackprop,
    Sensitivity as Sensitivity,
)
from whence.methods.integrated_gradients import (
    ExpectedGradients as ExpectedGradients,
    IntegratedGradients as IntegratedGradients,
)
from whence.methods.layer_reader import layer_shapes as layer_shapes
from whence.methods.lrp import LRP as LRP
from whence.methods.perturbation import RISE as RISE, FeatureAblation as FeatureAblation, Occlusion as Occlusion
from whence.methods.shapley import Shapley as Shapley
from whence.methods.shapley_values import ShapleyValues as ShapleyValues, shapley_values as shapley_values
from whence.methods.simple_taylor import SimpleTaylor as SimpleTaylor
from whence.methods.smoothgrad import SmoothGrad as SmoothGrad
from whence.methods.taylor_roots import NearestRoot as NearestRoot, RootOnManifold as RootOnManifold, RootTowards as RootTowards
from whence.models.preprocessing import Preprocessing as Preprocessing
from whence.models.registry import LoadedModel as LoadedModel, load_model as load_model
from whence.neuralization.distances import Distance as Distance, Mahalanobis as Mahalanobis
from whence.neuralization.estimators import Neuralized as Neuralized, SupportSets as SupportSets, neuralize as neuralize
from whence.neuralization.soft_pooling import Contrast as Contrast, SoftMax as SoftMax, SoftMin as SoftMin
from whence.plotting.palettes import palette as palette
from whence.prototypes.activation_maximization import prototype as prototype
from whence.prototypes.autoencoders import VAE as VAE, AdversarialAutoencoder as AdversarialAutoencoder
from whence.prototypes.image_parameterizations import CPPN as CPPN, MACO as MACO, Fourier as Fourier, Pixels as Pixels
from whence.prototypes.objectives import (
    Caricature as Caricature,
    Channel as Channel,
    Direction as Direction,
    Inversion as Inversion,
    Layer as Layer,
    LogProbability as LogProbability,
    Neuron as Neuron,
)
from whence.prototypes.priors import (
    L2 as L2,
    CodeSpace as CodeSpace,
    GaussianExpert as GaussianExpert,
    GaussianRBM as GaussianRBM,
)
from whence.prototypes.prototypes import Prototypes as Prototypes
from whence.prototypes.random_transforms import Jiggle as Jiggle
from whence.prototypes.spatial_atlas import spatial_atlas as spatial_atlas
from whence.prototypes.top_samples import TopSamples as TopSamples, top_samples as top_samples
from whence.robustness.attack import AttackResult as AttackResult, attack as attack
from whence.robustness.attack_methods import (
    FGSM as FGSM,
    MIFGSM as MIFGSM,
    PGD as PGD,
    DeepFool as DeepFool,
    fgsm as fgsm,
    pgd as pgd,
)
from whence.robustness.explanation_attacks import (
    AttackExplanation as AttackExplanation,
    ExplanationAttackResult as ExplanationAttackResult,
    attack_explanation as attack_explanation,
    explain_attack as explain_attack,
)
from whence.robustness.robust_features import (
    FeatureScores as FeatureScores,
    RobustFeatures as RobustFeatures,
    RobustFeaturesExperiment as RobustFeaturesExperiment,
    feature_scores as feature_scores,
    robust_features_experiment as robust_features_experiment,
)
from whence.stores.explain_dataset import explain_dataset as explain_dataset
from whence.stores.store import Store as Store, open_store as open_store

__version__ = _version("whence")
