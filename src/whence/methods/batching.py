"""Batched evaluation of many rounds, with batches as large as memory allows and a progress bar."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from whence.core.inputs import Inputs
from whence.core.progress import progress
from whence.errors import CostWarning, InputError, ModelError, TargetError, is_out_of_memory, value_repr
from whence.lrp.engine.function_calls import iter_tensors
from whence.lrp.torch_compat.torch_patches import FORCE_EAGER, enter_all
from whence.methods.feature_masks import reject_shared_parts
from whence.methods.forward_backward import Task, target_values

T = TypeVar("T")

ENTRIES_PER_BATCH = {"cpu": 2**17, "cuda": 2**25}  # entries of the input that fill a CPU cache and a GPU
ACTIVATIONS_PER_BATCH = {"cpu": 2**21, "cuda": 2**27}  # the same for the entries of the largest activation, if it is known
FEW_SAMPLES, ENTRIES_FOR_FEW = 4, 2**21  # for images so large that the activations of one exceed any cache
ENTRIES_PER_ID = 512  # a token id is counted as an embedding of this size
MAX_ROUNDS = 2**14
MANY_ROUNDS = 10_000
MAX_INCREASE = 4  # by the size of activations, some of which no function returns: the gates of an LSTM, scripted modules
ROWS_IN_CHECK = 3  # copies of the samples in the largest batch that `check_rows` runs
MAX_INTERACTION = 1e-3  # of the effect of an alteration, in the outputs of other rows


def run_batched(
    method: object, task: Task, count: int, evaluate: Callable[[slice], T], batch_size: int | None = None
) -> Iterator[T]:
    """Yield `evaluate(rounds)` for all `count` rounds, each of which runs all samples, with several rounds at once.

    `batch_size` is the number of samples that the model runs at once; chosen by the size of the input, and then of the largest
    activation of the model, if not given. It is halved when memory runs out.
    """
    reject_shared_parts(task.inputs, type(method).__name__)
    samples = task.inputs.batch_size
    at_once = 1 if task.inputs.whole else max(1, resolve_batch_size(batch_size, task.inputs) // samples)
    if count > 1 and at_once > 1 and task.alter is None:
        check = check_rows(task)
        if not check.independent:
            at_once = 1
        elif batch_size is None and check.largest_activation:
            fitting = ACTIVATIONS_PER_BATCH[_device_kind(task.inputs)] // (check.largest_activation * samples)
            at_once = max(1, min(fitting, MAX_INCREASE * at_once, MAX_ROUNDS // samples))
    done = 0
    with progress(getattr(method, "name", "whence").replace("_", " "), count, task.progress) as advance:
        while done < count:
            rounds = slice(done, min(done + at_once, count))
            try:
                found = evaluate(rounds)
            except (RuntimeError, MemoryError) as error:
                at_once = _reduce_batch_size(at_once, task.inputs.batch_size, error)
                continue
            yield found
            advance(rounds.stop - rounds.start)
            done = rounds.stop


def warn_of_many_rounds(method: object, count: int, advice: str) -> None:
    """Warn, before the first round, that a method evaluates the model very often because of the size of the input."""
    if count > MANY_ROUNDS:
        warnings.warn(
            f"{type(method).__name__} evaluates the model {count:,} times for every sample; {advice} to evaluate it less often",
            CostWarning,
            stacklevel=2,
        )


def resolve_batch_size(given: int | None, inputs: Inputs) -> int:
    """Return the number of samples to run at once: `given`, or chosen by their size if None."""
    if given is not None and (not isinstance(given, int) or given < 1):
        raise InputError(
            f"batch_size={value_repr(given)}; expected a positive int, the number of samples that run at once, or None"
        )
    return given or automatic_batch_size(inputs)


def automatic_batch_size(inputs: Inputs) -> int:
    """Return the number of samples to run at once, chosen by their size."""
    tensors = [part for part in inputs.parts if isinstance(part, Tensor) and part.dim()]
    numbers = sum(t[0].numel() * (1 if t.is_floating_point() else ENTRIES_PER_ID) for t in tensors if len(t))
    budget = ENTRIES_PER_BATCH[_device_kind(inputs)]
    few = min(FEW_SAMPLES, ENTRIES_FOR_FEW // max(1, numbers))
    return min(MAX_ROUNDS, max(1, few, budget // max(1, numbers)))


def _device_kind(inputs: Inputs) -> str:
    return "cuda" if any(isinstance(part, Tensor) and part.is_cuda for part in inputs.parts) else "cpu"


def _reduce_batch_size(at_once: int, samples: int, error: BaseException) -> int:
    if not is_out_of_memory(error):
        raise error
    if at_once == 1:
        raise ModelError(f"out of memory with {samples} samples at once; pass a smaller batch_size") from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return at_once // 2


@dataclass(frozen=True)
class RowCheck:
    """How a model treats the rows of a batch.

    Args:
        independent: Whether altered samples have the same outputs alone and between the unaltered ones in one batch.
        largest_activation: The entries of the largest activation of a sample; 0 if it is not known.
    """

    independent: bool
    largest_activation: int = 0


def rows_are_independent(task: Task) -> bool:
    """Return whether altered samples have the same outputs alone and between the unaltered ones in one batch."""
    return check_rows(task).independent


def check_rows(task: Task) -> RowCheck:
    """Run altered samples alone and between the unaltered ones in one batch, and compare their outputs.

    The rows of a model interact if it normalises or quantises by the batch, attends over it, or takes it for the time. Samples
    are halved and mirrored: a model may normalise the size away.
    """
    if task.rows_are_independent is not None:
        return RowCheck(task.rows_are_independent)
    inputs, answers = task.inputs, target_values(task)
    resolved = [target for _, target in answers]
    altered = {i: _altered(inputs, i) for i in inputs.explained}
    together = {i: torch.cat([inputs.parts[i], part, inputs.parts[i]]) for i, part in altered.items()}
    try:
        with enter_all(FORCE_EAGER, few := OutputSizes()):
            alone = target_values(task.moved(1, altered, resolved))
        with enter_all(FORCE_EAGER, many := OutputSizes()):
            between = target_values(task.moved(ROWS_IN_CHECK, together, resolved))
    except (ModelError, TargetError):
        return RowCheck(False)
    independent = all(_agree(x, a, b) for (x, _), (a, _), (b, _) in zip(answers, alone, between, strict=True))
    return RowCheck(independent, few.largest_growing(many) // inputs.batch_size)


def _altered(inputs: Inputs, i: int) -> Tensor:
    """Return an input halved and mirrored; of a table with categories, numbers halved and one other category in all rows."""
    part = inputs.parts[i]
    if inputs.table is None or not inputs.table.categories:
        return part.flip(-1) / 2
    counts = torch.tensor([len(inputs.table.categories.get(name, ())) for name in inputs.table.empty.columns])
    other = (part[:1].nan_to_num() + 1) % counts.clamp(min=1)
    return torch.where(counts > 0, other.expand_as(part), part / 2)


class OutputSizes(TorchFunctionMode):
    """Mode that records the number of entries of all tensors that functions return."""

    def __init__(self):
        super().__init__()
        self._entries: list[int] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self._entries += [t.numel() for t in iter_tensors(out)]
        return out

    def largest_growing(self, other: "OutputSizes") -> int:
        """Return the most entries of a tensor that another run, on more samples, made larger in proportion; else 0.

        Others are weights. The runs must have called the same functions.
        """
        if len(self._entries) != len(other._entries):
            return 0
        pairs = zip(self._entries, other._entries, strict=True)
        return max((few for few, many in pairs if many == ROWS_IN_CHECK * few), default=0)


def _agree(unaltered: Tensor, alone: Tensor, between: Tensor) -> bool:
    """Return whether the outputs in one batch are those of each part alone, up to a share of what the alteration changed."""
    if len(between) != 3 * len(alone):
        return False
    expected = torch.cat([unaltered, alone, unaltered])
    rounding = 30 * torch.finfo(alone.dtype).eps if alone.is_floating_point() else 0
    change = (alone - unaltered).abs().amax()
    return bool((between - expected).abs().amax() <= MAX_INTERACTION * change + rounding * (1 + expected.abs().amax()))
