"""What the function mode sees, refuses and keeps right: the situations other libraries get wrong in silence."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from whence import LRP, Epsilon, Flat, Gamma, Identity, ZBox

pytestmark = pytest.mark.usefixtures("float64")


def first(y):
    return y[:, 0]


def sums(e):
    return e.relevance.flatten(1).sum(1)


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()


def test_selectors_by_path_glob_class_function_and_order():
    model, x = net(), torch.randn(2, 1, 6, 6)
    explained = [
        whence.explain(model, x, method=LRP(rules)).relevance
        for rules in (
            {"0": Gamma(1), "2": Gamma(1)},
            {"[02]": Gamma(1)},
            {nn.Conv2d: Gamma(1)},
            {F.conv2d: Gamma(1), nn.Linear: Epsilon()},
            {nn.Conv2d: Gamma(1), "*": Epsilon()},
            {(nn.Conv2d, nn.Linear): Gamma(1)},
        )
    ]
    assert all(torch.equal(r, explained[0]) for r in explained[:5])
    assert not torch.allclose(explained[5], explained[0])


def test_a_path_selects_everything_inside():
    model = nn.Sequential()
    model.add_module("body", net())
    x = torch.randn(1, 1, 6, 6)
    assert torch.equal(*(whence.explain(model.eval(), x, method=LRP({s: Gamma(1)})).relevance for s in ("body", "body.*")))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"3": Gamma()}, r"'3' matched no linear map"),
        ({"feature.0": Gamma()}, r"'feature.0' matched no"),
        ({F.conv1d: Gamma()}, "conv1d matched no"),
        ({"*": Gamma(), "0": Epsilon()}, r"'0' matched no linear map of the model that an earlier selector did not match$"),
        ({"0": Identity()}, "matched no nonlinear function"),
        ({int: Gamma()}, "Module class; pass a path, a module class or a torch functio"),
        ({3: Gamma()}, "selector 3 is not valid"),
    ],
)
def test_a_selector_that_matches_nothing_is_an_error(rules, message):
    with pytest.raises(whence.errors.SelectorError, match=message):
        whence.explain(net(), torch.randn(1, 1, 6, 6), method=LRP(rules))


def test_a_mistyped_layer_is_suggested():
    model = nn.Sequential()
    model.add_module("body", net())
    with pytest.raises(whence.errors.SelectorError, match="did you mean 'body'"):
        whence.explain(model.eval(), torch.randn(1, 1, 6, 6), layers=["bod"])


def test_rules_of_the_input_layer_belong_there():
    with pytest.raises(whence.errors.RuleError, match="touches the input"):
        whence.explain(net(), torch.randn(1, 1, 6, 6), method=LRP({"2": Flat()}))


def test_rules_in_front_of_a_preset():
    model, x = net(), torch.rand(1, 1, 6, 6)
    a = whence.explain(model, x, method=LRP({"0": ZBox(0, 1)} | whence.presets.epsilon_gamma()))
    b = whence.explain(model, x, method=LRP(whence.presets.epsilon_gamma_box(0, 1)))
    assert torch.equal(a.relevance, b.relevance)


def test_the_pixel_box_behind_a_normalisation_inside_the_model():
    """The input reaches the first convolution shifted, scaled, cut and padded: relevance still lands on it whole."""
    convolution = nn.Conv2d(3, 4, 3)
    mean, std = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5

    def model(x):
        x = F.pad((x - mean) / std, (1, 1, 1, 1))
        x = torch.cat([x[:, :1], x[:, 1:]], 1)
        return convolution(x).flatten(1)

    box = ZBox(((0 - mean) / std).amin(), ((1 - mean) / std).amax())
    x = torch.rand(2, 3, 5, 5)
    e = whence.explain(model, x, first, method=LRP({F.conv2d: box}))
    assert torch.allclose(sums(e), e.output, rtol=1e-10)


@pytest.mark.parametrize("selector", [nn.Conv3d, (nn.Conv3d, nn.LSTM)])
def test_a_class_may_match_nothing_so_that_one_set_of_rules_serves_many_networks(selector):
    net, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.rand(2, 4)
    rules = {selector: Gamma(), nn.Linear: Epsilon(0.1)}
    expected = whence.explain(net, x, 0, method=whence.LRP({nn.Linear: Epsilon(0.1)}))
    assert torch.equal(whence.explain(net, x, 0, method=whence.LRP(rules)).relevance, expected.relevance)
    with pytest.raises(whence.errors.SelectorError, match="matched no linear map"):
        whence.explain(net, x, 0, method=whence.LRP({(nn.Conv3d, "conv.*"): Gamma()}))


def test_combinations_have_users_rules_in_front_from_both_sides():
    preset, own = whence.presets.epsilon_plus(), {"0": whence.Epsilon(0.1)}
    assert (preset | own).entries == (own | preset).entries
    for combined in (lambda: whence.ZPlus() | own, lambda: own | whence.ZPlus(), lambda: whence.ZPlus() | preset):
        with pytest.raises(whence.errors.RuleError, match="by itself selects no layers; write"):
            combined()
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 3)
    rest = LRP({"0": whence.Epsilon(0.1)} | whence.presets.Composite.of({"*": whence.ZPlus()}))  # as the message says
    expected = LRP({"0": whence.Epsilon(0.1), "2": whence.ZPlus()})
    assert torch.equal(
        whence.explain(model, x, 0, method=rest).relevance, whence.explain(model, x, 0, method=expected).relevance
    )


def test_a_selector_of_a_module_without_such_a_function_says_so():
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.head = nn.EmbeddingBag(10, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.head(self.emb(ids))

    ids = torch.randint(0, 10, (2, 5))
    with pytest.raises(whence.errors.SelectorError, match="give the layer behind it a rule"):
        whence.explain(Bags().eval(), ids, 0, method=LRP({"emb": whence.ZPlus()}))
    assert whence.explain(Bags().eval(), ids, 0, method=LRP({"head": whence.ZPlus()})).relevance.shape == (2, 5)
    with pytest.raises(whence.errors.SelectorError, match="is of type ReLU, which calls none"):
        whence.explain(
            nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval(), torch.randn(1, 3), 0, method=LRP({"1": whence.ZPlus()})
        )
