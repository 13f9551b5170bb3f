"""Constants that are folded into linear maps: the relevance of a sample does not depend on its batch."""

import pytest
import torch
from torch import nn

import whence

pytestmark = pytest.mark.usefixtures("float64")

LAYERS = {
    "dense": (nn.Linear(5, 6), (5,), (6,)),
    "dense of tokens": (nn.Linear(5, 6), (4, 5), (1, 6)),
    "convolution of series": (nn.Conv1d(3, 6, 3), (3, 9), (6, 1)),
    "convolution": (nn.Conv2d(3, 6, 3, padding=1), (3, 7, 7), (6, 1, 1)),
    "convolution of volumes": (nn.Conv3d(2, 6, 2), (2, 4, 4, 4), (6, 1, 1, 1)),
    "transposed convolution": (nn.ConvTranspose2d(3, 6, 3, stride=2), (3, 4, 4), (6, 1, 1)),
    "batch norm alone": (nn.BatchNorm2d(6), (6, 5, 5), (6, 1, 1)),
    "batch norm behind": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), (3, 7, 7), (6, 1, 1)),
}
RULES = [whence.Epsilon(0.1), whence.Gamma(0.25), whence.AlphaBeta(2, 1), whence.ZPlus()]


class Conditional(nn.Module):
    """A layer, a constant with one row a sample, and an activation, as a U-Net adds the embedding of its time step."""

    def __init__(self, layer, shape, act):
        super().__init__()
        self.layer, self.act, self.table = layer.double(), act, nn.Parameter(torch.randn(1, *shape))

    def forward(self, x, rows=None):
        rows = self.table.expand(len(x), *self.table.shape[1:]) if rows is None else rows
        return self.act(self.layer(x) + rows).flatten(2).sum(2) if x.dim() > 2 else self.act(self.layer(x) + rows)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Identity(), nn.GELU()], ids=str)
@pytest.mark.parametrize("rule", [None, *RULES], ids=repr)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_constant_with_a_row_a_sample_is_folded_in_every_batch(layer, rule, act):
    torch.manual_seed(0)
    layer, shape, constant = LAYERS[layer]
    net, x = Conditional(layer, constant, act).eval(), torch.randn(3, *shape)
    method = None if rule is None else whence.LRP(dict.fromkeys((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), rule))
    together = whence.explain(net, x, 1, method=method)
    for i in range(3):
        assert torch.allclose(
            together.relevance[i], whence.explain(net, x[i : i + 1], 1, method=method).relevance[0], rtol=1e-9
        )
    assert together.conservation.error.max() < 1e-9


def test_rows_that_differ_are_told_apart():
    torch.manual_seed(0)
    layer, shape, constant = LAYERS["convolution"]
    net, x, rows = Conditional(layer, constant, nn.ReLU()).eval(), torch.randn(3, *shape), torch.randn(3, *constant)
    together = whence.explain(lambda x: net(x, rows[: len(x)]), x, 1)
    for i in range(3):
        alone = whence.explain(lambda x, i=i: net(x, rows[i : i + 1]), x[i : i + 1], 1)
        assert torch.allclose(together.relevance[i], alone.relevance[0], rtol=1e-9)
        assert torch.allclose(together.conservation.absorbed[i], alone.conservation.absorbed[0], rtol=1e-9)
