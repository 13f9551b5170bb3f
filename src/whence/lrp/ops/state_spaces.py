"""State spaces that cut what they need out of one tensor: Mamba-2 and its kin."""

from typing import Any

from torch import Tensor

from whence.lrp.engine.calls import Call
from whence.lrp.engine.op_context import OpContext
from whence.lrp.rules.rules import Constant

PARAMETERS = ("A_log", "dt_bias", "D")  # as every Mamba-2 names them


def state_space_parts(x: Tensor, sizes: list[int], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """The selector of the cut into values, B and C: `Constant()` holds B and C, so that relevance takes the way of the values.

    Both depend on the input, as a gate does. Were they data, the three factors of C · B · x would be halved in the order in
    which chunks of the sequence are multiplied (MambaLRP, Rezaei Jafari et al. 2024).
    """
    values, b, c = x.split(sizes, dim)
    return values, b, c


def split_parts(bench: OpContext, call: Call) -> Any:
    """A cut into parts: the gradient is right; B and C of a state space are constant where a rule says so."""
    out = call.run()
    if len(out) != 3 or not _in_state_space(bench) or out[1].shape != out[2].shape:
        return out
    if not isinstance(bench.function_rule(state_space_parts.__name__), Constant):
        return out
    values, b, c = out
    bench.hold("B and C of the state space")
    return values, b.detach(), c.detach()


def _in_state_space(bench: OpContext) -> bool:
    return all(hasattr(bench.scope.place.module, name) for name in PARAMETERS)
