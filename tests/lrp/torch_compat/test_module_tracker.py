"""Functions that are met in the wild: what each does to relevance, and what a model may do beside its output."""

import pytest
import torch
from torch import nn

import whence
from support.opaque_function import Hidden
from whence import LRP, ZBox, errors, presets

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def x():
    return torch.randn(3, 4)


@pytest.mark.parametrize("rules", [{nn.Conv2d: ZBox(0, 1)}, presets.epsilon_gamma(), presets.epsilon_plus_flat()], ids=repr)
def test_backward_hooks_of_modules_look_and_change_nothing(rules):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5), nn.ReLU()).eval()
    x, seen = torch.rand(2, 1, 6, 6), []
    plain = whence.explain(net, x, 1, method=LRP(rules), layers=["0", "2"])
    handles = [m.register_full_backward_hook(lambda *given: seen.append(given)) for m in net.modules()]
    hooked = whence.explain(net, x, 1, method=LRP(rules), layers=["0", "2"])
    assert torch.allclose(hooked.relevance, plain.relevance, rtol=1e-10, atol=1e-14)
    for name in ("0", "2"):
        assert torch.allclose(hooked.layers[name], plain.layers[name], rtol=1e-10, atol=1e-14)
    assert seen
    for handle in handles:
        handle.remove()


def test_what_hides_behind_a_backward_hook_is_still_refused(x):
    class Hides(nn.Module):
        def forward(self, x):
            return Hidden.apply(x)

    net = nn.Sequential(Hides(), nn.Linear(4, 2)).eval()
    net[0].register_full_backward_hook(lambda *given: None)
    with pytest.raises(errors.OpaqueError):
        whence.explain(net, x, 1)
