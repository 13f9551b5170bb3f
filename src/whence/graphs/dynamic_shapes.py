"""Tensors whose sizes may vary: what a graph is written of that is to serve batches, pictures and texts of other sizes."""

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

GUARD_SOURCES = ("/fx/experimental/", "/torch/__init__.py", "/_dynamo/", "/utils/")  # of torch, on the way from who asks


class StrictShapeEnv(ShapeEnv):
    """Remembers where a size that was to vary is taken as a number."""

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
    """Tensors like the given without their values, of `sizes` that may vary.

    Raises `ModelError`, at the end, for sizes that were taken as numbers, and for what depends on values.
    """
    environment = StrictShapeEnv()
    fake = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    tensors = [_symbolic_like(t, name, sizes.get(name, ()), fake) for name, t in given.items()]
    try:
        # other kernels of attention are those of one machine; without Python's dispatcher C++ would read sizes as numbers
        with sdpa_kernel(SDPBackend.MATH), enable_python_dispatcher():
            yield tensors
    except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode) as error:
        raise ModelError(
            "how many numbers are computed depends on the values of tensors (x[mask], nonzero, unique), in "
            f"{user_code_line(traceback.extract_tb(error.__traceback__))}: there is no one graph of it"
        ) from error
    for name, t in zip(given, tensors, strict=True):
        for d in sizes.get(name, ()):
            _check_varies(name, d, t.shape[d], environment)
    if environment.decided_in:
        raise ModelError(f"the model decides by sizes that vary, in {environment.decided_in[0]}: there is no one graph of it")


def _line_of_guard() -> str:
    """The line that asked, if it is neither torch's nor ours."""
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
        where = "" if isinstance(size, int) else f", in {environment.fixed_in.get(size.node._expr, 'a line of its own')}"
        raise ModelError(
            f"size {d} of '{name}' cannot vary: the model takes it as the number {fixed}{where}; write x.shape[0] for len(x), "
            "and no int(…) around sizes"
        )
