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


def can_flow(call: Call) -> bool:
    """Return whether the results of a call may have logits."""
    return call.facts.moves or call.name in JOINS or call.name in SORTS or call.name in SAME_ORDER or call.name in PRODUCTS


def flow_of_logits(call: Call, out: Any, scores: Mapping[int, Any]) -> Flow | None:
    """Return how the logits of a call's results follow from those of its arguments; None if they do not.

    Args:
        call: The call, whose arguments are not explained: they are outputs of sigmoids, or constants.
        out: Its result.
        scores: Its arguments that are scores, by id.
    """
    if call.facts.moves or call.name in JOINS:
        return lambda logits: list(iter_tensors(call.run_with(dict(logits))))
    first = next((t for t in call.args if isinstance(t, Tensor)), None)
    if id(first) not in scores:
        return None
    if call.name in SAME_ORDER:
        return lambda logits: [logits[id(first)]]
    if call.name in SORTS and isinstance(out, tuple):
        dim, indices = _dimension(call), out[1]
        return lambda logits: [logits[id(first)].gather(dim, indices)]
    if call.name in PRODUCTS and len(scores) == 2:  # σ(a) · σ(b): ln of it is about a + b where both are small
        return lambda logits: [sum(logits.values())]  # type: ignore[list-item]
    return None


def _dimension(call: Call) -> int:
    named = call.kwargs.get("dim")
    place = 2 if call.name == "topk" else 1
    given = named if named is not None else call.args[place] if len(call.args) > place else -1
    return given if isinstance(given, int) and not isinstance(given, bool) else -1
