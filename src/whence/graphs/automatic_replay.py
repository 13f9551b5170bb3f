"""Replay when it pays: once explanations of one kind come again and again, a graph of them is captured and replayed."""

import random
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from whence.core.explanation import Explanation
from whence.core.inputs import Inputs
from whence.core.targets import Target
from whence.errors import WhenceError
from whence.graphs.replay import ReplayGraph, ReplayRequest, replay_explanation
from whence.graphs.tracing import ExplainFunction, check_equal, trace
from whence.lrp.torch_compat.model_state import ModelSettings

PAYS_AFTER = 100  # a graph costs as much as it saves in about so many explanations (benchmarks/default_speed.py)
LEAST_GAIN = 0.9  # of the time without the graph
MAX_GRAPHS = 8
MAX_WEIGHTS = 2**30  # bytes; a graph may hold them several times, and gains little where tensors are large
MAX_KINDS = 4096  # of shapes, dtypes and targets that are counted
MAX_MISSES = 10  # replays that a check or a guard of the graph refused
CLOSE = 1e-5  # relative to the largest relevance
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")


class AutomaticReplay:
    """The graphs of one model and method that were captured because they pay.

    The rule is that of renting and buying skis: an explanation of a kind (shapes, dtypes, target, layers) is computed without a
    graph until a graph would have paid; it is then captured, compared with the explanation, timed, and dropped if it does not
    save time. Whatever cannot be captured, and whatever changes in the model, is computed without a graph.
    """

    def __init__(self, model: Callable[..., Any]):
        self._model = model
        self._counts: dict[Hashable, int] = {}
        self._misses: dict[Hashable, int] = {}
        self._captures: dict[Hashable, ReplayGraph | None] = {}  # None: does not pay, or cannot be captured
        self._current, self._settings = ModelSettings(model), None
        self._pays_after = PAYS_AFTER

    def __call__(
        self,
        explained: ExplainFunction,
        without_graph: Callable[[], Explanation],
        inputs: Inputs,
        target: Target,
        layers: tuple[str, ...],
    ) -> Explanation | None:
        """Return the explanation if it was replayed, or None.

        `explained` computes it from the weights, for the graph, and `without_graph` as fast as it can be without a graph.
        """
        request = _request(inputs, target, layers)
        if request is None or not self._comes_again(request.key) or not _can_replay(self._model):
            return None
        key = request.key
        if key not in self._captures:
            return self._capture(explained, without_graph, request)
        capture = self._captures[key]
        if capture is None:
            return None
        if self._read_settings() != self._settings or not capture.is_current:
            self._start_again()
            return None
        found = replay_explanation(capture, request)
        if capture.folds > 1:  # the weights have changed, as they do in training
            self._start_again()
        elif found is None:
            self._misses[key] = self._misses.get(key, 0) + 1
            if self._misses[key] >= MAX_MISSES:
                self._captures[key] = None
        return found

    def _comes_again(self, key: Hashable) -> bool:
        if len(self._counts) >= MAX_KINDS:
            self._counts.clear()
        self._counts[key] = count = self._counts.get(key, 0) + 1
        return count >= self._pays_after

    def _capture(
        self, explained: ExplainFunction, without_graph: Callable[[], Explanation], request: ReplayRequest
    ) -> Explanation | None:
        """Return the explanation computed without a graph, and keep the graph if it pays; None where none may be traced now."""
        if not _may_trace():
            return None
        if sum(p.numel() * p.element_size() for p in self._model.parameters()) > MAX_WEIGHTS:  # type: ignore[attr-defined]
            self._captures[request.key] = None
            return None
        settings, states = self._read_settings(), _states_of_other_generators()
        without, first = _seconds(without_graph, request)
        if self._settings != settings:
            self._captures.clear()
        self._settings, self._captures[request.key] = settings, None  # until it has proved itself
        if first.patches or self._read_settings() != settings or _states_of_other_generators() != states:
            return first
        try:
            capture = ReplayGraph(trace(explained, request.inputs, request.target))
            check_equal(capture.replay(request.tensors), first, CLOSE)
            seconds, again = _seconds(lambda: replay_explanation(capture, request), request)
        except Exception:  # whatever torch cannot trace; the explanation itself has been computed
            return first
        if again is not None and seconds <= LEAST_GAIN * without and self._read_settings() == settings:
            self._captures[request.key] = capture
            in_use = [key for key, kept in self._captures.items() if kept is not None]
            for oldest in in_use[:-MAX_GRAPHS]:
                self._captures[oldest] = None
        return first

    def _read_settings(self) -> Hashable:
        return self._current.read(), torch.get_default_dtype()

    def _start_again(self) -> None:
        """Drop all graphs; the next ones have to pay twice as long."""
        self._captures.clear()
        self._counts.clear()
        self._misses.clear()
        self._pays_after *= 2


def _request(inputs: Inputs, target: Target, layers: tuple[str, ...]) -> ReplayRequest | None:
    if not all(type(part) in (Tensor, nn.Parameter) for part in inputs.parts if isinstance(part, Tensor)):
        return None
    try:
        return ReplayRequest.of(inputs, target, layers)
    except WhenceError:  # is raised by the explanation itself, or applies to graphs alone
        return None


def _can_replay(model: Callable[..., Any]) -> bool:
    """Return whether nothing observes or changes the forward pass that a graph would leave out: hooks and modes."""
    return (
        isinstance(model, nn.Module)
        and not any(getattr(module, name) for module in model.modules() for name in HOOKS)
        and not any(getattr(global_hooks, name, None) for name in GLOBAL_HOOKS)
        and not _get_current_function_mode_stack()
        and not _get_current_dispatch_mode_stack()
    )


def _may_trace() -> bool:
    """Return whether no other thread is at work: torch patches modules of the whole process while it traces."""
    here = threading.current_thread()
    others = [thread for thread in threading.enumerate() if thread is not here and not thread.daemon]
    return here is threading.main_thread() and not others


def _states_of_other_generators() -> Hashable:
    """Return the states of random generators other than torch's, which a graph would not draw from."""
    return random.getstate(), np.random.get_state()[1].tobytes(), np.random.get_state()[2]  # type: ignore[index]


def _seconds(run: Callable[[], Any], request: ReplayRequest) -> tuple[float, Any]:
    """Return the seconds that a call takes, of all threads of the process on CPUs, and its result."""
    if not any(t.is_cuda for t in request.tensors):
        start = time.process_time()
        found = run()
        return time.process_time() - start, found
    torch.cuda.synchronize()
    start = time.perf_counter()
    found = run()
    torch.cuda.synchronize()
    return time.perf_counter() - start, found
