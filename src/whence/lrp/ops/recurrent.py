"""Recurrent layers, which torch runs as one native function, unrolled step by step with the same weights.

Gates are statistics, so the signal receives all the relevance (Arras et al. 2017); c = f ⊙ c' + i ⊙ g is a linear map of c' and
g, with LRP-0 or the rule selected for the layer, as in `{nn.LSTM: Epsilon(1e-3)}` (Arras et al. use ε = 1e-3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.errors import TrainingModeError
from whence.lrp.engine.function_calls import Call
from whence.lrp.engine.linear_maps import Bilinear
from whence.lrp.engine.op_context import OpContext
from whence.lrp.rules.rules import LRP_0

State = tuple[Tensor, ...]  # (h,) or (h, c), each [N, H]


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer in one direction, gates along the first dimension."""

    of_input: Tensor  # [gates · H, D]
    of_state: Tensor  # [gates · H, H]
    bias_input: Tensor | None = None
    bias_state: Tensor | None = None
    projection: Tensor | None = None

    def together(self, x: Tensor, h: Tensor) -> Tensor:
        """Return both products and biases as one dense layer, for rules that need the whole pre-activation."""
        return F.linear(torch.cat([x, h], -1), *self._joined)

    @cached_property
    def _joined(self) -> tuple[Tensor, Tensor | None]:
        bias = None if self.bias_input is None or self.bias_state is None else self.bias_input + self.bias_state
        return torch.cat([self.of_input, self.of_state], 1), bias


Step = Callable[[OpContext, Tensor, State, LayerWeights], State]


def lstm_step(bench: OpContext, x: Tensor, state: State, weights: LayerWeights) -> State:
    h, c = state
    input_gate, forget, signal, output = weights.together(x, h).chunk(4, -1)
    c = _gate(bench, (c, signal.tanh()), (forget.sigmoid(), input_gate.sigmoid()))
    h = output.sigmoid() * c.tanh()
    return (h if weights.projection is None else F.linear(h, weights.projection)), c


def gru_step(bench: OpContext, x: Tensor, state: State, weights: LayerWeights) -> State:
    (h,) = state
    x_reset, x_update, x_new = F.linear(x, weights.of_input, weights.bias_input).chunk(3, -1)
    h_reset, h_update, h_new = F.linear(h, weights.of_state, weights.bias_state).chunk(3, -1)
    update, reset = (bench.hold_gate(z.sigmoid()) for z in (x_update + h_update, x_reset + h_reset))
    new = (x_new + reset * h_new).tanh()
    return (_gate(bench, (new, h), (1 - update, update)),)


def tanh_step(bench: OpContext, x: Tensor, state: State, weights: LayerWeights) -> State:
    return (weights.together(x, state[0]).tanh(),)


def relu_step(bench: OpContext, x: Tensor, state: State, weights: LayerWeights) -> State:
    return (weights.together(x, state[0]).relu(),)


STEPS: dict[str, Step] = {"lstm": lstm_step, "gru": gru_step, "rnn_tanh": tanh_step, "rnn_relu": relu_step}


def cell(bench: OpContext, call: Call) -> Tensor | State:
    """Handle one step of nn.LSTMCell, nn.GRUCell or nn.RNNCell."""
    x, state, *weights = call.args
    with bench.within():
        new = STEPS[call.name.removesuffix("_cell")](bench, x, _as_state(state), LayerWeights(*weights))
    return new if call.name == "lstm_cell" else new[0]


def recurrent(bench: OpContext, call: Call) -> tuple[Tensor, ...]:
    """Handle nn.LSTM, nn.GRU and nn.RNN with layers, directions and packed sequences."""
    packed = not isinstance(call.args[3], bool)  # fourth is has_biases, and the weights where sequences are packed
    x, *rest = call.args
    sizes, rest = (rest[0], rest[1:]) if packed else (None, rest)
    initial, flat, biases, layers, dropout, training, bidirectional, *batch_first = rest
    if training and dropout:
        raise TrainingModeError(f"'{bench.path}' applies dropout; call model.eval() before explaining")
    first = any(batch_first)
    with bench.within():
        x = x.transpose(0, 1) if first else x
        steps = x.unbind(0) if sizes is None else x.split(sizes.tolist())
        states = list(zip(*_as_state(initial), strict=True))
        outputs, final = _layers(
            bench, STEPS[call.name], steps, states, _group_weights(flat, biases, layers, 1 + bidirectional)
        )
        out = torch.stack(outputs) if sizes is None else torch.cat(outputs)
        return (out.transpose(0, 1) if first else out, *(torch.stack(part) for part in zip(*final, strict=True)))


def _layers(
    bench: OpContext, step: Step, steps: Sequence[Tensor], states: list[State], weights: list[list[LayerWeights]]
) -> tuple[list[Tensor], list[State]]:
    """Run all layers in order, with the outputs of both directions concatenated."""
    final, given = [], iter(states)
    for directions in weights:
        sides = []
        for backwards, of_direction in enumerate(directions):
            outputs, last = _run_direction(bench, step, steps, next(given), of_direction, bool(backwards))
            sides.append(outputs)
            final.append(last)
        steps = sides[0] if len(sides) == 1 else [torch.cat(both, -1) for both in zip(*sides, strict=True)]
    return list(steps), final


def _run_direction(
    bench: OpContext, step: Step, steps: Sequence[Tensor], initial: State, weights: LayerWeights, backwards: bool
) -> tuple[list[Tensor], State]:
    """Run one direction of one layer; packed sequences are sorted, longest first, so that later rows end or begin first."""
    outputs: list[Tensor] = []
    ended: list[State] = []
    order = list(reversed(steps)) if backwards else steps
    state = tuple(part[: order[0].shape[0]] for part in initial)
    for x in order:
        count, running = x.shape[0], state[0].shape[0]
        if count < running:
            ended.append(tuple(part[count:] for part in state))
            state = tuple(part[:count] for part in state)
        elif count > running:
            state = tuple(torch.cat([p, i[running:count]]) for p, i in zip(state, initial, strict=True))
        state = step(bench, x, state, weights)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return (outputs[::-1] if backwards else outputs), state


def _as_state(given: Tensor | Sequence[Tensor]) -> State:
    return (given,) if isinstance(given, Tensor) else tuple(given)


def _gate(bench: OpContext, signals: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """Return Σ gate ⊙ signal as a linear map of the signals, so that a rule applies to it."""
    together, weight = torch.stack(tuple(signals), -1), torch.stack(tuple(gates), -1)
    if not together.requires_grad:
        return gated_sum(together, weight)
    call = Call.of(gated_sum, (together, weight), {}, (together,))
    return bench.linear(call, together, Bilinear(gated_sum, weight), LRP_0, native=True)


def gated_sum(a: Tensor, weight: Tensor) -> Tensor:
    return (a * weight).sum(-1)


def _group_weights(flat: Sequence[Tensor], biases: bool, layers: int, directions: int) -> list[list[LayerWeights]]:
    """Return `LayerWeights` by layer and direction, from torch's flat list of weights."""
    each = len(flat) // (layers * directions)
    projected = each > 2 + 2 * biases
    parts = [list(flat[start : start + each]) for start in range(0, len(flat), each)]
    weights = [LayerWeights(*part[:-1], projection=part[-1]) if projected else LayerWeights(*part) for part in parts]
    return [weights[start : start + directions] for start in range(0, len(weights), directions)]
