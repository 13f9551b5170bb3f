"""Methods as explainer algorithms of PyTorch Geometric."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from whence.core.explain import explain
from whence.core.optional_packages import import_package
from whence.errors import InputError
from whence.integrations.fixed_arguments import FixedArguments
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
    geometric = import_package("torch_geometric.explain")
    resolved, masks = resolve_method(method), import_package("torch_geometric.explain.config").MaskType

    class RelevanceAlgorithm(geometric.ExplainerAlgorithm):
        """An algorithm of PyTorch Geometric that computes relevance."""

        def forward(
            self, model: Any, x: Tensor, edge_index: Tensor, *, target: Tensor, index: Any = None, **kwargs: Any
        ) -> Any:
            if not isinstance(x, Tensor):
                raise InputError("relevance of heterogeneous graphs (dicts of node features) is not supported; pass one tensor")
            places = slice(None) if index is None else index
            value = partial(_explained_value, self.model_config, target[places].reshape(-1), places)
            wrapped = FixedArguments.of(model, (edge_index,), kwargs)
            relevance = explain(wrapped, x, value, method=resolved, progress=False).relevance.detach()
            by_node = self.explainer_config.node_mask_type == masks.object
            return geometric.Explanation(node_mask=relevance.sum(-1, keepdim=True) if by_node else relevance)

        def supports(self) -> bool:
            config = self.explainer_config
            of_nodes = config.edge_mask_type is None and config.node_mask_type in (masks.attributes, masks.object)
            return of_nodes and config.explanation_type.value == "model"

    return RelevanceAlgorithm()


def _explained_value(config: Any, wanted: Tensor, places: Any, outputs: Tensor) -> Tensor:
    """Return the sum of the outputs that are explained, `[1]`: of the wanted classes, or the values of a regression."""
    chosen = outputs[places]
    if config.mode.value == "multiclass_classification":
        return chosen.reshape(-1, outputs.shape[-1]).gather(1, wanted.long()[:, None]).sum()[None]
    is_regression = config.mode.value == "regression"
    if chosen.numel() > wanted.numel() or (is_regression and outputs.dim() > 1 < outputs.shape[-1]):
        raise InputError(
            f"the model has outputs of shape {tuple(outputs.shape)}; expected one for each node or graph: pass a model that "
            "returns outputs[:, :1]"
        )
    if is_regression:
        return chosen.sum()[None]
    positive = chosen.reshape(-1)
    negative = 1 - positive if config.return_type.value == "probs" else -positive
    return torch.where(wanted > 0, positive, negative).sum()[None]
