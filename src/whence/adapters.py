"""Adapters to other libraries: captum, inseq, PyTorch Geometric, Quantus, SHAP and torchmetrics."""

from whence.core.public_names import namespace
from whence.integrations.captum_attribution import Attribution
from whence.integrations.evaluation_metric import evaluation_metric
from whence.integrations.graph_explainer import graph_explainer
from whence.integrations.inseq_method import register_inseq_method
from whence.integrations.quantus_function import quantus_explain_func
from whence.integrations.shap_explanation import to_shap

__all__ = [
    "Attribution",
    "evaluation_metric",
    "graph_explainer",
    "quantus_explain_func",
    "register_inseq_method",
    "to_shap",
]
__getattr__ = namespace(__name__, globals())
