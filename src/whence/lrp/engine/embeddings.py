"""Token ids and the tables they are looked up in: an id has no gradient, the vector found for it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from whence.errors import TOO_NARROW, InputError, ModelError
from whence.lrp.engine.calls import Call, iter_tensors
from whence.lrp.engine.embedding_bags import pool_bags
from whence.lrp.torch_compat.deferred_checks import check_holds
from whence.lrp.torch_compat.saved_tensors import with_backward_of

TABLES = ("embedding", "embedding_bag", "getitem", "index_select")
CASTS = frozenset({"float", "double", "half", "bfloat16", "to", "type", "type_as"})
JOINS = frozenset({"cat", "stack", "meshgrid", "broadcast_tensors"})
KEEPS_POSITIONS = frozenset({"where", "masked_fill", "clamp", "add", "sub", "mul", "remainder", "fmod", "int", "long"})
# what may be asked of one-hot vectors, and is no way on for relevance
QUERIES = frozenset({"argmax", "argmin", "numel", "dim", "size", "detach", "one_hot"})
NO_POSITION = -1


@dataclass(frozen=True)
class Lookup:
    """Vectors found in a table, leaves of the explanation, and where in the inputs the id of each stands."""

    vectors: Tensor  # [..., d]
    places: Tensor  # [...], counted through all ids of all inputs
    find: Callable[[Tensor], Tensor]  # the vectors of other ids [...] in the same table
    difference: Tensor | None = None  # from where a path to them began, [..., d]


AlterLookup = Callable[[Lookup], Lookup]  # other vectors in place of those found: a step on the way to them, noise added


class EmbeddingLookups:
    """Follows the integer inputs of one forward pass to where they are looked up."""

    def __init__(self, ids: Mapping[int, Tensor], alter: AlterLookup | None = None):
        self._alter = alter
        self.found: list[Lookup] = []
        self.given = {i: t.clone() for i, t in ids.items()}  # one tensor may be given twice, and a network may overwrite it
        self._places: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._classes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # that the places of one-hot vectors stand for
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
        known = {id(t): places for t in iter_tensors((args, kwargs)) if (places := self._places.get(t)) is not None}
        if not known:
            return function(*args, **kwargs)
        call = Call.of(function, args, kwargs)
        lookup = self._look_up(call, known)
        if lookup is None:
            out = call.run()
            self._follow(call, known, out)
            self._check_followed(call, out)
            return out
        given = lookup.vectors
        if torch.is_grad_enabled():
            lookup.vectors.requires_grad_()
            if record:
                self.found.append(lookup)
            given = lookup.vectors.clone()  # a network may overwrite what it looks up
        out = self._as_the_call_gives(call, given)
        if out.requires_grad:
            see(out)
        return out

    def scores(self, relevance: Sequence[Tensor]) -> dict[int, Tensor]:
        """One score an id, from the relevance of each of the found vectors: summed over its numbers and its look-ups."""
        if not self.found:
            return {}
        sizes = [t.numel() for t in self.given.values()]
        flat = relevance[0].new_zeros(1 + sum(sizes))  # the first for ids of the network's own, at NOWHERE
        reached = torch.zeros_like(flat, dtype=torch.bool)
        for lookup, r in zip(self.found, relevance, strict=True):
            places = lookup.places.flatten().to(flat.device) - NO_POSITION
            flat.index_add_(0, places, r.reshape(places.shape[0], -1).sum(-1).to(flat))
            reached[places] = True
        parts = zip(self.given.items(), flat[1:].split(sizes), reached[1:].split(sizes), strict=True)
        return {i: part.view(t.shape) for (i, t), part, looked_up in parts if looked_up.any()}

    def elsewhere(self, relevance: Sequence[Tensor]) -> list[Tensor]:
        """Relevance `[rows, …]` at ids that the network put in itself, among the inputs' own."""
        amounts = []
        for lookup, r in zip(self.found, relevance, strict=True):
            own = lookup.places == NO_POSITION
            if own.any():
                amounts.append(r.reshape(*lookup.places.shape, -1).sum(-1) * own.to(r.device))
        return amounts

    def _look_up(self, call: Call, known: dict[int, Tensor]) -> Lookup | None:
        found = self._among_classes(call, known) if call.name in CASTS else self._in_table(call, known)
        return found if found is None or self._alter is None else self._alter(found)

    def _among_classes(self, call: Call, known: dict[int, Tensor]) -> Lookup | None:
        """One-hot vectors of ids become numbers that a network computes with: each is looked up, as it were, by itself."""
        source = call.args[0]
        classes = self._classes.get(source)
        if classes is None:
            return None
        out = call.run()
        if not out.is_floating_point():
            self._places[out], self._classes[out] = known[id(source)], classes
            return None
        return Lookup(out[..., None], known[id(source)], lambda others: (others == classes).to(out)[..., None])

    def _in_table(self, call: Call, known: dict[int, Tensor]) -> Lookup | None:
        table, ids = _table_and_ids(call) if call.name in TABLES else (None, None)
        if (
            not isinstance(table, Tensor)
            or not isinstance(ids, Tensor)
            or not table.is_floating_point()
            or id(ids) not in known
        ):
            return None
        if ids.numel() and not check_holds((ids >= 0) & (ids < len(table))):
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise InputError(f"id {wrong} is out of the vocabulary of {len(table)}; use the model's own tokenizer")
        if table.dtype == torch.float16:
            raise ModelError(f"the model is in float16, {TOO_NARROW}; use model.bfloat16() or model.float()")
        if call.name == "embedding_bag":
            call.run()  # may bring long vectors of the table down to their largest norm
            return Lookup(table.detach()[ids], known[id(ids)], lambda others: table.detach()[others])
        return Lookup(call.run().detach(), known[id(ids)], lambda others: call.run_with({id(ids): others}).detach())

    def _as_the_call_gives(self, call: Call, vectors: Tensor) -> Tensor:
        """What the network is given of the vectors found."""
        if call.name in CASTS:
            return vectors.squeeze(-1)
        if call.name != "embedding_bag":
            return vectors
        pooled = pool_bags(call, vectors)
        return pooled if self._alter is not None else with_backward_of(call.run, pooled)

    def _follow(self, call: Call, known: dict[int, Tensor], out: Any) -> None:
        """Ids that are moved about, joined, padded, renumbered or written as one-hot vectors keep their places."""
        if call.facts.overwrites or not any(not t.is_floating_point() for t in iter_tensors(out)):
            return
        table, ids = _table_and_ids(call) if call.name in TABLES else (None, None)
        if ids is not None and id(ids) in known and id(table) not in known:
            if out.shape == ids.shape:  # a table of numbers: the vocabulary renumbered
                self._places[out] = known[id(ids)]
        elif call.name == "one_hot":
            (places,) = known.values()
            self._places[out] = places[..., None].expand(out.shape)
            self._classes[out] = torch.arange(out.shape[-1], device=out.device).expand(out.shape)
        elif call.name in JOINS:
            others = {id(t): torch.full_like(t, NO_POSITION) for t in iter_tensors((call.args, call.kwargs))}
            self._move(self._places, out, call.run_with(others | known))
        elif call.facts.moves:
            (source,) = call.bind("input")  # alone: what it is indexed by stays
            if id(source) in known:
                self._move(self._places, out, call.run_with({id(source): known[id(source)]}))
                if source in self._classes:
                    self._move(self._classes, out, call.run_with({id(source): self._classes[source]}))
        elif call.name == "pad":
            ids, pad, mode, _ = call.bind("input pad mode value", mode="constant", value=0)
            self._places[out] = torch.nn.functional.pad(known[id(ids)], pad, mode, NO_POSITION if mode == "constant" else None)
        elif call.name in KEEPS_POSITIONS:
            places = next(iter(known.values()))  # of the ids, if a mask that was given follows them
            if out.shape == places.shape:
                self._places[out] = places

    def _check_followed(self, call: Call, out: Any) -> None:
        """Raise where one-hot vectors become other numbers: relevance of their ids would be lost without a word."""
        hot = any(t in self._classes for t in iter_tensors((call.args, call.kwargs)))
        if (
            hot
            and isinstance(out, Tensor)
            and out.dtype != torch.bool
            and out not in self._classes
            and call.name not in QUERIES
        ):
            raise InputError(
                f"one-hot vectors of ids are integers in '{call.name}', where relevance cannot follow them; make them numbers "
                "first: F.one_hot(ids, n).float()"
            )

    @staticmethod
    def _move(table: WeakTensorKeyDictionary, out: Any, moved: Any) -> None:
        for t, value in zip(iter_tensors(out), iter_tensors(moved), strict=True):
            table[t] = value


def _table_and_ids(call: Call) -> tuple[Any, Any]:
    if call.name in ("embedding", "embedding_bag"):
        ids, table = call.bind("input weight")
    elif call.name == "getitem":
        table, ids = call.args
        if isinstance(ids, tuple) and ids and all(part == slice(None) for part in ids[1:]):
            ids = ids[0]
    else:
        table, dim, ids = call.bind("input dim index")
        table = table if dim == 0 else None
    return table, ids
