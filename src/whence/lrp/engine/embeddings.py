"""Embedding look-ups of token ids: an id has no gradient, the vector that it selects has one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from whence.errors import TOO_NARROW, InputError, ModelError
from whence.lrp.engine.embedding_bags import pool_bags
from whence.lrp.engine.function_calls import Call, iter_tensors
from whence.lrp.torch_compat.deferred_checks import check_holds
from whence.lrp.torch_compat.saved_tensors import with_backward_of

TABLES = ("embedding", "embedding_bag", "getitem", "index_select")
CASTS = frozenset({"float", "double", "half", "bfloat16", "to", "type", "type_as"})
JOINS = frozenset({"cat", "stack", "meshgrid", "broadcast_tensors"})
KEEPS_POSITIONS = frozenset({"where", "masked_fill", "clamp", "add", "sub", "mul", "remainder", "fmod", "int", "long"})
# queries of one-hot vectors, through which no relevance passes
QUERIES = frozenset({"argmax", "argmin", "numel", "dim", "size", "detach", "one_hot"})
NO_POSITION = -1


@dataclass(frozen=True)
class Lookup:
    """Vectors that were looked up in a table, leaves of the graph, and the position of the id of each in the inputs."""

    vectors: Tensor  # [..., d]
    places: Tensor  # [...], index of the id among all ids of all inputs
    find: Callable[[Tensor], Tensor]  # ids [...] -> their vectors in the same table
    difference: Tensor | None = None  # from the start of an integration path to them, [..., d]


class BaselineOutsideVocabulary(InputError):
    """A token id of a baseline that is no row of the table of embeddings."""


AlterLookup = Callable[[Lookup], Lookup]  # replaces the vectors: by a point on the path to them, by noisy ones


class EmbeddingLookups:
    """Tracker of the integer inputs of one forward pass, up to their look-ups."""

    def __init__(self, ids: Mapping[int, Tensor], alter: AlterLookup | None = None):
        self._alter = alter
        self.found: list[Lookup] = []
        # copies: one tensor may be passed twice, and a model may modify it in place
        self.given = {i: t.clone() for i, t in ids.items()}
        self._places: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        # class indices that the components of one-hot vectors stand for
        self._classes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
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
        """Return the call's value; looked-up vectors become leaves, which are recorded and passed to `see`."""
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
            given = lookup.vectors.clone()  # a network may modify looked-up vectors in place
        out = self._as_the_call_gives(call, given)
        if out.requires_grad:
            see(out)
        return out

    def scores(self, relevance: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return one score per id: the relevance of its vectors, summed over their components and all look-ups of the id."""
        if not self.found:
            return {}
        sizes = [t.numel() for t in self.given.values()]
        flat = relevance[0].new_zeros(1 + sum(sizes))  # index 0 for ids that the model inserts, at NO_POSITION
        reached = torch.zeros_like(flat, dtype=torch.bool)
        for lookup, r in zip(self.found, relevance, strict=True):
            places = lookup.places.flatten().to(flat.device) - NO_POSITION
            flat.index_add_(0, places, r.reshape(places.shape[0], -1).sum(-1).to(flat))
            reached[places] = True
        parts = zip(self.given.items(), flat[1:].split(sizes), reached[1:].split(sizes), strict=True)
        return {i: part.view(t.shape) for (i, t), part, looked_up in parts if looked_up.any()}

    def elsewhere(self, relevance: Sequence[Tensor]) -> list[Tensor]:
        """Return the relevance `[rows, …]` at ids that the model inserts among those of the inputs."""
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
        """Return the look-up of one-hot vectors that are cast to floating point: each acts as its own embedding."""
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
        if not _are_rows(ids, table):
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise InputError(
                f"token id {wrong} is out of range for a vocabulary of size {len(table)}; use the model's own tokenizer"
            )
        if table.dtype == torch.float16:
            raise ModelError(f"the model is in float16, {TOO_NARROW}; use model.bfloat16() or model.float()")
        if call.name == "embedding_bag":
            call.run()  # renormalizes the table in place where max_norm is set
            vectors, look_up = table.detach()[ids], lambda others: table.detach()[others]
        else:
            vectors, look_up = call.run().detach(), lambda others: call.run_with({id(ids): others}).detach()

        def find(others: Tensor) -> Tensor:
            if not _are_rows(others, table):
                raise BaselineOutsideVocabulary(
                    f"the baseline's token id {int(others.max())} is out of range for a vocabulary of size {len(table)}; "
                    "choose an id of the vocabulary"
                )
            return look_up(others)

        return Lookup(vectors, known[id(ids)], find)

    def _as_the_call_gives(self, call: Call, vectors: Tensor) -> Tensor:
        """Return the looked-up vectors in the form that the call returns."""
        if call.name in CASTS:
            return vectors.squeeze(-1)
        if call.name != "embedding_bag":
            return vectors
        pooled = pool_bags(call, vectors)
        return pooled if self._alter is not None else with_backward_of(call.run, pooled)

    def _follow(self, call: Call, known: dict[int, Tensor], out: Any) -> None:
        """Track the positions of ids that are rearranged, concatenated, padded, remapped or one-hot encoded."""
        if call.facts.overwrites or not any(not t.is_floating_point() for t in iter_tensors(out)):
            return
        table, ids = _table_and_ids(call) if call.name in TABLES else (None, None)
        if ids is not None and id(ids) in known and id(table) not in known:
            if out.shape == ids.shape:  # a table of integers: the vocabulary is remapped
                self._places[out] = known[id(ids)]
        elif call.name == "one_hot":
            (places,) = known.values()
            self._places[out] = places[..., None].expand(out.shape)
            self._classes[out] = torch.arange(out.shape[-1], device=out.device).expand(out.shape)
        elif call.name in JOINS:
            others = {id(t): torch.full_like(t, NO_POSITION) for t in iter_tensors((call.args, call.kwargs))}
            self._move(self._places, out, call.run_with(others | known))
        elif call.facts.moves:
            (source,) = call.bind("input")  # only the input; its indices stay
            if id(source) in known:
                self._move(self._places, out, call.run_with({id(source): known[id(source)]}))
                if source in self._classes:
                    self._move(self._classes, out, call.run_with({id(source): self._classes[source]}))
        elif call.name == "pad":
            ids, pad, mode, _ = call.bind("input pad mode value", mode="constant", value=0)
            self._places[out] = torch.nn.functional.pad(known[id(ids)], pad, mode, NO_POSITION if mode == "constant" else None)
        elif call.name in KEEPS_POSITIONS:
            places = next(iter(known.values()))  # those of the ids, if the mask argument follows them
            if out.shape == places.shape:
                self._places[out] = places

    def _check_followed(self, call: Call, out: Any) -> None:
        """Raise `InputError` where an integer function reads one-hot vectors: relevance of their ids would be lost silently."""
        hot = any(t in self._classes for t in iter_tensors((call.args, call.kwargs)))
        if (
            hot
            and isinstance(out, Tensor)
            and out.dtype != torch.bool
            and out not in self._classes
            and call.name not in QUERIES
        ):
            raise InputError(
                f"'{call.name}' got integer one-hot vectors of token ids, which relevance cannot be propagated through; "
                "cast them to floating point first: F.one_hot(ids, n).float()"
            )

    @staticmethod
    def _move(table: WeakTensorKeyDictionary, out: Any, moved: Any) -> None:
        for t, value in zip(iter_tensors(out), iter_tensors(moved), strict=True):
            table[t] = value


def _are_rows(ids: Tensor, table: Tensor) -> bool:
    """Return whether all ids are rows of a table."""
    return not ids.numel() or bool(check_holds((ids >= 0) & (ids < len(table))))


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
