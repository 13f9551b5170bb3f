"""The classes of the results that functions return."""

from whence.auditing.artifact_removal import ProjectedModel
from whence.auditing.audit import Audit
from whence.auditing.audit_comparison import AuditComparison
from whence.auditing.interventions import InterventionTest
from whence.benchmarking.results import BenchResult
from whence.contexts.sources import SourceAttribution
from whence.core.aggregation import AggregatedRelevance
from whence.core.generation import Generation
from whence.core.public_names import namespace
from whence.core.result import Result
from whence.evaluation.comparison import Comparison
from whence.evaluation.results import Evaluation
from whence.evaluation.tuning import Tuning
from whence.lrp.engine.conservation import Conservation
from whence.mechanistic.attribution_graph import AttributionGraph
from whence.mechanistic.concepts import Concepts
from whence.mechanistic.patching import Patching
from whence.mechanistic.relevance_flow import RelevanceFlow
from whence.mechanistic.similarity import SimilarityExplanation
from whence.mechanistic.subspaces import Subspaces
from whence.mechanistic.walks import WalkRelevance
from whence.methods.shapley_values import ShapleyValues
from whence.prototypes.prototypes import Prototypes
from whence.prototypes.top_samples import TopSamples
from whence.robustness.attack import AttackResult
from whence.robustness.explanation_attacks import AttackExplanation, ExplanationAttackResult
from whence.robustness.robust_features import FeatureScores, RobustFeaturesExperiment
from whence.stores.store import Store

__all__ = [
    "AggregatedRelevance",
    "AttackExplanation",
    "AttackResult",
    "AttributionGraph",
    "Audit",
    "AuditComparison",
    "BenchResult",
    "Comparison",
    "Concepts",
    "Conservation",
    "Evaluation",
    "ExplanationAttackResult",
    "FeatureScores",
    "Generation",
    "InterventionTest",
    "Patching",
    "ProjectedModel",
    "Prototypes",
    "RelevanceFlow",
    "Result",
    "RobustFeaturesExperiment",
    "ShapleyValues",
    "SimilarityExplanation",
    "SourceAttribution",
    "Store",
    "Subspaces",
    "TopSamples",
    "Tuning",
    "WalkRelevance",
]
__getattr__ = namespace(__name__, globals())
