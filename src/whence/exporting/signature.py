"""The signature of an exported program: names and shapes of its inputs and outputs."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

Shapes = dict[str, list[int | str]]


def signature(program: ExportedProgram) -> tuple[Shapes, Shapes]:
    """Return the shapes of inputs and outputs by name, in order; sizes that may vary are given by their names."""
    inputs, outputs = signature_names(program)
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)}
    symbols = {str(nodes[name].shape[0]): "batch" for name in inputs if not isinstance(nodes[name].shape[0], int)}

    def shape(t: Tensor) -> list[int | str]:
        return [size if isinstance(size, int) else symbols.get(str(size), str(size)) for size in t.shape]

    given = zip(outputs, program.graph_signature.user_outputs, strict=True)
    return {name: shape(nodes[name]) for name in inputs}, {name: shape(nodes[str(node)]) for name, node in given}


def signature_names(program: ExportedProgram) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names of the inputs and of the outputs, in order."""
    spec: Any = program.call_spec.out_spec
    return [str(name) for name in program.graph_signature.user_inputs], list(spec.context)
