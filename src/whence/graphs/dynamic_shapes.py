"""Symbolic tensors, from which graphs with dynamic batch, image and text sizes are traced."""

import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.errors import ModelError
from whence.lrp.torch_compat.traced_constants import INTERNAL_PATHS, user_code_line

GUARD_SOURCES = (
    "/fx/experimental/",
    "/torch/__init__.py",
    "/_dynamo/",
    "/utils/",
)  # torch's frames between the guard and the code that caused it


class StrictShapeEnv(ShapeEnv):
    """A shape environment that records the lines that specialise a dynamic size to a number."""

    def __init__(self):
        super().__init__(duck_shape=False)
        self.fixed_in: dict[Any, str] = {}
        self.decided_in: list[str] = []  # lines of the model that branch on a size

    def evaluate_expr(self, *args: Any, **kwargs: Any) -> Any:
        before = len(self.guards)
        found = super().evaluate_expr(*args, **kwargs)
        if len(self.guards) > before and (line := _line_of_guard()):
            self.decided_in.append(line)
        return found

    def _set_replacement(self, a: Any, tgt: Any, msg: str) -> None:
        if getattr(tgt, "is_number", False):
            self.fixed_in.setdefault(a, user_code_line())
        super()._set_replacement(a, tgt, msg)


@contextmanager
def symbolic_tensors(given: Mapping[str, Tensor], sizes: Mapping[str, Collection[int]]) -> Iterator[list[Tensor]]:
    """Yield tensors without values like the given ones, whose dimensions in `sizes` are dynamic.

    Raises `ModelError`, at the end of the block, for dynamic sizes that were specialised to numbers, and for shapes or control
    flow that depend on values.
    """
    environment = StrictShapeEnv()
    fake = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    tensors = [_symbolic_like(t, name, sizes.get(name, ()), fake) for name, t in given.items()]
    try:
        # other attention kernels are specific to a machine; without Python's dispatcher, C++ would specialise the sizes
        with sdpa_kernel(SDPBackend.MATH), enable_python_dispatcher():
            yield tensors
    except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode) as error:
        raise ModelError(
            "data-dependent shape or control flow (such as x[mask], nonzero, unique) at "
            f"{user_code_line(traceback.extract_tb(error.__traceback__))}; cannot capture as one graph"
        ) from error
    for name, t in zip(given, tensors, strict=True):
        for d in sizes.get(name, ()):
            _check_varies(name, d, t.shape[d], environment)
    if environment.decided_in:
        raise ModelError(f"control flow depends on a dynamic size at {environment.decided_in[0]}; cannot capture as one graph")


def _line_of_guard() -> str:
    """Return the line of user code that caused a guard; empty if it is in torch or whence."""
    for frame in reversed(traceback.extract_stack()[:-1]):
        if frame.filename.startswith(INTERNAL_PATHS[0]) and any(part in frame.filename for part in GUARD_SOURCES):
            continue
        if frame.filename == __file__:
            continue
        return "" if frame.filename.startswith(INTERNAL_PATHS) else f"line {frame.lineno} of {frame.filename}"
    return ""


def _symbolic_like(t: Tensor, name: str, sizes: Collection[int], fake: FakeTensorMode) -> Tensor:
    kinds = [DimDynamic.DYNAMIC if d in sizes else DimDynamic.STATIC for d in range(t.dim())]
    return fake.from_tensor(t, symbolic_context=StatelessSymbolicContext(kinds), source=ConstantSource(name))


def _check_varies(name: str, d: int, size: Any, environment: StrictShapeEnv) -> None:
    fixed = size if isinstance(size, int) else size.node.maybe_as_int()
    if fixed is not None:
        where = "" if isinstance(size, int) else f" at {environment.fixed_in.get(size.node._expr, 'an unknown line')}"
        raise ModelError(
            f"dimension {d} of '{name}' cannot be dynamic: the model specialises it to the number {fixed}{where}; write "
            "x.shape[0] instead of len(x), and do not convert sizes with int(…)"
        )
