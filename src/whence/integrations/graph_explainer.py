"""Methods as explainer algorithms of PyTorch Geometric."""

from typing import Any

from torch import Tensor

from whence.core.explain import explain
from whence.errors import InputError, MissingPackageError
from whence.methods.registry import Method, resolve_method


def graph_explainer(method: Method | str | None = None) -> Any:
    """Return a method as an `ExplainerAlgorithm` of PyTorch Geometric.

    >>> explainer = torch_geometric.explain.Explainer(
    ...     model, whence.adapters.graph_explainer("lrp"), explanation_type="model", node_mask_type="attributes",
    ...     model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"})
    >>> explainer(x, edge_index, index=5).node_mask               # relevance of each feature of each node

    Args:
        method: A method or its name; LRP by default.

    Returns:
        An `ExplainerAlgorithm`, whose node mask is the relevance: by feature ("attributes") or summed by node ("object").

    Raises:
        MissingPackageError: torch_geometric is not installed.
    """
    try:
        from torch_geometric.explain import ExplainerAlgorithm, Explanation
        from torch_geometric.explain.config import ExplanationType, MaskType
    except ImportError as error:
        raise MissingPackageError("torch_geometric is not installed; run pip install torch_geometric") from error

    resolved = resolve_method(method)

    class RelevanceAlgorithm(ExplainerAlgorithm):
        """An algorithm of PyTorch Geometric that computes relevance."""

        def forward(
            self, model: Any, x: Tensor, edge_index: Tensor, *, target: Tensor, index: Any = None, **kwargs: Any
        ) -> Any:
            if not isinstance(x, Tensor):
                raise InputError("relevance of heterogeneous graphs (dicts of node features) is not supported; pass one tensor")
            places = slice(None) if index is None else index

            def explained(outputs: Tensor) -> Tensor:
                rows = outputs[places].reshape(-1, outputs.shape[-1]) if outputs.dim() > 1 else outputs[places].reshape(-1, 1)
                classes = target[places].reshape(-1) if rows.shape[-1] > 1 else target.new_zeros(len(rows)).long()
                return rows[range(len(rows)), classes.long()].sum()[None]

            e = explain(lambda nodes: model(nodes, edge_index, **kwargs), x, explained, method=resolved, progress=False)
            relevance = e.relevance.detach()
            by_node = self.explainer_config.node_mask_type == MaskType.object
            return Explanation(node_mask=relevance.sum(-1, keepdim=True) if by_node else relevance)

        def supports(self) -> bool:
            config = self.explainer_config
            of_model = config.explanation_type == ExplanationType.model
            return (
                of_model and config.edge_mask_type is None and config.node_mask_type in (MaskType.attributes, MaskType.object)
            )

    return RelevanceAlgorithm()
