"""whence opens trained PyTorch networks: why this output, and what does it take a concept to be?"""

from importlib.metadata import version as _version

from whence import errors as errors
from whence.audit.audit import Audit as Audit, audit as audit
from whence.audit.cure import Cured as Cured, cure as cure
from whence.audit.proof import Proof as Proof, prove as prove
from whence.checkpoint import checkpointed as checkpointed
from whence.conditions import (
    Directions as Directions,
    Features as Features,
    Heads as Heads,
    Nodes as Nodes,
    Places as Places,
)
from whence.datasets.explain_dataset import explain_dataset as explain_dataset
from whence.datasets.store import Store as Store, open_store as open_store
from whence.evaluation import imputers as imputers, metrics as metrics
from whence.evaluation.comparison import Comparison as Comparison, compare as compare
from whence.evaluation.evaluate import evaluate as evaluate
from whence.evaluation.regions import superpixels as superpixels
from whence.evaluation.results import Evaluation as Evaluation
from whence.evaluation.tuning import Tuning as Tuning, tune as tune
from whence.explain import explain as explain, explain_targets as explain_targets
from whence.explainer import Explainer as Explainer
from whence.explanation import Explanation as Explanation
from whence.export.files import check_exported as check_exported
from whence.export.program import export as export
from whence.generation import Generation as Generation, explain_generation as explain_generation
from whence.inside.channels import channel_relevance as channel_relevance
from whence.inside.concepts import Concepts as Concepts, concepts as concepts
from whence.inside.flow import Flow as Flow, flow as flow
from whence.inside.graphs import AttributionGraph as AttributionGraph, attribution_graph as attribution_graph
from whence.inside.patching import Patching as Patching, patching as patching
from whence.inside.similarity import Similarity as Similarity, explain_similarity as explain_similarity
from whence.inside.subspaces import Subspaces as Subspaces, subspaces as subspaces
from whence.inside.walks import Walks as Walks, subgraph_relevance as subgraph_relevance, walks as walks
from whence.load import load as load
from whence.lrp import presets as presets
from whence.lrp.composites import Composite as Composite, input_layer as input_layer
from whence.lrp.conservation import Conservation as Conservation
from whence.lrp.loops import relevance_rules as relevance_rules
from whence.lrp.rules import (
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
from whence.methods.cams import GradCAM as GradCAM, LayerCAM as LayerCAM
from whence.methods.features import patches as patches
from whence.methods.games import ShapleyValues as ShapleyValues, shapley_values as shapley_values
from whence.methods.gradients import (
    Deconvnet as Deconvnet,
    GradientTimesInput as GradientTimesInput,
    GuidedBackprop as GuidedBackprop,
    Sensitivity as Sensitivity,
)
from whence.methods.lrp import LRP as LRP
from whence.methods.paths import ExpectedGradients as ExpectedGradients, IntegratedGradients as IntegratedGradients
from whence.methods.perturbation import RISE as RISE, FeatureAblation as FeatureAblation, Occlusion as Occlusion
from whence.methods.readings import layer_shapes as layer_shapes
from whence.methods.roots import NearestRoot as NearestRoot, RootOnManifold as RootOnManifold, RootTowards as RootTowards
from whence.methods.shapley import Shapley as Shapley
from whence.methods.smoothing import SmoothGrad as SmoothGrad
from whence.methods.taylor import SimpleTaylor as SimpleTaylor
from whence.models.preprocessing import Preprocessing as Preprocessing
from whence.models.registry import LoadedModel as LoadedModel, load_model as load_model
from whence.neuralize.distances import Distance as Distance, Mahalanobis as Mahalanobis
from whence.neuralize.estimators import Neuralized as Neuralized, SupportSets as SupportSets, neuralize as neuralize
from whence.neuralize.pools import Contrast as Contrast, SoftMax as SoftMax, SoftMin as SoftMin
from whence.prototypes.atlas import spatial_atlas as spatial_atlas
from whence.prototypes.decoders import VAE as VAE, AdversarialAutoencoder as AdversarialAutoencoder
from whence.prototypes.images import CPPN as CPPN, MACO as MACO, Fourier as Fourier, Pixels as Pixels
from whence.prototypes.maximize import prototype as prototype
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
from whence.prototypes.samples import TopSamples as TopSamples, top_samples as top_samples
from whence.prototypes.transforms import Jiggle as Jiggle
from whence.robustness.attacked import Attacked as Attacked, attack as attack
from whence.robustness.attacks import (
    FGSM as FGSM,
    MIFGSM as MIFGSM,
    PGD as PGD,
    DeepFool as DeepFool,
    fgsm as fgsm,
    pgd as pgd,
)
from whence.robustness.box import Box as Box
from whence.robustness.explanations import (
    AttackExplained as AttackExplained,
    ExplanationAttacked as ExplanationAttacked,
    attack_explanation as attack_explanation,
    explain_attack as explain_attack,
)
from whence.robustness.features import (
    FeatureScores as FeatureScores,
    RobustFeatures as RobustFeatures,
    RobustFeaturesExperiment as RobustFeaturesExperiment,
    feature_scores as feature_scores,
    robust_features_experiment as robust_features_experiment,
)
from whence.show.palettes import palette as palette
from whence.targets import Logit as Logit, Span as Span

__version__ = _version("whence")
