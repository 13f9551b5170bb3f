"""The account of an explanation as rows: output, relevance and absorbed share by sample, and by layer."""

from whence.core.explanation_data import ExplanationData
from whence.core.files import Rows
from whence.core.trees import named_leaves


def sample_rows(e: ExplanationData) -> Rows:
    """Return a row for each sample: target, output, the parts that add up to it, and the relative error."""
    account, names = e.conservation, e.target_names()
    columns = {"output": account.output} | account.parts | ({"error": account.error} if account.adds_up else {})
    values = {name: column.tolist() for name, column in columns.items()}
    return [{"sample": i, "target": names[i]} | {name: column[i] for name, column in values.items()} for i in range(len(names))]


def layer_rows(e: ExplanationData) -> Rows:
    """Return a row for each sample and layer: the relevance at requested layers, and that which each layer absorbed."""
    at_layers = {
        name: t.detach().reshape(len(t), -1).double().sum(1).tolist()
        for name, t in named_leaves(e.layers).items()
        if len(t) == len(e)
    }
    absorbed = {name: t.tolist() for name, t in e.conservation.by_layer.items()}
    names = e.target_names()
    return [
        {"sample": i, "target": names[i], "layer": layer}
        | {"relevance": at_layers[layer][i] if layer in at_layers else None}
        | {"absorbed": absorbed[layer][i] if layer in absorbed else None}
        for i in range(len(e))
        for layer in dict.fromkeys([*at_layers, *absorbed])
    ]
