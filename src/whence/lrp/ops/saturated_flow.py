"""Functions of the scores of a sigmoid or softmax whose results still have logits: selection, joining, products."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from whence.lrp.engine.function_calls import Call, iter_tensors

Flow = Callable[[Mapping[int, Tensor]], Sequence[Tensor]]  # from the logits by id of their scores to those of the results
JOINS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack"})
SORTS = frozenset({"topk", "sort", "max", "min"})  # of which the results are values and indices
PRODUCTS = frozenset({"mul"})
SAME_ORDER = frozenset({"sqrt"})  # the square root of a score has its logit: it only changes the scale
FLOWS = JOINS | SORTS | PRODUCTS | SAME_ORDER


def can_flow(call: Call) -> bool:
    """Return whether the results of a call may have logits."""
    return call.facts.moves or call.name in FLOWS


def flow_of_logits(call: Call, out: Any, scores: Mapping[int, Any]) -> Flow | None:
    """Return how the logits of a call's results follow from those of its arguments; None if they do not.

    Args:
        call: The call.
        out: Its result.
        scores: Its arguments that are scores, by id.
    """
    joins = call.name in JOINS
    first = None if joins else call.bind("input", input=None)[0]
    if not joins and id(first) not in scores:  # as in x.expand_as(scores)
        return None
    if joins or call.facts.moves:
        return lambda logits: list(iter_tensors(call.run_with(dict(logits))))
    if call.name in SAME_ORDER:
        return lambda logits: [logits[id(first)]]
    if call.name in SORTS and isinstance(out, tuple):
        names = "input k dim" if call.name == "topk" else "input dim"
        dim, indices = call.bind(names, k=None, dim=-1)[-1], out[1]
        return lambda logits: [logits[id(first)].gather(dim, indices)]
    if call.name in PRODUCTS and len(scores) == 2:  # σ(a) · σ(b): ln of it is about a + b where both are small
        return lambda logits: [sum(logits.values())]  # type: ignore[list-item]
    return None
