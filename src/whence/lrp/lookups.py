"""Token ids and the tables they are looked up in: an id has no gradient, the vector found for it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from whence.errors import TOO_NARROW, InputError, ModelError
from whence.lrp.functions import Call, function_name, tensors
from whence.lrp.operations import MOVES_VALUES

TABLES = ("embedding", "getitem", "index_select")
MOVES = frozenset(MOVES_VALUES) | {"cat", "stack"}
KEEPS_PLACES = frozenset({"where", "masked_fill", "clamp", "add", "sub", "mul", "remainder", "fmod", "int", "long"})
NOWHERE = -1


@dataclass(frozen=True)
class Lookup:
    """Vectors found in a table, leaves of the explanation, and where in the inputs the id of each stands."""

    vectors: Tensor  # [..., d]
    places: Tensor  # [...]


class Lookups:
    """Follows the integer inputs of one forward pass to where they are looked up."""

    def __init__(self, ids: Mapping[int, Tensor]):
        self.found: list[Lookup] = []
        self._ids = dict(ids)
        self._places: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        start = 0
        for t in ids.values():
            self._places[t] = torch.arange(start, start + t.numel(), device=t.device).view(t.shape)
            start += t.numel()

    def run(
        self,
        function: Callable[..., Any],
        args: tuple,
        kwargs: dict,
        record: bool = True,
        see: Callable[[Tensor], None] = lambda found: None,
    ) -> Any:
        """The call's value; what is looked up is a leaf of its own, which `see` is shown and the record gets."""
        known = {id(t): places for t in tensors((args, kwargs)) if (places := self._places.get(t)) is not None}
        if not known:
            return function(*args, **kwargs)
        call = Call(function, function_name(function), args, kwargs, ())
        lookup = self._look_up(call, known) if call.name in TABLES else None
        if lookup is None:
            out = call.run()
            self._follow(call, known, out)
            return out
        if not torch.is_grad_enabled():
            return lookup.vectors
        lookup.vectors.requires_grad_()
        if record:
            self.found.append(lookup)
        given = lookup.vectors.clone()  # a network may overwrite what it looks up
        see(given)
        return given

    def scores(self, relevance: Sequence[Tensor]) -> dict[int, Tensor]:
        """One score an id, from the relevance of each of the found vectors: summed over its numbers and its look-ups."""
        if not self.found:
            return {}
        count = sum(t.numel() for t in self._ids.values())
        summed = [r.sum(-1).flatten() for r in relevance]
        flat, reached = summed[0].new_zeros(count), torch.zeros(count, dtype=torch.bool)
        for lookup, score in zip(self.found, summed, strict=True):
            places = lookup.places.flatten()
            known = places != NOWHERE
            flat.index_add_(0, places[known].to(flat.device), score[known].to(flat))
            reached[places[known].cpu()] = True
        parts = zip(
            self._ids.items(), *(t.split([i.numel() for i in self._ids.values()]) for t in (flat, reached)), strict=True
        )
        return {i: part.view(t.shape) for (i, t), part, looked_up in parts if looked_up.any()}

    def _look_up(self, call: Call, known: dict[int, Tensor]) -> Lookup | None:
        table, ids = _table_and_ids(call)
        if not isinstance(table, Tensor) or not table.is_floating_point() or id(ids) not in known:
            return None
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(table):
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise InputError(f"id {wrong} is out of the vocabulary of {len(table)}; use the model's own tokenizer")
        if table.dtype == torch.float16:
            raise ModelError(f"the model is in float16, {TOO_NARROW}; use model.bfloat16() or model.float()")
        return Lookup(call.run().detach(), known[id(ids)])

    def _follow(self, call: Call, known: dict[int, Tensor], out: Any) -> None:
        """Ids that are moved about, merged, or changed in place of one another keep their places."""
        if call.overwrites or not any(isinstance(t, Tensor) and not t.is_floating_point() for t in tensors(out)):
            return
        if call.name in MOVES:
            others = {id(t): torch.full_like(t, NOWHERE) for t in tensors((call.args, call.kwargs)) if id(t) not in known}
            moved = call.run_with(others | known)
            for t, places in zip(tensors(out), tensors(moved), strict=True):
                self._places[t] = places
        elif call.name == "pad":
            ids, pad, mode, _ = call.bind("input pad mode value", mode="constant", value=0)
            self._places[out] = torch.nn.functional.pad(known[id(ids)], pad, mode, NOWHERE if mode == "constant" else None)
        elif call.name in KEEPS_PLACES:
            places = next(iter(known.values()))
            if len(known) == 1 and out.shape == places.shape:
                self._places[out] = places


def _table_and_ids(call: Call) -> tuple[Any, Any]:
    if call.name == "embedding":
        ids, table = call.bind("input weight")
    elif call.name == "getitem":
        table, ids = call.args
    else:
        table, _, ids = call.bind("input dim index")
    return table, ids
