"""Names: of features, classes, words, methods and settings; data of NumPy and data frames; explanations read back."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def test_hints_at_what_is_meant(net):
    x = torch.randn(1, 4)
    for given, hint in (
        ("integrated_gradient", "did you mean 'integrated_gradients'"),
        (whence.presets.epsilon_plus(), r"whence\.LRP\(rules\)"),
        ({nn.Linear: whence.Epsilon()}, r"whence\.LRP\(rules\)"),
    ):
        with pytest.raises(errors.RuleError, match=hint):
            whence.explain(net, x, 1, method=given)
    for make, hint in (
        (lambda: whence.IntegratedGradients(internal_batch_size=3), "use batch_size here"),
        (lambda: whence.SmoothGrad(nt_samples=3), "use n_samples here"),
        (lambda: whence.Occlusion(strids=3), "did you mean 'strides'"),
        (lambda: whence.GradientTimesInput(steps=3), "it takes no arguments"),
    ):
        with pytest.raises(errors.UnknownArgumentError, match=hint) as raised:
            make()
        assert isinstance(raised.value, TypeError)


def test_what_is_saved_is_valid_json(net, tmp_path):
    e = whence.explain(net, torch.randn(1, 4), 1)
    with np.load(e.save(tmp_path / "e.npz")) as arrays:
        assert json.loads(str(arrays["about"]))["structure"] == "tensor"


@pytest.mark.parametrize("names", [np.array(["a", "b", "c"]), list(np.array([1, 2, 3])), {0: "a", 1: "b"}])
def test_class_names_of_any_kind(net, tmp_path, names):
    e = whence.explain(net, torch.randn(2, 4), 1, class_names=names)
    assert e.target_names() == [str(names[1])] * 2
    assert whence.load(e.save(tmp_path / "e.npz")).target_names() == e.target_names()


def test_names_with_dollars(net, tmp_path):
    names = ["cost_$_per_$^", "b", "c", "d"]
    e = whence.explain(net, torch.randn(1, 4), 0, feature_names=names, class_names=["US$ a_{ $", "b", "c"])
    assert e.save(tmp_path / "e.png").stat().st_size > 1000


def test_feature_names_of_what_has_no_columns():
    with pytest.raises(errors.InputError, match=r"1 feature_names for an input of shape \(3,\)"):
        whence.explain(lambda t: t * 2, torch.rand(3), feature_names=["a"])


def test_layers_that_ran_twice_and_inputs_given_twice_are_read_back(tmp_path):
    layer = nn.Linear(4, 4)
    e = whence.explain(nn.Sequential(layer, nn.ReLU(), layer).eval(), torch.randn(2, 4), 0, layers=["0"])
    read = whence.load(e.save(tmp_path / "e.npz"))
    assert all(torch.equal(a, b) for a, b in zip(read.layers["0"], e.layers["0"], strict=True))
    x = torch.randn(2, 4)
    twice = whence.explain(lambda a, b: a + b, (x, x), 1)
    assert torch.equal(whence.load(twice.save(tmp_path / "t.safetensors")).relevance[1], twice.relevance[1])
    half = whence.explain(layer.bfloat16().eval(), x.bfloat16(), 1)
    assert repr(whence.load(half.save(tmp_path / "h.npz"))) == repr(half)


def test_many_rows_that_belong_to_all_are_one_picture(tmp_path):
    e = whence.explain(lambda x: x.mean(0, keepdim=True), torch.randn(120, 8), 1)
    assert len(e.panels(0)) == 1
    assert e.save(tmp_path / "graph.png").stat().st_size > 1000


def test_what_is_held_fixed_is_named(net):
    model = lambda x, scale, mask: net(x * scale * mask)  # noqa: E731
    e = whence.explain(model, {"x": torch.randn(2, 4), "scale": 3, "mask": torch.ones(2, 4)}, 1)
    assert e.held_fixed == ["scale", "mask"]
    assert "held fixed: scale, mask" in repr(e)
    assert whence.explain(model, (torch.randn(2, 4), 3, torch.ones(2, 4).long()), 1).held_fixed == ["1", "2"]
    assert not whence.explain(net, torch.randn(2, 4), 1).held_fixed
