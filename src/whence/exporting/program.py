"""`export`: an explainer as one exported program of plain operators."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from whence.core.argument_checks import check_arguments
from whence.core.class_indices import check_classes
from whence.core.detection import Detection
from whence.core.explainer import DisplayNames, explanations
from whence.core.explanation import Explanation
from whence.core.files import atomic_write
from whence.core.inputs import Inputs, check_model
from whence.core.region import Region
from whence.core.targets import Logit, Span, Target
from whence.core.trees import Tree
from whence.errors import InputError, ModelError, RuleError, first_line
from whence.exporting.program_files import check_writable, load_translated, write_program
from whence.graphs.backward_decompositions import replace_convolution_backward, replace_views
from whence.graphs.tracing import HOLDS, check_equal, fold_constants, input_tensors, trace
from whence.lrp.engine.prepared_model import PreparedModel
from whence.lrp.training.differentiable import state_tensors
from whence.methods.registry import Method, check_single_graph, resolve_method

OUTPUT_NAMES = ("output", "explained", "relevance", "relevance_sum", "absorbed", "layers", HOLDS)  # in this order
BATCH_DIM = "batch"


@dataclass(frozen=True)
class RequestedClass(Logit):
    """The class that is given at each call; −1 is the class with the largest logit."""

    def select(self, logits: Tensor, inputs: Inputs) -> tuple[Tensor, Logit]:
        rows, index = self._rows(logits, inputs).detach(), self.index
        assert isinstance(index, Tensor)
        check_classes(index + 1, rows.shape[1] + 1)
        return Logit(torch.where(index < 0, rows.argmax(1), index.clamp(max=rows.shape[1] - 1))).select(logits, inputs)


@check_arguments
def export(
    model: Callable[..., Any],
    inputs: Tree,
    target: Target = None,
    *,
    method: Method | str | None = None,
    layers: Sequence[str] = (),
    dynamic_shapes: Mapping[str, Mapping[int, Any]] | None = None,
    out: str | Path | None = None,
    compiled: bool = False,
) -> ExportedProgram:
    """Export the explainer of a model as a `torch.export.ExportedProgram`.

    The program runs without this library; it can be saved, loaded, compiled, and converted to ONNX.

    >>> program = whence.export(model, x, method=whence.LRP(rules), out="explainer.pt2")
    >>> found = program.module()(x, torch.tensor([483]))           # −1: the class with the largest logit
    >>> found["relevance"], found["output"], found["holds"]

    The program takes the inputs in the structure of `inputs` (`x`; `x0`, `x1`, … for a tuple; by name for a dict) and, unless
    `target` is fixed, class indices `target` `[N]`. It returns a dict of

    - `output` `[N]` and `explained` `[N]`, the explained classes;
    - `relevance`, shaped like the input (`relevance.NAME` for several inputs);
    - `relevance_sum` and `absorbed` `[N]`, which add up to the output;
    - `layers.NAME`, the relevance of layers;
    - `holds`, False if `explain` would raise or warn (values that are not finite, sums that differ from the output).

    Weights that rules modify are computed once and stored in the program. The exported program is run and compared with
    `explain` before it is returned.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is not modified.
        inputs: Example inputs: tensor `[N, …]`, or a tuple or dict of tensors. The number of samples may vary at later calls.
        target: A target that is the same for all samples, which the program then has fixed; None makes the class an input of
            the program.
        method: A method that is a single graph, or its short name, such as `LRP` or "gradient_times_input".
        layers: Names of modules whose relevance the program returns too.
        dynamic_shapes: Other dimensions whose size may vary, as for `torch.export`: `{"x": {2: "height", 3: "width"}}`.
        out: A file to write: `.pt2`, or `.onnx` (`pip install whence[onnx]`), whose values agree to rounding.
        compiled: Whether to compile the `.pt2` with AOT Inductor for this machine and device; the package is run from C++ or
            loaded by `torch._inductor.aoti_load_package`.
    Returns:
        The `ExportedProgram`.
    Raises:
        RuleError: The method samples or searches, so that it is not a single graph.
        ModelError: The model has data-dependent control flow, a part of it cannot be captured as a graph, or the program does
            not reproduce the results of `explain`.
        InputError: `out` or `dynamic_shapes` is invalid, or some inputs are shared by all samples.
    """
    check_model(model)
    if out is not None:
        check_writable(Path(out), compiled)
    elif compiled:
        raise InputError("compiled=True needs out=, the path of the package")
    way = resolve_method(method)
    check_single_graph(way)
    _check_static_target(target)
    inputs = Inputs.of(inputs).detached()
    if inputs.whole:
        raise InputError("inputs shared by all samples cannot be exported; make them part of the model")
    several = inputs if inputs.batch_size > 1 else inputs.repeated(2, {})
    device = next(t.device for t in input_tensors(inputs, None).values())
    asked = RequestedClass(torch.full((several.batch_size,), -1, device=device)) if target is None else target

    def explained(nest: Tree, target: Target) -> Explanation:
        return next(explanations(PreparedModel(model), way, Inputs.of(nest), [target], layers, False, DisplayNames()))

    explained(several.nest, target)  # raises the errors of the explainer, if any
    shapes = _dynamic_dims(several, asked, dynamic_shapes or {})
    written = trace(explained, several, asked, {name: list(sizes) for name, sizes in shapes.items()})
    whole = replace_convolution_backward(written.graph) if compiled else written.graph
    graph = _with_model_names(fold_constants(_keep_outputs(whole)), model)
    program = _export_graph(graph, several, input_tensors(several, asked), shapes)
    seen = [
        (other, explained(other.nest, target)) for other in (several.of_samples(torch.tensor([0])), several.repeated(2, {}))
    ]
    _check_matches(program.module(), seen, target)
    if out is not None:
        path = Path(out)
        with atomic_write(path) as temporary:
            write_program(program, temporary, model, way, compiled)
            try:
                if (made := load_translated(program, temporary, compiled)) is not None:
                    _check_matches(made, seen, target)
            except NotImplementedError as error:
                warnings.warn(f"{path} was written, but could not be run and compared here: {error}", stacklevel=2)
    return program


def _check_matches(
    program: Callable[..., dict[str, Tensor]], seen: Sequence[tuple[Inputs, Explanation]], target: Target
) -> None:
    """Raise `ModelError` unless the program reproduces the explanations."""
    for inputs, e in seen:
        given = input_tensors(inputs, e.target if target is None else None)  # type: ignore[arg-type]
        found = program(*given.values()) if inputs.names is None else program(**given)
        check_equal(found, e)


def _check_static_target(target: Target) -> None:
    if isinstance(target, Region | Detection):
        raise RuleError(
            f"export() takes no {type(target).__name__}, whose places depend on the sample; pass a function of the outputs "
            "with fixed places: target=lambda outputs: outputs[:, 1, 10:20, 10:20].mean((1, 2))"
        )
    indices = (target.index, target.rather_than) if isinstance(target, Logit) else (target,)
    if any(isinstance(index, Tensor | list | tuple | np.ndarray) for index in indices) or isinstance(target, Span):
        raise RuleError(
            "a fixed target= must be the same for all samples; leave it out to pass a class for each sample at each call"
        )


def _dynamic_dims(inputs: Inputs, target: Target, others: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[int, Any]]:
    """Return the dimensions that may vary, for every input tensor by name."""
    given, batch = input_tensors(inputs, target), Dim(BATCH_DIM)
    wrong = next((name for name in others if name not in given), None)
    if wrong is not None:
        raise InputError(f"dynamic_shapes names {wrong!r}, which is not an input; the inputs are {', '.join(given)}")
    found = {}
    for name, t in given.items():
        sizes = {d: Dim(size) if isinstance(size, str) else size for d, size in others.get(name, {}).items()}
        outside = next((d for d in sizes if not 0 <= d < t.dim()), None)
        if outside is not None:
            raise InputError(f"dynamic_shapes names dimension {outside} of {name!r}, which has {t.dim()} dimensions")
        found[name] = ({0: batch} if t.shape[0] == inputs.batch_size else {}) | sizes
    return found


def _keep_outputs(graph: GraphModule) -> GraphModule:
    """Remove all outputs from the graph except those of the documented program."""
    (output,) = graph.graph.find_nodes(op="output")
    (found,) = output.args
    found = {"explained" if name == "target" else name: t for name, t in found.items()}  # an input already has the name target
    output.args = ({name: t for kind in OUTPUT_NAMES for name, t in found.items() if name.split(".")[0] == kind},)
    graph.graph.eliminate_dead_code()
    return replace_views(graph)


def _with_model_names(graph: GraphModule, model: Any) -> GraphModule:
    """Rename the weights of the graph to their names in the model."""
    state = state_tensors(model) if isinstance(model, nn.Module) else {}
    names = {_storage_key(t): name.replace(".", "_") for name, t in state.items()}
    taken = dict(graph.named_buffers())
    for node in graph.graph.find_nodes(op="get_attr"):
        t = taken[node.target]
        name = names.get(_storage_key(t))
        if name is not None and not hasattr(graph, name):
            graph.register_buffer(name, t)
            delattr(graph, node.target)
            node.target = name
    graph.recompile()
    return graph


def _storage_key(t: Tensor) -> tuple:
    return t.data_ptr(), t.dtype, t.shape, t.stride()


class _NamedProgram(nn.Module):
    """A graph that is called by the names of its inputs and returns a plain dict."""

    def __init__(self, graph: GraphModule, names: Sequence[str]):
        super().__init__()
        self.explainer = graph

        def forward(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
            return dict(graph(*args, *(kwargs[name] for name in names if name in kwargs)))

        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


def _export_graph(
    graph: GraphModule, inputs: Inputs, given: dict[str, Tensor], shapes: dict[str, dict[int, Any]]
) -> ExportedProgram:
    args, kwargs = (tuple(given.values()), {}) if inputs.names is None else ((), given)
    try:
        with torch.no_grad():
            return torch.export.export(_NamedProgram(graph, list(given)), args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        _, _, wanted = str(error).partition("Suggested fixes:")
        fixes = ", ".join(line.strip() for line in wanted.strip().split("\n\n")[0].splitlines())
        hint = f"; in dynamic_shapes it asks for {fixes}" if fixes else ""
        raise ModelError(f"torch.export failed: {first_line(error)}{hint}") from error
