"""What the function mode sees, refuses and keeps right: the situations other libraries get wrong in silence."""

import pytest
import torch
from torch import nn

import whence

pytestmark = pytest.mark.usefixtures("float64")


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()


def overwritten():
    """A network whose first layer's output is overwritten by the ReLU behind it."""
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 4), nn.Sigmoid()).eval()


INNER = [
    whence.LRP(),
    "gradient_times_input",
    "sensitivity",
    "integrated_gradients",
    whence.FeatureAblation(),
    whence.Shapley(),
]


@pytest.mark.parametrize("method", INNER, ids=str)
def test_a_neuron_is_explained_as_the_network_that_ends_there(method):
    net, x = overwritten(), torch.randn(2, 1, 4, 4)
    for target, part, value in (
        (whence.objectives.Neuron("3", 2), net[:4], lambda y: y[:, 2]),
        (whence.objectives.Neuron("0", 1, position=(0, 1)), net[:1], lambda y: y[:, 1, 0, 1]),  # before the ReLU
        (whence.objectives.Channel("0", 1), net[:1], lambda y: y[:, 1].mean((1, 2))),
        (whence.objectives.Channel("3", 2) - whence.objectives.Channel("3", 0), net[:4], lambda y: y[:, 2] - y[:, 0]),
    ):
        e, expected = whence.explain(net, x, target, method=method), whence.explain(part, x, value, method=method)
        assert torch.allclose(e.output, expected.output)
        assert torch.allclose(e.relevance, expected.relevance, atol=1e-9)
        assert e.target_names() == [str(target)] * 2


def test_several_targets_some_of_them_inside():
    net, x = overwritten(), torch.randn(2, 1, 4, 4)
    inner, outer = whence.explain_targets(net, x, [whence.objectives.Neuron("3", 2), 2])
    assert torch.allclose(inner.relevance, outer.relevance)  # the value before the final sigmoid
    assert outer.note
    assert not inner.note
    assert torch.allclose(whence.Explainer(net)(x, whence.objectives.Neuron("3", 2)).relevance, inner.relevance)


def test_a_neuron_that_is_not_there():
    net, x = overwritten(), torch.randn(2, 1, 4, 4)
    with pytest.raises(whence.errors.SelectorError, match="no layer 'three'"):
        whence.explain(net, x, whence.objectives.Neuron("three", 2))
    with pytest.raises(whence.errors.TargetError, match="channel 9 is out of range"):
        whence.explain(net, x, whence.objectives.Neuron("3", 9))
    with pytest.raises(whence.errors.TargetError, match="Caricature needs the activations of its photo, which only pr"):
        whence.explain(net, x, whence.objectives.Caricature("0", x[:1]))


@pytest.mark.parametrize("method", [None, "integrated_gradients", "feature_ablation"])
def test_outputs_with_positions_but_without_tokens_say_which_position_is_explained(method):
    torch.manual_seed(0)
    weights, x = torch.randn(3, 4), torch.randn(2, 6, 3)
    given = {} if method is None else {"method": method, "progress": False}
    e = whence.explain(lambda x: x.cumsum(1) @ weights, x, 2, **given)
    assert e.target_names() == ["2 at position 5 of 6"] * 2
    assert torch.allclose(e.output, (x.sum(1) @ weights)[:, 2])
    third = whence.explain(lambda x: x.cumsum(1) @ weights, x, whence.Logit(2, position=3), **given)
    assert torch.allclose(third.output, (x[:, :4].sum(1) @ weights)[:, 2])
