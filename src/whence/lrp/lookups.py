"""Token ids and the tables they are looked up in: an id has no gradient, the vector found for it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from whence.errors import TOO_NARROW, InputError, ModelError
from whence.lrp.calls import Call, tensors

TABLES = ("embedding", "getitem", "index_select")
JOINS = frozenset({"cat", "stack", "meshgrid", "broadcast_tensors"})
KEEPS_PLACES = frozenset({"where", "masked_fill", "clamp", "add", "sub", "mul", "remainder", "fmod", "int", "long"})
NOWHERE = -1


@dataclass(frozen=True)
class Lookup:
    """Vectors found in a table, leaves of the explanation, and where in the inputs the id of each stands."""

    vectors: Tensor  # [..., d]
    places: Tensor  # [...], counted through all ids of all inputs
    find: Callable[[Tensor], Tensor]  # the vectors of other ids [...] in the same table
    difference: Tensor | None = None  # from where a path to them began, [..., d]


Alter = Callable[[Lookup], Lookup]  # other vectors in place of those found: a step on the way to them, noise added


class Lookups:
    """Follows the integer inputs of one forward pass to where they are looked up."""

    def __init__(self, ids: Mapping[int, Tensor], alter: Alter | None = None):
        self._alter = alter
        self.found: list[Lookup] = []
        self.given = {i: t.clone() for i, t in ids.items()}  # one tensor may be given twice, and a network may overwrite it
        self._places: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        start = 0
        for t in self.given.values():
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
        if not self.given:
            return function(*args, **kwargs)
        known = {id(t): places for t in tensors((args, kwargs)) if (places := self._places.get(t)) is not None}
        if not known:
            return function(*args, **kwargs)
        call = Call.of(function, args, kwargs)
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
        sizes = [t.numel() for t in self.given.values()]
        flat = relevance[0].new_zeros(sum(sizes))
        reached = torch.zeros_like(flat, dtype=torch.bool)
        for lookup, r in zip(self.found, relevance, strict=True):
            known = lookup.places != NOWHERE
            places, score = lookup.places[known], r.reshape(*lookup.places.shape, -1).sum(-1)[known]
            flat.index_add_(0, places.to(flat.device), score.to(flat))
            reached[places.to(flat.device)] = True
        parts = zip(self.given.items(), flat.split(sizes), reached.split(sizes), strict=True)
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
        found = Lookup(call.run().detach(), known[id(ids)], lambda others: call.run_with({id(ids): others}).detach())
        return found if self._alter is None else self._alter(found)

    def _follow(self, call: Call, known: dict[int, Tensor], out: Any) -> None:
        """Ids that are moved about, joined, padded or renumbered keep their places."""
        if call.overwrites or not any(not t.is_floating_point() for t in tensors(out)):
            return
        table, ids = _table_and_ids(call) if call.name in TABLES else (None, None)
        if ids is not None and id(ids) in known and id(table) not in known:
            if out.shape == ids.shape:  # a table of numbers: the vocabulary renumbered
                self._places[out] = known[id(ids)]
        elif call.name in JOINS:
            others = {id(t): torch.full_like(t, NOWHERE) for t in tensors((call.args, call.kwargs))}
            self._move(out, call.run_with(others | known))
        elif call.facts.moves:
            (source,) = call.bind("input")  # alone: what it is indexed by stays
            if id(source) in known:
                self._move(out, call.run_with({id(source): known[id(source)]}))
        elif call.name == "pad":
            ids, pad, mode, _ = call.bind("input pad mode value", mode="constant", value=0)
            self._places[out] = torch.nn.functional.pad(known[id(ids)], pad, mode, NOWHERE if mode == "constant" else None)
        elif call.name in KEEPS_PLACES:
            places = next(iter(known.values()))  # of the ids, if a mask that was given follows them
            if out.shape == places.shape:
                self._places[out] = places

    def _move(self, out: Any, moved: Any) -> None:
        for t, places in zip(tensors(out), tensors(moved), strict=True):
            self._places[t] = places


def _table_and_ids(call: Call) -> tuple[Any, Any]:
    if call.name == "embedding":
        ids, table = call.bind("input weight")
    elif call.name == "getitem":
        table, ids = call.args
        if isinstance(ids, tuple) and ids and all(part == slice(None) for part in ids[1:]):
            ids = ids[0]
    else:
        table, dim, ids = call.bind("input dim index")
        table = table if dim == 0 else None
    return table, ids
