"""Facts about tensors that depend on the input, and how results of calls inherit them from the arguments."""

from collections.abc import Sequence
from numbers import Number
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from whence.lrp.engine.function_calls import Call, iter_tensors
from whence.lrp.engine.propagation import InputCompanion, LinearLink
from whence.lrp.ops.function_names import ARITHMETIC, AVERAGES, COMBINES, PROPORTIONAL, SCALES_PIXELS
from whence.lrp.torch_compat.deferred_checks import known_true


class Facts:
    """Facts about the results of a call."""

    __slots__ = ("companion", "made_of", "nonnegative", "plain", "proportional")

    def __init__(
        self,
        nonnegative: bool = False,
        companion: InputCompanion | None = None,
        made_of: "Sequence[TensorRecord]" = (),
        proportional: bool = False,
    ):
        self.nonnegative, self.companion = nonnegative, companion
        self.made_of = made_of  # records of the tensors that the results are elementwise functions of
        self.proportional = proportional  # to the one tensor in `made_of`
        self.plain = not nonnegative and companion is None  # no fact that arithmetic has to propagate


NO_FACTS = Facts()
BACKWARD_HOOK = "BackwardHookFunctionBackward"  # torch's name for the node


class TensorRecord(ref):
    """The facts about one tensor, valid until it is modified in place, stored with a weak reference to it."""

    __slots__ = ("inherited", "key", "link", "version")

    inherited: Facts
    key: int  # the tensor's id
    link: LinearLink | None  # the linear map it came from
    version: int  # of the tensor


class TensorFacts:
    """Registry of facts by tensor; most tensors have none, and a plain weak reference says that the tensor was registered.

    Records that hold other tensors are removed when their tensor is freed.
    """

    def __init__(self):
        self.by_id: dict[int, ref[Tensor]] = {}
        by_id = self.by_id
        self._forget = lambda dead: by_id.pop(dead.key, None)

    def forget(self) -> None:
        """Discard all records one by one: CPython crashes on freeing long chains of weak references."""
        left = [known for known in self.by_id.values() if type(known) is TensorRecord]
        self.by_id.clear()
        while left:
            known = left.pop()
            left += known.inherited.made_of
            known.inherited, known.link = NO_FACTS, None

    def seen(self, t: Tensor) -> bool:
        """Return whether the tensor was registered."""
        known = self.by_id.get(id(t))
        return known is not None and known() is t

    def plain(self, t: Tensor) -> bool:
        """Return whether the tensor was registered and has no fact that arithmetic has to propagate."""
        known: Any = self.by_id.get(id(t))
        if known is None or known() is not t:
            return False
        return type(known) is ref or (known.link is None and known.inherited.plain)

    def see(self, t: Tensor) -> None:
        """Register the tensor; facts about it stay."""
        known = self.by_id.get(id(t))
        if known is None or known() is not t:
            self.by_id[id(t)] = ref(t)

    def of(self, t: Tensor) -> TensorRecord | None:
        """Return the record that holds for the tensor now, or None."""
        known = self.by_id.get(id(t))
        return known if type(known) is TensorRecord and known() is t and known.version == t._version else None

    def inherited(self, t: Tensor) -> Facts:
        known = self.of(t)
        return NO_FACTS if known is None else known.inherited

    def looked_at(self, t: Tensor) -> Tensor | None:
        """Return the registered tensor that `t` aliases because of torch's module backward hooks, or None."""
        node, place = t.grad_fn, t.output_nr
        while node is not None and node.name() == BACKWARD_HOOK:
            node, place = node.next_functions[place]
        if node is t.grad_fn:
            return None
        living = (known() for known in self.by_id.values())
        return next((s for s in living if s is not None and _made_by(s, node) and s.output_nr == place), None)

    def stands_for(self, t: Tensor, original: Tensor) -> None:
        """Give `t` the facts of the original."""
        known = self.of(original)
        self.see(t) if known is None else self.note(t, known.inherited, known.link)

    def note(self, t: Tensor, inherited: Facts = NO_FACTS, link: LinearLink | None = None) -> TensorRecord:
        """Record facts about the tensor from now on."""
        key = id(t)
        known = TensorRecord(t) if link is None and inherited.companion is None else TensorRecord(t, self._forget)
        known.key, known.version, known.inherited, known.link = key, t._version, inherited, link
        self.by_id[key] = known
        return known

    def now(self, data: Sequence[Tensor]) -> list[TensorRecord]:
        """Return the current records of the tensors."""
        return [self.of(t) or self.note(t) for t in data]

    def learn(self, t: Tensor, inherited: Facts) -> None:
        """Record inherited facts, unless more is known already."""
        known = self.of(t)
        if known is None:
            self.note(t, inherited)
        elif inherited.nonnegative and not known.inherited.nonnegative:
            earlier = known.inherited
            known.inherited = Facts(True, earlier.companion, earlier.made_of, earlier.proportional)

    def without_link(self, t: Tensor) -> None:
        """Remove the link to the linear map that made the tensor, and the tensors that it is a function of."""
        known = self.inherited(t)
        self.note(t, Facts(known.nonnegative, known.companion))


def _made_by(t: Tensor, node: Any) -> bool:
    return t.grad_fn is node if t.grad_fn is not None else getattr(node, "variable", None) is t


def propagate_facts(call: Call, table: TensorFacts) -> Facts:
    """Return the facts about the results of a call, given those about its arguments."""
    facts, data = call.facts, call.data
    made_of = table.now(data) if facts.pointwise else ()
    first = made_of[0].inherited if made_of else table.inherited(data[0])
    nonnegative = facts.nonnegative or (facts.clips and _clipped_above_zero(call))
    if facts.keeps_sign and first.nonnegative and not nonnegative:
        nonnegative = _keeps_sign(call, table) and not any(t.is_complex() for t in data)  # i · i = −1
    beside = None if first.companion is None else _propagate_companion(call, table)
    if made_of:
        return Facts(nonnegative, beside, made_of, is_proportional(facts.name, data))
    return Facts(nonnegative, beside) if nonnegative or beside is not None else NO_FACTS


def is_proportional(name: str, data: Sequence[Tensor]) -> bool:
    """Return whether the function's result is proportional to its only argument that is not constant."""
    return len(data) == 1 and (name == "mul" or name in PROPORTIONAL)


def gate_factor(call: Call, table: TensorFacts) -> Tensor | None:
    """Return the gate h(x) of a product x · h(x) of a value (or a multiple of it) and a function of it, or None."""
    if len(call.data) != 2 or call.data[0] is call.data[1]:
        return None
    first, second = table.now(call.data)
    if _is_function_of(second, _factors_of(first)):
        return call.data[1]
    return call.data[0] if _is_function_of(first, _factors_of(second)) else None


def _factors_of(known: TensorRecord) -> list[TensorRecord]:
    """Return the records of the tensor and of all tensors that it is a multiple of."""
    found = [known]
    while found[-1].inherited.proportional:
        found += found[-1].inherited.made_of
    return found


def _is_function_of(known: TensorRecord, roots: list[TensorRecord]) -> bool:
    """Return whether the tensor is an elementwise function of `roots` alone."""
    open_ends = [known]
    for end in open_ends:  # extended in the loop
        if any(end is root for root in roots):
            continue
        if not end.inherited.made_of:
            return False
        open_ends += [made_of for made_of in end.inherited.made_of if not any(made_of is met for met in open_ends)]
    return True


def _clipped_above_zero(call: Call) -> bool:
    low = call.bind("input min_val" if call.name == "hardtanh" else "input min", min_val=-1.0, min=None)[1]
    return isinstance(low, int | float) and low >= 0


def _keeps_sign(call: Call, table: TensorFacts) -> bool:
    """Return whether no argument that enters the result can be negative."""
    if call.kwargs.get("mode") == "bicubic":
        return False
    operands = iter_tensors((call.args, call.kwargs))
    if call.name not in ARITHMETIC:
        return all(table.inherited(t).nonnegative for t in operands if t.is_floating_point())
    numbers = [n for n in (*call.args, *call.kwargs.values()) if isinstance(n, Number)]
    return all(n >= 0 for n in numbers) and all(table.inherited(t).nonnegative for t in operands if t.dtype != torch.bool)  # type: ignore


def _propagate_companion(call: Call, table: TensorFacts) -> InputCompanion | None:
    """Return the companion of the result, if each of its values comes from one place of the input, or from a window around it.

    This is so for the input rearranged, padded or masked, shifted, scaled and clipped, also by statistics of the whole, and for
    means and interpolations, whose weights add up to 1.
    """
    beside = {id(t): c for t in call.data if (c := table.inherited(t).companion) is not None}
    others = [t for t in call.data if id(t) not in beside]
    if call.name in SCALES_PIXELS and len(beside) == 1:  # an activation makes hidden values, whose zeros carry nothing
        (one,) = beside.values()
        return _pointwise_companion(call, one) if all(t.numel() < one.zeros.numel() for t in others) else None
    if others:
        return None
    if call.name in AVERAGES:
        return _averaged_companion(call, beside)
    masks = call.name in ("cat", "stack", "pad", "where", "masked_fill", "tril", "triu")
    if call.overwrites or not (masks or call.facts.moves):
        return None
    zeros = call.run_with({key: c.zeros for key, c in beside.items()})
    if not isinstance(zeros, Tensor):
        return None
    if not masks and all(c.present is None for c in beside.values()):
        return InputCompanion(zeros)
    with torch.no_grad():
        ones = {key: torch.ones_like(c.zeros) if c.present is None else c.present for key, c in beside.items()}
        values = {id(t): torch.zeros_like(t) for t in iter_tensors((call.args, call.kwargs)) if t.is_floating_point()}
        present = call.run_with(values | ones) - call.run_with(
            values | {key: torch.zeros_like(c.zeros) for key, c in beside.items()}
        )
    return InputCompanion(zeros, None if known_true(present == 1) else present)


def _pointwise_companion(call: Call, one: InputCompanion) -> InputCompanion | None:
    """Return the companion of a function of each value; values that are multiplied by 0 do not come from the input."""
    if call.name not in COMBINES:
        return one
    shapes = [t.shape for t in iter_tensors((call.args, call.kwargs))]
    if torch.broadcast_shapes(*shapes) != one.zeros.shape:
        return None
    factor = next((t for t in call.constants if isinstance(t, Tensor)), None) if call.name == "mul" else None
    if factor is None or known_true(factor != 0):
        return one
    present = (factor != 0).to(one.zeros.dtype).expand_as(one.zeros)
    return InputCompanion(one.zeros, present if one.present is None else one.present * present)


def _averaged_companion(call: Call, beside: dict[int, InputCompanion]) -> InputCompanion | None:
    """Return the companion of weighted means: each receives relevance by its weights, Σ_j W_ji R_j with Σ_i W_ji = 1."""
    if any(c.present is not None for c in beside.values()):
        return None
    with torch.no_grad():
        ones = call.run_with({key: torch.ones_like(c.zeros) for key, c in beside.items()})
    if not isinstance(ones, Tensor) or not known_true((ones - 1).abs() < 1e-5):
        return None
    return InputCompanion(call.run_with({key: c.zeros for key, c in beside.items()}))
