"""Methods as explainer algorithms of PyTorch Geometric."""

from typing import Any

import torch
from torch import Tensor

from whence.core.explain import explain
from whence.errors import InputError, MissingPackageError
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
    try:
        from torch_geometric.explain import ExplainerAlgorithm, Explanation
        from torch_geometric.explain.config import ExplanationType, MaskType, ModelMode, ModelReturnType
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

            mode, returned = self.model_config.mode, self.model_config.return_type

            def explained(outputs: Tensor) -> Tensor:
                chosen, wanted = outputs[places], target[places].reshape(-1)
                if mode == ModelMode.multiclass_classification:
                    rows = chosen.reshape(-1, outputs.shape[-1])
                    return rows.gather(1, wanted.long()[:, None]).sum()[None]
                if chosen.numel() > wanted.numel() or (mode == ModelMode.regression and outputs.dim() > 1 < outputs.shape[-1]):
                    raise InputError(
                        f"the model has outputs of shape {tuple(outputs.shape)}; expected one for each node or graph: pass a "
                        "model that returns outputs[:, :1]"
                    )
                if mode == ModelMode.regression:
                    return chosen.sum()[None]
                negative = 1 - chosen.reshape(-1) if returned == ModelReturnType.probs else -chosen.reshape(-1)
                return torch.where(wanted > 0, chosen.reshape(-1), negative).sum()[None]

            wrapped = FixedArguments.of(model, (edge_index,), kwargs)
            e = explain(wrapped, x, explained, method=resolved, progress=False)
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
