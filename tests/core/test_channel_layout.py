"""The channel dimension of a layer: one function for relevance through channels, concepts, stores, maps and prototypes."""

import pytest
import torch
from torch import nn

import whence
from whence.core.channel_layout import ChannelLayout, channel_dim
from whence.core.inputs import Inputs

IMAGE, SERIES = torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 7)
FIRST = {
    "conv2d": (nn.Conv2d(3, 6, 3), (2, 6, 6, 6)),
    "conv1d": (nn.Conv1d(5, 7, 3), (2, 7, 7)),
    "conv3d": (nn.Conv3d(1, 6, 3), (2, 6, 4, 4, 4)),
    "batch norm": (nn.BatchNorm1d(7), (2, 7, 7)),
    "group norm": (nn.GroupNorm(1, 7), (2, 7, 7)),
    "pool": (nn.MaxPool1d(2), (2, 7, 7)),
    "adaptive pool": (nn.AdaptiveMaxPool1d(7), (2, 7, 7)),
    "upsample": (nn.Upsample(scale_factor=2), (2, 7, 7)),
}
LAST = {
    "linear": (nn.Linear(4, 7), (2, 7, 7)),
    "linear of images": (nn.Linear(4, 6), (2, 6, 6, 6)),
    "layer norm": (nn.LayerNorm(7), (2, 7, 7)),
    "rms norm": (nn.RMSNorm(7), (2, 7, 7)),
    "lstm": (nn.LSTM(4, 7, batch_first=True), (2, 7, 7)),
    "attention": (nn.MultiheadAttention(8, 2), (2, 8, 8)),
    "embedding": (nn.Embedding(9, 7), (2, 7, 7)),
}


@pytest.mark.parametrize("behind", [None, nn.ReLU, nn.Dropout, nn.Identity])
@pytest.mark.parametrize("kind", [*FIRST, *LAST])
def test_each_kind_of_layer_and_what_stands_behind_it(kind, behind):
    module, shape = (FIRST | LAST)[kind]
    model = nn.Sequential(module) if behind is None else nn.Sequential(module, behind())
    a, x = torch.zeros(shape), SERIES if len(shape) == 3 else IMAGE
    expected = 1 if kind in FIRST else len(shape) - 1
    assert channel_dim(model, str(len(model) - 1), Inputs.of(x), a) == expected
    last = str(len(model) - 1)
    layout = ChannelLayout.of_layers(model, {last: model[-1]}, Inputs.of(x))[last]
    assert layout.dimension(torch.zeros(2, 4), x) == 1


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.Linear])
def test_the_number_of_channels_decides_where_the_type_does_not(norm):
    module = norm(6) if norm is nn.LayerNorm else norm(4, 6)
    block = nn.Sequential(nn.Sequential(module))  # permutes what its last module returned
    assert channel_dim(block, "0", Inputs.of(IMAGE), torch.zeros(2, 6, 4, 4)) == 1
    assert channel_dim(block, "0", Inputs.of(IMAGE), torch.zeros(2, 4, 4, 6)) == 3


@pytest.mark.parametrize("series", [True, False])
def test_stores_channels_and_conditions_agree(tmp_path, series):
    torch.manual_seed(0)
    if series:
        net = nn.Sequential(nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 4))
        x = torch.randn(6, 1, 128)
    else:
        net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 10, 4))
        x = torch.randn(6, 10, 3)
    net.eval()
    store = whence.explain_dataset(net, x, tmp_path / "s", layers=["1"], progress=False)
    channels = whence.channel_relevance(net, x, "1")
    assert channels.shape == (6, 16)
    torch.testing.assert_close(store.channels("1").float(), channels, atol=1e-3, rtol=1e-2)
    through = whence.explain(net, x, through={"1": 5})
    below = through.relevance.flatten(1).sum(1) + through.conservation.absorbed
    torch.testing.assert_close(below, channels[:, 5], atol=1e-5, rtol=1e-4)


class DefinedLate(nn.Module):
    """An activation that is defined behind the linear layer and runs before it."""

    def __init__(self, kind=nn.Conv2d):
        super().__init__()
        self.conv, self.fc, self.relu = kind(3, 6, 3, padding=1), nn.Linear(6, 4), nn.ReLU()

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).flatten(2).mean(2))


@pytest.mark.parametrize(("kind", "size"), [(nn.Conv2d, (8, 8)), (nn.Conv1d, (20,)), (nn.Conv2d, (6, 6))])
def test_the_order_of_execution_counts_not_that_of_definition(kind, size):
    torch.manual_seed(0)
    model, x = DefinedLate(kind).eval(), torch.randn(2, 3, *size)
    assert torch.allclose(
        whence.channel_relevance(model, x, "relu", 1), whence.channel_relevance(model, x, "conv", 1), atol=1e-5
    )
    through = [whence.explain(model, x, 1, through={layer: 2}).relevance for layer in ("relu", "conv")]
    assert torch.allclose(*through, atol=1e-5)
    e = whence.explain(model, x, 1, method=whence.GradCAM("relu"))
    assert e.layers["relu"].shape == (2, 1, *size)
    assert list(whence.explain(model, x, 1, method=whence.GradCAM()).layers) == ["relu"]


class Permuting(nn.Module):
    """A ConvNeXt block: its last part is a linear layer, its output has its channels first."""

    def __init__(self, channels=6):
        super().__init__()
        self.stem, self.dropped = nn.Conv2d(3, channels, 1), nn.Dropout(0.1)
        self.block = nn.ModuleDict({"norm": nn.LayerNorm(channels), "linear": nn.Linear(channels, channels)})
        self.head = nn.Linear(channels, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.block["linear"](self.block["norm"](x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.head(self.dropped(x + y).mean((2, 3)))


def test_a_layer_behind_a_permutation():
    x = torch.randn(2, 3, 4, 4)
    assert channel_dim(Permuting().eval(), "dropped", Inputs.of(x), torch.zeros(2, 6, 4, 4)) == 1
    assert channel_dim(Permuting().eval(), "block.linear", Inputs.of(x), torch.zeros(2, 4, 4, 6)) == 3


@pytest.mark.parametrize("size", [(12, 5), (5, 12), (12, 12), (16, 12), (4, 30)])
@pytest.mark.parametrize("time_first", [True, False])
def test_stores_sum_over_the_channels_of_series(tmp_path, size, time_first):
    torch.manual_seed(0)
    steps, channels = size
    if time_first:
        net = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * steps, 2)).eval()
        x = torch.randn(3, steps, channels)
    else:
        net = nn.Sequential(nn.Conv1d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * steps, 2)).eval()
        x = torch.randn(3, channels, steps)
    store = whence.explain_dataset(net, x, tmp_path / "s", target=1, progress=False)
    e = whence.explain(net, x, 1)
    torch.testing.assert_close(store.relevance[:].float(), e.relevance.sum(2 if time_first else 1), atol=1e-3, rtol=1e-2)
