"""Tracing of an explanation as one graph of plain operators, from inputs and class indices to all of its tensors."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node, map_arg
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import _disable_current_modes

from whence.core.explanation import Explanation
from whence.core.explanation_io import to_tensors
from whence.core.inputs import Inputs
from whence.core.targets import Logit, Target
from whence.core.trees import Tree, named_leaves
from whence.errors import InputError, ModelError
from whence.graphs.value_guards import value_guards
from whence.lrp.torch_compat.deferred_checks import defer_checks
from whence.lrp.torch_compat.torch_patches import enter_all
from whence.lrp.torch_compat.traced_constants import CONSTANT_READS

HOLDS = "holds"
TRACE_LOCK = threading.Lock()  # torch patches modules globally while it traces
CLOSE = 1e-3  # relative to the largest relevance: the effect of another order of summation
MISMATCH_REASON = "the model is not deterministic, or behaves differently while it is traced"
UNSAFE_VIEWS = {"_unsafe_view", "_reshape_alias", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"}  # not annotated
RANDOM_TAG = torch.Tag.nondeterministic_seeded

ExplainFunction = Callable[[Tree, Target], Explanation]
Sizes = Mapping[str, Collection[int]]  # dynamic dimensions of the tensors, by name


@dataclass(frozen=True, eq=False)
class TracedExplanation:
    """A traced explanation, whose graph maps tensors in the order of `input_tensors` to tensors by name.

    Among its outputs is `holds`: whether all checks passed, that is, the explanation would have raised no error.
    """

    graph: GraphModule
    like: Explanation  # the traced explanation, whose names and settings apply to all
    read_weights: tuple[Tensor, ...] = ()  # that the model read as Python values


def trace(explained: ExplainFunction, inputs: Inputs, target: Target, sizes: Sizes | None = None) -> TracedExplanation:
    """Trace `explained(inputs, target)` for tensors of the same shapes, or with dynamic `sizes`.

    Weights are referenced, not copied. Raises `ModelError` for data-dependent control flow, and for sizes that cannot be
    dynamic.
    """
    given = input_tensors(inputs, target)
    made: list[Explanation] = []
    constants: list[Tensor] = []

    def program(*tensors: Tensor) -> dict[str, Tensor]:
        named = dict(zip(given, tensors, strict=True))
        with defer_checks() as conditions, value_guards() if sizes is None else nullcontext([]) as read:
            e = explained(*_with_tensors(inputs, target, named))
            found = {name: t.detach() for name, t in to_tensors(e).items()}
            found[HOLDS] = _all_hold(conditions)
            constants.extend(read)
        made.append(e)
        return found

    tracing_mode = "real" if sizes is None else "fake"
    with TRACE_LOCK, enter_all(_without_fast_path(), _one_fake_mode()), _tensors(given, sizes) as tensors:
        graph = make_fx(program, CONSTANT_READS, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(*tensors)
    _check_writes_nothing(graph.graph)
    _name_inputs(graph.graph, list(given))
    _merge_repeated_constants(graph)
    return TracedExplanation(graph, made[-1], tuple({id(t): t for t in constants}.values()))


@contextmanager
def _one_fake_mode() -> Iterator[None]:
    """Describe all traced values in one fake mode; torch makes a mode for each, with a stack trace, in half of the time."""
    original = getattr(proxy_tensor, "extract_val", None)
    if original is None:  # renamed in this torch version
        yield
        return
    context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))

    def extract_val(*args: Any, **kwargs: Any) -> Any:
        with tracing(context):
            return original(*args, **kwargs)

    setattr(proxy_tensor, "extract_val", extract_val)  # noqa: B010
    try:
        yield
    finally:
        setattr(proxy_tensor, "extract_val", original)  # noqa: B010


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Disable the fast path of `nn.TransformerEncoder`, which decides by the values of a padding mask whether it applies.

    No explanation takes it, since it has no gradients.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def input_tensors(inputs: Inputs, target: Target) -> dict[str, Tensor]:
    """Return the tensors that change from call to call, by name: those of the inputs, and the indices of the target."""
    if inputs.arrays:
        raise ModelError("functions of NumPy arrays cannot be captured as a graph; pass a model made of torch functions")
    called = ("x",) if inputs.single else inputs.names or tuple(f"x{i}" for i in range(len(inputs.parts)))
    found = {name: part for name, part in zip(called, inputs.parts, strict=True) if isinstance(part, Tensor)}
    clashing = {"target", "rather_than"} & set(found)
    if clashing:
        raise InputError(
            f"the input name {clashing.pop()!r} is reserved for class indices; wrap the model and rename the input"
        )
    logit = Logit(target) if isinstance(target, Tensor) else target
    if isinstance(logit, Logit):
        indices = {"target": logit.index, "rather_than": logit.rather_than}
        found |= {name: index for name, index in indices.items() if isinstance(index, Tensor)}
    return found


def check_equal(found: Mapping[str, Tensor], e: Explanation, tolerance: float = CLOSE) -> None:
    """Raise `ModelError` if the outputs of a graph differ from the explanation."""
    wanted = to_tensors(e)
    largest = max(float(t.abs().max()) for t in (e.output, *named_leaves(e.relevance).values()))
    for name in wanted.keys() & found.keys():
        t = wanted[name].double()
        if not t.numel():
            continue
        off = float((found[name].to(t) - t).abs().max())
        if not off <= tolerance * max(largest, float(t.abs().max())):
            raise ModelError(
                f"the graph returns different values of {name} than explain() (error {off:.1e}, for {len(e)} samples): "
                f"{MISMATCH_REASON}"
            )


def fold_constants(written: GraphModule) -> GraphModule:
    """Return the graph with everything that depends on constants alone, such as weights, computed in advance."""
    graph = Graph()
    graph.output(graph.graph_copy(written.graph, {}))
    values = _constants(graph, written)
    root = torch.nn.Module()
    for number, node in enumerate(list(values)):
        if isinstance(values[node], Tensor) and any(user not in values for user in node.users):
            name = str(node.target) if node.op == "get_attr" else f"constant_{number}"
            root.register_buffer(name, values[node].detach())
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(name), delete_user_cb=lambda user: user not in values)
    for node in reversed(list(values)):
        if not node.users:
            graph.erase_node(node)
    return GraphModule(root, graph)


def _constants(graph: Graph, root: GraphModule) -> dict[Node, Any]:
    """Return the values of all nodes that do not depend on inputs and are not modified in place."""
    values: dict[Node, Any] = {}
    kept = _mutated_nodes(graph)
    with torch.no_grad(), _disable_current_modes():
        for node in graph.nodes:
            target: Any = node.target
            if node.op == "get_attr":
                values[node] = getattr(root, target)
            elif node.op == "call_function" and node not in kept and _is_constant(node, values):
                values[node] = target(*map_arg(node.args, values.__getitem__), **map_arg(node.kwargs, values.__getitem__))
    return values


def _is_constant(node: Node, values: Mapping[Node, Any]) -> bool:
    if not all(before in values for before in node.all_input_nodes):
        return False
    return node.target is getitem or RANDOM_TAG not in getattr(node.target, "tags", ())


def _mutated_nodes(graph: Graph) -> set[Node]:
    """Return the nodes whose values are modified in place, and the nodes that they are views of."""
    open_ends = [given for node in graph.nodes for given in _aliases(node, written=True)]
    found: set[Node] = set()
    for node in open_ends:  # grows during iteration
        if node not in found:
            found.add(node)
            open_ends += node.all_input_nodes if node.target is getitem else _aliases(node)
    return found


def _check_writes_nothing(graph: Graph) -> None:
    if any(node.op == "get_attr" for node in _mutated_nodes(graph)):
        raise ModelError(
            "the model modifies one of its tensors (a buffer, a cache) in place in the forward pass; cannot capture as one "
            "graph"
        )


def _aliases(node: Node, written: bool = False) -> list[Node]:
    """Return the arguments of which a function returns views, or those it modifies in place if `written`."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    if schema.name.removeprefix("aten::") in UNSAFE_VIEWS and not written:
        return _nodes(node.args[0])
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    aliases = {a.name for a in schema.arguments if a.alias_info is not None and (a.alias_info.is_write or not written)}
    return [n for name in aliases & given.keys() for n in _nodes(given[name])]


def _nodes(argument: Any) -> list[Node]:
    found: list[Node] = []
    map_arg(argument, found.append)
    return found


def _tensors(given: Mapping[str, Tensor], sizes: Sizes | None) -> AbstractContextManager[list[Tensor]]:
    """Return a context with the tensors to trace: the given ones, or symbolic ones of dynamic sizes."""
    if sizes is None:  # one tensor for each input, even if the same one is given twice
        return nullcontext([t.detach() for t in given.values()])
    from whence.graphs.dynamic_shapes import symbolic_tensors  # slow to import

    return symbolic_tensors(given, sizes)


def _with_tensors(inputs: Inputs, target: Target, named: Mapping[str, Tensor]) -> tuple[Tree, Target]:
    tensors = iter(named.values())
    parts = {i: next(tensors) if isinstance(part, Tensor) else part for i, part in enumerate(inputs.parts)}
    if isinstance(target, Logit):
        target = replace(
            target, index=named.get("target", target.index), rather_than=named.get("rather_than", target.rather_than)
        )
    return inputs.together(parts), named["target"] if isinstance(target, Tensor) else target


def _all_hold(conditions: Sequence[Tensor]) -> Tensor:
    """Return whether all conditions hold, which may be on several devices."""
    if not conditions:
        return torch.ones((), dtype=torch.bool)
    return torch.stack([condition.to(conditions[0].device) for condition in conditions]).all()


def _name_inputs(graph: Graph, names: Sequence[str]) -> None:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, names, strict=True):
        node.target = node.name = name


def _merge_repeated_constants(graph: GraphModule) -> None:
    """Merge the nodes that read the same tensor of the model."""
    first: dict[int, Node] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            kept = first.setdefault(id(value), node)
            if kept is not node:
                node.replace_all_uses_with(kept)
                graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
