"""Recurrent networks against a cell-by-cell transcription of the explicit rules (Arras et al. 2017; 2019 for the GRU)."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import whence
from whence import LRP, Epsilon, Gamma

pytestmark = pytest.mark.usefixtures("float64")


def share(inputs: Tensor, weight: Tensor, z: Tensor, relevance: Tensor, epsilon: float) -> Tensor:
    """R_i = Σ_j x_i w_ji / (z_j + ε sign z_j) R_j for one sample, message by message."""
    stabilised = z + epsilon * torch.where(z >= 0, 1.0, -1.0)
    received = torch.zeros_like(inputs)
    for j in range(len(z)):
        if relevance[j] != 0:
            received += inputs * weight[j] / stabilised[j] * relevance[j]
    return received


class Transcription:
    """One direction of one layer for one sequence [T, D]: the forward, then relevance of the inputs from that of all h_t."""

    def __init__(self, layer: nn.RNNBase, suffix: str, epsilon: float = 0.0):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.w, self.u, *biases = (getattr(layer, f"{name}_{suffix}", None) for name in names)
        self.b, self.d = (torch.zeros(len(self.w)) if bias is None else bias for bias in biases)
        self.mode, self.epsilon = layer.mode, epsilon

    def forward(self, xs: Tensor) -> Tensor:
        h = c = torch.zeros(self.u.shape[1])
        self.trace = []
        for x in xs:
            before = (h, c)
            a, r = self.w @ x + self.b, self.u @ h + self.d
            if self.mode == "LSTM":
                i, f, g, o = (a + r).chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            elif self.mode == "GRU":
                (ar, az, an), (rr, rz, rn) = a.chunk(3), r.chunk(3)
                z = (az + rz).sigmoid()
                n = (an + (ar + rr).sigmoid() * rn).tanh()
                h = (1 - z) * n + z * h
            else:
                h = (a + r).tanh() if self.mode == "RNN_TANH" else (a + r).relu()
            self.trace.append((x, *before, h, c))
        return torch.stack([step[3] for step in self.trace])

    def backward(self, relevance: Tensor) -> Tensor:
        """[T, H] relevance given to every h_t from above -> [T, D]."""
        rows, size = [], self.u.shape[1]
        to_h = to_c = torch.zeros(size)
        for t in range(len(self.trace) - 1, -1, -1):
            x, h0, c0, h, c = self.trace[t]
            to_h = to_h + relevance[t]
            a, r = self.w @ x + self.b, self.u @ h0 + self.d
            if self.mode == "LSTM":
                i, f, g, _ = (a + r).chunk(4)
                to_c = to_c + to_h  # tanh passes all, the output gate nothing
                stable = c + self.epsilon * torch.where(c >= 0, 1.0, -1.0)
                to_g = torch.nan_to_num(i.sigmoid() * g.tanh() / stable * to_c)
                to_c = torch.nan_to_num(f.sigmoid() * c0 / stable * to_c)
                rows_of_g = slice(2 * size, 3 * size)
                row, to_h = (share(v, m[rows_of_g], g, to_g, self.epsilon) for v, m in ((x, self.w), (h0, self.u)))
            elif self.mode == "GRU":
                (ar, az, an), (rr, rz, rn) = a.chunk(3), r.chunk(3)
                z, reset = (az + rz).sigmoid(), (ar + rr).sigmoid()
                n = (an + reset * rn).tanh()
                to_n, kept = torch.nan_to_num((1 - z) * n / h * to_h), torch.nan_to_num(z * h0 / h * to_h)
                total = an + reset * rn
                row = share(x, self.w[2 * size :], total, to_n, 0)
                to_h = kept + share(h0, reset[:, None] * self.u[2 * size :], total, to_n, 0)
            else:
                row, to_h = (share(v, m, a + r, to_h, self.epsilon) for v, m in ((x, self.w), (h0, self.u)))
            rows.insert(0, row)
        return torch.stack(rows)


class Last(nn.Module):
    """A sum of all hidden states' features, so that every one of them receives relevance."""

    def __init__(self, recurrent: nn.RNNBase):
        super().__init__()
        self.recurrent = recurrent
        width = (recurrent.proj_size or recurrent.hidden_size) * (2 if recurrent.bidirectional else 1)
        self.weight = nn.Parameter(torch.randn(width, 3))
        self.eval()

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = self.recurrent(x)
        if isinstance(hidden, PackedSequence):
            hidden, _ = pad_packed_sequence(hidden, batch_first=True)
        return hidden.sum(1) @ self.weight


KINDS = [(nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"})]


SHAPES = [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}]


def transcribed(model: Last, sequence: Tensor, target: int, epsilon: float) -> Tensor:
    recurrent, xs, layers = model.recurrent, sequence, []
    for layer in range(recurrent.num_layers):
        sides = [Transcription(recurrent, f"l{layer}", epsilon)]
        outputs = sides[0].forward(xs)
        if recurrent.bidirectional:
            sides.append(Transcription(recurrent, f"l{layer}_reverse", epsilon))
            outputs = torch.cat([outputs, sides[1].forward(xs.flip(0)).flip(0)], 1)
        layers.append(sides)
        xs = outputs
    relevance = xs * model.weight[:, target]
    for sides in reversed(layers):
        halves = relevance.chunk(len(sides), 1)
        relevance = sides[0].backward(halves[0])
        if len(sides) == 2:
            relevance = relevance + sides[1].backward(halves[1].flip(0)).flip(0)
    return relevance


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "extra"), KINDS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_equals_the_cell_by_cell_transcription(kind, extra, shape, bias):
    model = Last(kind(4, 5, bias=bias, batch_first=True, **extra, **shape))
    x, lengths = torch.randn(3, 6, 4), torch.tensor([4, 6, 2])
    with torch.no_grad():
        plain = model(x, lengths)
    e = whence.explain(lambda x: model(x, lengths), x, target=1)
    assert (e.output - plain[:, 1]).abs().max() < 1e-12
    for i, length in enumerate(lengths):
        expected = transcribed(model, x[i, :length], 1, 0.0)
        assert (e.relevance[i, :length] - expected).abs().max() < 1e-10 * (1 + expected.abs().max())
        assert (e.relevance[i, length:] == 0).all()
    assert e.conservation.error.max() < 1e-10
    if not bias:
        assert ((e.relevance.sum((1, 2)) - e.output).abs() < 1e-10 * e.output.abs()).all()


def test_epsilon_split_of_arras():
    model = Last(nn.LSTM(4, 5, batch_first=True))
    x = torch.randn(1, 6, 4)
    e = whence.explain(model, x, target=0, method=LRP({nn.LSTM: Epsilon(1e-3)} | whence.presets.attn_lrp()))
    assert (e.relevance[0] - transcribed(model, x[0], 0, 1e-3)).abs().max() < 1e-10
    assert e.conservation.error.max() < 1e-10


def test_projections_and_other_rules_balance():
    model = Last(nn.LSTM(4, 5, num_layers=2, proj_size=2, bidirectional=True, batch_first=True))
    x = torch.randn(3, 6, 4)
    with torch.no_grad():
        plain = model(x)
    for rules in (None, {nn.LSTM: Gamma(0.25)}):
        e = whence.explain(model, x, target=1, method=None if rules is None else LRP(rules))
        assert (e.output - plain[:, 1]).abs().max() < 1e-12
        assert e.conservation.error.max() < 1e-9


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell], ids=lambda c: c.__name__)
def test_cells_equal_their_layers(cell):
    layer = {nn.LSTMCell: nn.LSTM, nn.GRUCell: nn.GRU, nn.RNNCell: nn.RNN}[cell](4, 5, batch_first=True)
    single = cell(4, 5)
    single.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})

    def by_cells(x):
        state = None
        for step in x.unbind(1):
            state = single(step, state)
        return state[0] if isinstance(state, tuple) else state

    x = torch.randn(2, 6, 4)
    ours = whence.explain(by_cells, x, target=2)
    whole = whence.explain(lambda x: layer(x)[0][:, -1], x, target=2)
    assert (ours.relevance - whole.relevance).abs().max() < 1e-12
    assert ours.conservation.error.max() < 1e-10


def test_sequence_first_and_single_sequences():
    layer = nn.GRU(4, 5)
    x = torch.randn(6, 2, 4)
    across = whence.explain(lambda x: layer(x.transpose(0, 1))[0][-1], x.transpose(0, 1), target=0)
    alone = whence.explain(lambda x: layer(x[0])[0][-1:], x[:, :1].transpose(0, 1), target=0)
    assert (across.relevance[:1] - alone.relevance).abs().max() < 1e-12


def test_initial_state_is_an_input_like_any_other():
    layer = nn.LSTM(4, 5, bias=False, batch_first=True)
    x, h, c = torch.randn(1, 3, 4), torch.randn(1, 1, 5), torch.randn(1, 1, 5)
    e = whence.explain(lambda x, h, c: layer(x, (h, c))[0][:, -1], (x, h, c), target=0)
    assert abs(sum(r.sum() for r in e.relevance) - e.output) < 1e-12
    assert all(r.abs().sum() > 0 for r in e.relevance)


def test_last_states_of_packed_sequences():
    layer, x, lengths = nn.LSTM(4, 5, bidirectional=True, batch_first=True), torch.randn(4, 6, 4), torch.tensor([6, 4, 4, 1])
    packed = lambda x: pack_padded_sequence(x, lengths, batch_first=True)  # noqa: E731
    _, (h, c) = layer(packed(x))
    for i, state in enumerate((h, c)):
        for side in range(2):
            e = whence.explain(lambda x, i=i, side=side: layer(packed(x))[1][i][side], x, target=2)
            torch.testing.assert_close(e.output, state[side, :, 2].detach())
            assert e.conservation.error.max() < 1e-10
