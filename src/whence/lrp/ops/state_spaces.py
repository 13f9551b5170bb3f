"""State-space models that split one tensor into values, B and C: Mamba-2 and similar models."""

from typing import Any

from torch import Tensor

from whence.lrp.engine.function_calls import Call
from whence.lrp.engine.op_context import OpContext
from whence.lrp.rules.rules import Constant

PARAMETERS = ("A_log", "dt_bias", "D")  # names in every Mamba-2 implementation


def state_space_parts(x: Tensor, sizes: list[int], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a tensor into values, B and C; as a selector with `Constant()`, it holds B and C constant.

    Relevance is then propagated to the values alone. B and C depend on the input, as a gate does. If they were data, the three
    factors of C · B · x would be halved in the order in which chunks of the sequence are multiplied (MambaLRP, Rezaei Jafari et
    al. 2024).
    """
    values, b, c = x.split(sizes, dim)
    return values, b, c


def split_parts(bench: OpContext, call: Call) -> Any:
    """Keep the gradient of a split; hold B and C of a state-space model constant if a rule selects them."""
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
