"""Series in any layout: lines with names and a time axis, channels over time, frequencies, and forecasts."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import whence
from whence import errors, plots
from whence.core.spectrum import SpectralRelevance
from whence.core.time_axis import TimeAxis
from whence.plotting.heatmaps import Heatmap
from whence.plotting.time_series import SeriesHeatmap, TimeSeries


class Recurrent(nn.Module):
    def __init__(self, channels=2):
        super().__init__()
        self.lstm, self.head = nn.LSTM(channels, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0].amax(1))


class Attending(nn.Module):
    def __init__(self, channels=2):
        super().__init__()
        self.first = nn.Linear(channels, 8)
        self.block, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.block(self.first(x)).mean(1))


def convolution(channels):
    return nn.Sequential(nn.Conv1d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "shape", "channels"),
    [
        (Recurrent(), (2, 40, 2), 2),
        (Attending(), (2, 40, 2), 2),
        (Recurrent(), (1, 3, 2), 2),  # shorter than wide figures would take for series
        (Recurrent(12), (2, 8, 12), 12),  # more channels than steps
        (convolution(3), (2, 3, 50), 3),
        (convolution(12), (2, 12, 10), 12),
        (convolution(1), (2, 1, 30), 1),
    ],
)  # fmt: skip
def test_series_are_lines_in_either_layout(model, shape, channels, tmp_path):
    e = whence.explain(model.eval(), torch.randn(*shape), 1)
    (panel,) = e.panels(0)
    assert isinstance(panel, TimeSeries)
    steps = next(size for size in shape[1:] if size != channels)
    assert panel.x.shape == panel.relevance.shape == (channels, steps)
    assert torch.allclose(panel.relevance.sum(), e.relevance[0].sum(), atol=1e-5)
    assert e.save(tmp_path / "series.png").stat().st_size > 1000


def test_many_channels_are_a_heatmap_over_time():
    e = whence.explain(Recurrent(30).eval(), torch.randn(1, 50, 30), 1)
    (panel,) = e.panels(0)
    assert isinstance(panel, SeriesHeatmap)
    assert panel.relevance.shape == (30, 50)


def test_what_may_be_an_image_stays_one():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(784, 2)).eval()
    assert isinstance(whence.explain(flat, torch.rand(1, 28, 28), 1).panels(0)[0], Heatmap)


def test_pictures_with_their_channels_last_are_drawn_as_pictures():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.conv(x.movedim(-1, 1)).relu().mean((2, 3)))

    x = torch.rand(1, 10, 12, 3)
    e = whence.explain(Last().eval(), x, 1)
    (panel,) = e.panels(0)
    assert torch.equal(panel.x, x[0].movedim(-1, 0))
    assert panel.relevance.shape == (3, 10, 12)


def test_a_time_axis_labels_figures_and_tables(tmp_path):
    x = torch.randn(2, 40, 2)
    e = whence.explain(Recurrent().eval(), x, 1, feature_names=["flow", "pressure"])
    dated = e.with_time(pd.date_range("2024-01-01", periods=40, freq="D"))
    rows = plots.series(dated).to_frame()
    assert rows.time[0] == "2024-01-01"
    assert set(rows.channel) == {"flow", "pressure"}
    assert np.isclose(rows.relevance.sum(), float(e.relevance[0].sum()), atol=1e-5)
    panel = dated.panels(0)[0]
    assert panel.ticks(40)[1][0] == "2024-01-01"
    assert dated[:1].time_axis == dated.time_axis
    assert whence.load(dated.save(tmp_path / "e.npz")).time_axis == dated.time_axis
    seconds = e.with_time(sampling_rate=20)
    assert plots.series(seconds, 1).to_frame().time.max() == 39 / 20
    assert seconds.panels(0)[0].time == "time in seconds"
    for wrong in ({}, {"index": range(40), "sampling_rate": 2}):
        with pytest.raises(errors.InputError, match="either the index of the steps or sampling_rate"):
            e.with_time(**wrong)
    with pytest.raises(errors.InputError, match=r"an index of 7 steps for series of shape \[2, 40, 2\]"):
        e.with_time(range(7))
    with pytest.raises(errors.InputError, match="sampling_rate=-1; expected a positive number"):
        e.with_time(sampling_rate=-1)


def test_waveforms_are_series_once_they_have_a_time():
    net = nn.Sequential(nn.Linear(200, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    e = whence.explain(net, torch.randn(1, 200), 1)
    with pytest.raises(errors.InputError, match=r"for series \[N, T\] call with_time"):
        plots.series(e)
    (panel,) = e.with_time(sampling_rate=100).panels(0)
    assert isinstance(panel, TimeSeries)
    assert panel.x.shape == (1, 200)


@pytest.mark.parametrize("steps", [16, 17])
def test_frequencies_add_up_to_steps(steps):
    """R_k = Re(X_k · conj(G_k)) / T by the slow definition of the transforms."""
    torch.manual_seed(0)
    x, relevance = torch.randn(2, steps, dtype=torch.double), torch.randn(2, steps, dtype=torch.double)
    found = SpectralRelevance.of(x, relevance)
    assert torch.allclose(found.relevance.sum(), relevance.sum())
    n = torch.arange(steps, dtype=torch.double)
    by_frequency = torch.zeros(steps // 2 + 1, dtype=torch.double)
    for k in range(steps):
        wave = torch.exp(-2j * torch.pi * k * n / steps)
        amount = ((x * wave).sum(1) * ((relevance / x) * wave).sum(1).conj()).real.sum() / steps
        by_frequency[min(k, steps - k)] += amount
    assert torch.allclose(found.relevance, by_frequency)


def test_relevance_of_a_filter_lies_at_the_frequency_it_passes():
    time = torch.arange(400) / 200
    wave = torch.sin(2 * torch.pi * 20 * time) + torch.sin(2 * torch.pi * 50 * time)
    net = nn.Linear(400, 1, bias=False).eval()
    with torch.no_grad():
        net.weight.copy_(torch.sin(2 * torch.pi * 50 * time)[None])
    e = whence.explain(net, wave[None]).with_time(sampling_rate=200)
    rows = plots.spectrum(e).to_frame()
    assert rows.frequency[rows.relevance.idxmax()] == 50
    assert rows.relevance.max() > 0.95 * float(e.output[0])


def test_steps_at_zero_are_told_apart():
    x, relevance = torch.tensor([[0.0, 1.0, 2.0, 0.0]]), torch.tensor([[0.5, 1.0, 1.0, 0.0]])
    found = SpectralRelevance.of(x, relevance)
    assert np.isclose(found.left_over, 0.5)
    assert np.isclose(float(found.relevance.sum()), 2.0)


def test_forecasts_have_a_row_for_each_horizon():
    net = nn.Sequential(nn.Flatten(), nn.Linear(40, 12)).eval()
    found = whence.explain_targets(net, torch.randn(1, 20, 2), range(12))
    rows = plots.horizons(found).to_frame()
    assert len(rows) == 12 * 20
    assert np.isclose(rows[rows.output == "output 3"].relevance.sum(), float(found[3].relevance.sum()), atol=1e-5)
    with pytest.raises(errors.InputError, match="expected a list of explanations"):
        plots.horizons(found[0])


def test_time_axes_have_few_round_ticks():
    places, labels = TimeAxis(rate=16000.0).ticks(16000)
    assert labels == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert places[1] == 3200
    assert TimeAxis(labels=tuple("abcdefghij")).ticks(10) == ([0, 2, 4, 6, 8], ["a", "c", "e", "g", "i"])


class Dense(nn.Module):
    """A linear map over the steps of each channel, of inputs `[N, T, C]`."""

    def __init__(self):
        super().__init__()
        self.over_time = nn.Linear(24, 5)

    def forward(self, x):
        return self.over_time(x.permute(0, 2, 1)).flatten(1)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention, self.head = (
            nn.LayerNorm(20),
            nn.MultiheadAttention(20, 2, batch_first=True),
            nn.Linear(20, 2),
        )

    def forward(self, x):
        x = self.norm(x)
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


@pytest.mark.parametrize(
    ("model", "shape", "channels"),
    [
        (Dense(), (1, 24, 7), 7),
        (Normed(), (1, 12, 20), 20),
        (convolution(12).eval(), (1, 12, 4), 12),
    ],
)
@pytest.mark.parametrize("as_function", [False, True])
def test_the_first_layer_tells_the_channels_also_within_functions(model, shape, channels, as_function):
    given = (lambda x: model.eval()(x)) if as_function else model.eval()
    e = whence.explain(given, torch.randn(*shape), 1)
    rows = plots.series(e).to_frame()
    assert rows.channel.nunique() == channels
    assert rows.step.nunique() == next(size for size in shape[1:] if size != channels)


def test_names_and_times_decide_where_the_model_does_not():
    f = lambda x: x.sum((1, 2))[:, None]  # noqa: E731
    e = whence.explain(f, torch.randn(1, 12, 40), 0)
    assert len(e.with_time(range(12)).panels(0)[0].relevance) == 40
    assert plots.series(e.with_time(range(40))).to_frame().channel.nunique() == 12
    named = whence.explain(f, torch.randn(1, 12, 40), 0, feature_names=[f"s{i}" for i in range(40)])
    assert plots.series(named).to_frame().channel.nunique() == 40


def test_pictures_with_their_channels_last_are_known_by_their_shape_within_functions():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(8 * 9 * 3, 2)).eval()
    for model in (flat, lambda x: flat(x * 2)):
        (panel,) = whence.explain(model, torch.rand(1, 8, 9, 3), 1).panels(0)
        assert panel.x.shape == panel.relevance.shape == (3, 8, 9)


@pytest.mark.filterwarnings("ignore:The set_bad")
def test_masked_features_of_series_add_up():
    pytest.importorskip("shap")
    net = nn.Sequential(nn.Flatten(), nn.Linear(80, 2)).eval()
    mask = (torch.arange(40) // 10).expand(1, 2, 40).clone()
    method = whence.Shapley(feature_mask=mask)
    e = whence.explain(net, torch.randn(2, 2, 40), 1, method=method)
    total = float(e.conservation.relevance[0])
    assert np.isclose(plots.series(e).to_frame().relevance.sum(), total, atol=1e-5)
    assert np.isclose(plots.spectrum(e).to_frame().relevance.sum(), total, atol=1e-5)
    assert np.isclose(e.to_frame()[e.to_frame()["sample"] == 0].relevance.sum(), total, atol=1e-5)
    found = whence.adapters.to_shap(e)
    assert np.allclose(found.base_values + found.values.sum((1, 2)), e.output, atol=1e-5)


def test_tables_of_named_series_have_channels_and_times():
    e = whence.explain(Recurrent().eval(), torch.randn(2, 6, 2), 1, feature_names=["flow", "pressure"])
    rows = e.with_time(pd.date_range("2024-01-01", periods=6, freq="h")).to_frame()
    assert rows.columns.tolist() == ["sample", "target", "channel", "step", "time", "value", "relevance"]
    assert rows.time[1] == "2024-01-01 01:00"
    assert np.isclose(rows[rows["sample"] == 1].relevance.sum(), float(e.relevance[1].sum()), atol=1e-5)
    assert "channel" not in whence.explain(Recurrent().eval(), torch.randn(2, 6, 2), 1).to_frame().columns


def test_fractions_of_seconds_are_kept():
    e = whence.explain(nn.Linear(30, 2).eval(), torch.randn(2, 30), 1)
    labels = e.with_time(pd.date_range("2024-01-01", periods=30, freq="100ms")).time_axis.labels
    assert len(set(labels)) == 30
    monthly = e.with_time(pd.period_range("2024-01", periods=30, freq="M")).time_axis.labels
    assert monthly[0] == "2024-01"
    with pytest.raises(errors.InputError, match="sampling_rate=inf; expected a positive number"):
        e.with_time(sampling_rate=float("inf"))
    assert e.with_time(sampling_rate=np.float32(10)).time_axis.rate == 10


def test_an_index_of_the_channels_is_no_time_axis():
    e = whence.explain(convolution(2).eval(), torch.randn(1, 2, 40), 1, feature_names=["a", "b"]).with_time(["x", "y"])
    with pytest.raises(errors.InputError, match="the time axis has 2 steps, but the series"):
        plots.series(e)


class OverTime(nn.Module):
    """A linear map over time that all channels share, of inputs `[N, C, T]` or `[N, T, C]`."""

    def __init__(self, transposed):
        super().__init__()
        self.linear, self.transposed = nn.Linear(96, 4), transposed

    def forward(self, x):
        x = x.permute(0, 2, 1) if self.transposed else x
        return self.linear(x.reshape(-1, 96)).reshape(len(x), -1, 4).mean(1)


@pytest.mark.parametrize("transposed", [False, True])
def test_channels_that_share_a_map_over_time_are_few(transposed):
    shape = (2, 96, 3) if transposed else (2, 3, 96)
    rows = plots.series(whence.explain(OverTime(transposed).eval(), torch.randn(*shape), 0)).to_frame()
    assert (rows.channel.nunique(), rows.step.nunique()) == (3, 96)


def test_static_features_beside_a_series_have_no_time():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv1d(2, 4, 3), nn.Linear(6, 2)

        def forward(self, series, static):
            return self.linear(torch.cat([self.conv(series).relu().mean(-1), static], 1))

    inputs = {"series": torch.randn(1, 2, 24), "static": torch.randn(1, 2)}
    e = whence.explain(Both().eval(), inputs, 0, feature_names={"static": ["age", "sex"]})
    rows = e.with_time(pd.date_range("2024-01-01", periods=24)).to_frame()
    assert rows[rows.input == "static"].feature.tolist() == ["age", "sex"]
    assert rows[rows.input == "static"].time.isna().all()
    assert rows[rows.input == "series"].time.iloc[1] == "2024-01-02"


def test_positions_of_forecasts_are_named_and_kept(tmp_path):
    class Forecast(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(12, 6)

        def forward(self, x):
            return self.linear(x.flatten(1)).reshape(-1, 3, 2)

    x = torch.randn(2, 2, 6)
    for target in (1, whence.Logit(1, position=0)):
        e = whence.explain(Forecast().eval(), x, target)
        assert e.target_names()[0] == f"1 at position {2 if target == 1 else 0} of 3"
        assert whence.load(e.save(tmp_path / "e.npz")).target_names() == e.target_names()
