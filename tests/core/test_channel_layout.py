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
    layout = ChannelLayout.of(model, str(len(model) - 1), model[-1])
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
