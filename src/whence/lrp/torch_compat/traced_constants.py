"""Values that control flow may depend on while a graph is traced: those that are the same for every input, or guarded."""

import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Node, map_arg
from torch.fx.experimental import proxy_tensor
from torch.utils._python_dispatch import _disable_current_modes

from whence.errors import ModelError
from whence.lrp.torch_compat.deferred_checks import check_holds

SHAPE_ONLY = frozenset({"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"})
INTERNAL_PATHS = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parents[2]),
)  # files of torch and whence, whose code is not the model's
SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


_guarding = threading.local()


@contextmanager
def guard_reads() -> Iterator[list[Tensor]]:
    """Record integers and truth values that are read from inputs as conditions of the graph, instead of refusing them.

    Yields the list of the weights, and other constants, whose values are read.
    """
    before, _guarding.constants = getattr(_guarding, "constants", None), []
    try:
        yield _guarding.constants
    finally:
        _guarding.constants = before


def read_values(t: Tensor) -> Tensor:
    """Return the values of a tensor while a graph is traced.

    They are constants if they depend on no graph input except by its sizes. Others become conditions of the graph within
    `guard_reads` if they are integers or truth values, and raise `ModelError` otherwise.
    """
    mode = proxy_tensor.get_innermost_proxy_mode()
    if mode is None:
        return t
    node = proxy_tensor.get_proxy_slot(t, mode.tracer, None, lambda slot: slot.proxy.node)  # type: ignore[call-overload]
    values: dict[Node, Any] = {}
    constants: list[Tensor] | None = getattr(_guarding, "constants", None)
    try:
        with torch.no_grad(), _disable_current_modes():
            for needed in [] if node is None else _ancestors(node):
                values[needed] = _evaluate(needed, values, mode.tracer.root)
            if constants is not None:
                constants += [t] if node is None else [v for n, v in values.items() if n.op == "get_attr"]
            return t if node is None else values[node]
    except ModelError:
        if constants is None or t.is_floating_point() or t.is_complex():
            raise
    with _disable_current_modes():
        found = t.detach().clone()
    check_holds(t == found)
    return found


def _item(t: Tensor) -> Any:
    found = read_values(t)
    with torch.no_grad(), _disable_current_modes():
        return found.item()


def _ancestors(node: Node) -> list[Node]:
    """Return the nodes needed to compute a node, in order, with itself last."""
    needed, open_ends = {node}, [node]
    for end in open_ends:  # extended in the loop
        new = [before for before in _inputs_of(end) if before not in needed]
        needed.update(new)
        open_ends += new
    return [n for n in node.graph.nodes if n in needed]


def _inputs_of(node: Node) -> list[Node]:
    """Return the nodes whose values a node reads."""
    if isinstance(node.meta.get("val"), SYMBOLS):
        return []
    return [n for n in node.all_input_nodes if not (_depends_on_shape_only(node) and isinstance(n.meta.get("val"), Tensor))]


def _depends_on_shape_only(node: Node) -> bool:
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.removeprefix("aten::") in SHAPE_ONLY


def _evaluate(node: Node, values: Mapping[Node, Any], root: Any) -> Any:
    like = node.meta.get("val")
    if isinstance(like, SYMBOLS):
        return like.node.hint
    if node.op == "placeholder":
        raise ModelError(f"data-dependent control flow at {user_code_line()}; cannot capture as one graph")
    target: Any = node.target
    if node.op == "get_attr":
        return getattr(root, target)

    def of(n: Node) -> Any:
        if n in values:
            return values[n]
        like = n.meta["val"]  # only its sizes are read
        return torch.empty(
            [d.node.hint if isinstance(d, SymInt) else d for d in like.shape], dtype=like.dtype, device=like.device
        )

    return target(*map_arg(node.args, of), **map_arg(node.kwargs, of))


def user_code_line(frames: Sequence[traceback.FrameSummary] | None = None) -> str:
    """Return FILE:LINE of the innermost frame outside torch and whence, by default of the current stack."""
    for frame in reversed(traceback.extract_stack() if frames is None else frames):
        if not frame.filename.startswith((*INTERNAL_PATHS, "<")):
            return f"{frame.filename}:{frame.lineno}"
    return "an unknown line"


CONSTANT_READS = {
    torch.ops.aten._local_scalar_dense.default: _item,
    torch.ops.aten.equal.default: lambda a, b: a.shape == b.shape and _item((a == b).all()),
    torch.ops.aten.allclose.default: lambda a, b, *given, **named: _item(torch.isclose(a, b, *given, **named).all()),
}  # for make_fx
