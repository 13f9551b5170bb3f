"""Functions of the scores of a sigmoid or softmax whose results still have logits: selection, joining, products."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from whence.lrp.engine.function_calls import Call, iter_tensors

Flow = Callable[[Mapping[int, Tensor]], Sequence[Tensor]]  # from the logits by id of their scores to those of the results
JOINS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack"})
SORTS = frozenset({"topk", "sort", "max", "min"})  # of which the results are values and indices
LARGEST = frozenset({"amax", "amin"})
MASKS = frozenset({"where", "masked_fill"})  # in which other values take the places of some
# a constant factor or power and a limit do not change the order of scores, only their scale
SAME_ORDER = frozenset({"sqrt", "clamp", "clip", "pow", "mul", "div"})
FLOWS = JOINS | SORTS | LARGEST | MASKS | SAME_ORDER


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
    if call.name in JOINS | MASKS:
        return lambda logits: list(iter_tensors(call.run_with(dict(logits))))
    if call.name == "mul" and len(scores) == 2:  # σ(a) · σ(b): ln of it is about a + b where both are small
        return lambda logits: [sum(logits.values())]  # type: ignore[list-item]
    if call.name == "mul":  # with a constant, on either side
        other = [t for t in iter_tensors((call.args, call.kwargs)) if id(t) not in scores]
        (key,) = scores
        return None if any(t.requires_grad or (t < 0).any() for t in other) else lambda logits: [logits[key].expand_as(out)]
    first = call.bind("input", input=None)[0]
    if id(first) not in scores:  # as in x.expand_as(scores), 1 / scores
        return None
    if call.facts.moves:
        return lambda logits: list(iter_tensors(call.run_with(dict(logits))))
    if call.name in SAME_ORDER:
        others = [t for t in iter_tensors((call.args, call.kwargs)) if t is not first]
        return None if others else lambda logits: [logits[id(first)]]
    if call.name in LARGEST:
        dim, kept = call.bind("input dim keepdim", dim=(), keepdim=False)[1:]
        if not isinstance(dim, int):
            return None
        places = (first.argmax if call.name == "amax" else first.argmin)(dim, keepdim=True)
        return lambda logits: [_taken(logits[id(first)], dim, places, kept)]
    if call.name in SORTS and isinstance(out, tuple):
        names = "input k dim" if call.name == "topk" else "input dim"
        dim, indices = call.bind(names, k=None, dim=-1)[-1], out[1]
        kept = indices.dim() == first.dim()
        return lambda logits: [_taken(logits[id(first)], dim, indices if kept else indices.unsqueeze(dim), kept)]
    return None


def _taken(logits: Tensor, dim: int, places: Tensor, kept: bool) -> Tensor:
    """Return the logits at some places along a dimension, which is kept or not."""
    found = logits.gather(dim, places)
    return found if kept else found.squeeze(dim)
