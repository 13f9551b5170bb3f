"""Names of methods: short names, classes, presets of rules, and those of other libraries."""

import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.core.method_aliases import ALIASES, DIFFERENT
from whence.methods.registry import METHODS, method_name, resolve_method


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


def test_every_spelling_of_a_method_is_the_method():
    for name, kind in METHODS.items():
        assert type(resolve_method(name)) is type(resolve_method(kind.__name__)) is kind
    for theirs, ours in [("input_x_gradient", "gradient_times_input"), ("ig", "integrated_gradients"),
                         ("InputXGradient", "gradient_times_input"), ("kernel_shap", "shapley"),
                         ("GradCAM++", "grad_cam_plus_plus"), ("layer_cam", "layer_cam"),
                         ("Deconvolution", "deconvnet")]:  # fmt: skip
        assert method_name(theirs) == ours
    assert set(ALIASES.values()) <= METHODS.keys()


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_not_the_same_is_said_in_one_sentence(name):
    assert name not in ALIASES
    with pytest.raises(errors.RuleError, match="no method") as raised:
        resolve_method(name)
    assert DIFFERENT[name] in str(raised.value)


def test_saliency_is_not_silently_its_square(net):
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x)[0, 1], x)
    with pytest.raises(errors.RuleError, match="'sensitivity' is its square"):
        whence.explain(net, x, 1, method="saliency")
    assert torch.allclose(whence.explain(net, x, 1, method="sensitivity").relevance, gradient**2, atol=1e-6)


def test_a_preset_is_named_wherever_rules_are(net):
    x = torch.rand(2, 3, 8, 8)
    for name in ("epsilon_plus", "deep_taylor", "attn_lrp"):
        expected = whence.explain(net, x, 1, method=whence.LRP(getattr(whence.presets, name)())).relevance
        assert torch.equal(whence.explain(net, x, 1, method=name).relevance, expected)
        assert torch.equal(whence.explain(net, x, 1, method=whence.LRP(name)).relevance, expected)
    with pytest.raises(errors.RuleError, match=r"pass whence.LRP\(whence.presets.epsilon_gamma_box\(low, high\)\)"):
        whence.explain(net, x, 1, method="epsilon_gamma_box")
    with pytest.raises(errors.SelectorError, match=r"'features.0' matched no linear map"):
        whence.explain(net, x, 1, method="vgg16_falling_gamma")
    with pytest.raises(errors.RuleError, match="did you mean 'epsilon_plus'"):
        whence.LRP("epsilon_pluss")


def test_modules_stand_for_their_paths(net):
    x = torch.rand(2, 3, 8, 8)
    by_module = whence.LRP({net[0]: whence.ZBox(0, 1), net[3]: whence.Epsilon(0.1)})
    by_path = whence.LRP({"0": whence.ZBox(0, 1), "3": whence.Epsilon(0.1)})
    ours, expected = (
        whence.explain(net, x, 1, method=method, layers=layers, through=condition)
        for method, layers, condition in ((by_module, [net[0]], {net[1]: [1]}), (by_path, ["0"], {"1": [1]}))
    )
    assert torch.equal(ours.relevance, expected.relevance)
    assert torch.equal(ours.layers["0"], expected.layers["0"])
    with pytest.raises(errors.SelectorError, match="the Linear that was given as a layer is not part of the model"):
        whence.explain(net, x, 1, layers=[nn.Linear(2, 2)])
    with pytest.raises(errors.SelectorError, match="matched no linear map"):
        whence.explain(net, x, 1, method=whence.LRP({nn.Linear(2, 2): whence.Epsilon(0.1)}))


def test_all_entry_points_take_modules(net):
    x = torch.rand(6, 3, 8, 8)
    assert torch.equal(whence.channel_relevance(net, x, net[1]), whence.channel_relevance(net, x, "1"))
    assert whence.concepts(net, x[:1], net[1], reference_inputs=x).layer == "1"


def test_objectives_name_layers_by_their_paths(net):
    for ask in (
        lambda: whence.explain(net, torch.rand(1, 3, 8, 8), whence.objectives.Neuron(net[0], 1)),
        lambda: whence.prototype(net, whence.objectives.Channel(net[0], 1), shape=(3, 8, 8), n_steps=1, progress=False),
    ):
        with pytest.raises(errors.SelectorError, match=r"objectives name layers by their paths, such as 'features\.28', got"):
            ask()


def test_stores_take_modules_as_layers(net, tmp_path):
    store = whence.explain_dataset(net, torch.rand(4, 3, 8, 8), tmp_path / "store", layers=[net[1]], progress=False)
    assert store.channels("1").shape == (4, 4)
