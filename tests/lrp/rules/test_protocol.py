"""Rules as a user writes them: asked wherever they hold, and refused where they are no rules."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import whence
from whence import errors

pytestmark = pytest.mark.usefixtures("float64")


@dataclass(frozen=True)
class Damped(whence.ZPlus):
    """A subclass with factors of its own, which inherits a merged form that is not its own."""

    epsilon: float = 0.5

    def factors(self, z: Tensor, positive: Tensor, contributions: Tensor):
        return None, z / (positive + self.epsilon)


@dataclass(frozen=True)
class Alone:
    """A rule that inherits from nothing: half of the relevance along all contributions, half along the positive ones."""

    def factors(self, z: Tensor, positive: Tensor, contributions: Tensor):
        return torch.full_like(z, 0.5), 0.5 * z / (positive + 1e-9)


@dataclass(frozen=True)
class Merged:
    """z⁺, with a merged form that belongs to it."""

    def factors(self, z: Tensor, positive: Tensor, contributions: Tensor):
        return None, torch.where(positive > 0, z / positive, 0.0)

    def merged(self, weight: Tensor) -> Tensor:
        return weight.clamp(min=0)

    def merges(self, nonnegative: bool, rectified: bool) -> bool:
        return nonnegative


def network(relu: bool) -> nn.Sequential:
    act = nn.ReLU() if relu else nn.Identity()
    return nn.Sequential(nn.Conv2d(1, 4, 3), act, nn.Conv2d(4, 4, 3), act, nn.Flatten(), nn.Linear(64, 3)).eval()


def literal(net: nn.Sequential, x: Tensor, factors) -> Tensor:
    """Relevance of class 1 by the definition, layer by layer: factors on convolutions, LRP-0 on the dense layer."""
    activations = [x]
    for layer in net:
        activations.append(layer(activations[-1]))
    r = torch.zeros_like(activations[-1])
    r[:, 1] = activations[-1][:, 1]
    for layer, a, z in reversed(list(zip(net, activations, activations[1:], strict=False))):
        if isinstance(layer, nn.Linear):
            r = a * ((r / z) @ layer.weight)
        elif isinstance(layer, nn.Flatten):
            r = r.view_as(a)
        elif isinstance(layer, nn.Conv2d):
            w, b = layer.weight, layer.bias
            assert b is not None
            plus, minus = w.clamp(min=0), w.clamp(max=0)
            positive = F.conv2d(a.clamp(min=0), plus, b.clamp(min=0)) + F.conv2d(a.clamp(max=0), minus)
            whole, share = factors(z, positive.clone(), z)
            g = torch.where(z == 0, 0.0, r / z)
            back = lambda s, weight: F.conv_transpose2d(s, weight)  # noqa: E731
            new = torch.zeros_like(a) if whole is None else a * back(whole * g, w)
            r = new + a.clamp(min=0) * back(share * g, plus) + a.clamp(max=0) * back(share * g, minus)
    return r.detach()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("rule", [Damped(), Alone(), Merged()], ids=lambda rule: type(rule).__name__)
def test_a_rule_of_ones_own_gives_what_its_factors_say(rule, relu):
    net, x = network(relu), torch.rand(2, 1, 8, 8)
    e = whence.explain(net, x, 1, method=whence.LRP({nn.Conv2d: rule, nn.Linear: whence.Epsilon(0)}))
    torch.testing.assert_close(e.relevance, literal(net, x, rule.factors), rtol=1e-6, atol=1e-9)
    assert float(e.conservation.error.max()) < 1e-6  # what the rule loses is counted as absorbed
    plain = whence.explain(net, x, 1, method=whence.LRP({nn.Conv2d: whence.Gamma(0.1)})).relevance
    assert not torch.allclose(e.relevance, plain)


@pytest.mark.parametrize("relu", [True, False])
def test_a_subclass_is_asked_where_its_base_would_merge(relu):
    calls = []

    @dataclass(frozen=True)
    class Counting(whence.Gamma):
        def factors(self, z, positive, contributions):
            calls.append(1)
            return super().factors(z, positive, contributions)

    net, x = network(relu), torch.rand(2, 1, 8, 8)
    found = whence.explain(net, x, 1, method=whence.LRP({nn.Conv2d: Counting()})).relevance
    assert len(calls) == 2
    expected = whence.explain(net, x, 1, method=whence.LRP({nn.Conv2d: whence.Gamma()})).relevance
    torch.testing.assert_close(found, expected)


def test_factors_are_not_overwritten_where_they_are_the_output_itself():
    @dataclass(frozen=True)
    class Itself:
        def factors(self, z, positive, contributions):
            return z, contributions

    net, x = network(True), torch.rand(1, 1, 8, 8)
    method = whence.LRP({nn.Conv2d: Itself()})
    one = whence.explain(net, x, 1, method=method).relevance
    both = whence.explain_targets(net, x, [1, 1], method=method)
    for e in both:
        torch.testing.assert_close(e.relevance, one)


def test_a_share_of_ones_own_is_asked_and_accounted_for():
    @dataclass(frozen=True)
    class Half(whence.Epsilon):
        def share(self, g, z, rectified):
            return 0.5 * g

    net, x = network(True), torch.rand(2, 1, 8, 8)
    e = whence.explain(net, x, 1, method=whence.LRP({nn.Conv2d: Half(0)}))
    expected = whence.explain(net, x, 1, method=whence.LRP({nn.Conv2d: whence.Epsilon(0)})).relevance / 4
    torch.testing.assert_close(e.relevance, expected)
    assert float(e.conservation.error.max()) < 1e-6


def test_what_is_no_rule_is_refused():
    class Loose:
        def factors(self, z, positive, contributions):
            return None, z / positive

    @dataclass(frozen=True)
    class Wrong:
        def factors(self, z, positive, contributions):
            return z

    @dataclass(frozen=True)
    class Misshapen:
        def factors(self, z, positive, contributions):
            return None, z.new_ones(7)

    net, x = network(True), torch.rand(1, 1, 8, 8)
    for rule, message in (
        (Loose(), "frozen dataclass"),
        (Alone, "d is the class Alone, not an instance; pass Alone"),
        (3, "factors"),
        (Wrong(), "Wrong.factors must return"),
        (Misshapen(), "Misshapen.factors returned"),
    ):
        with pytest.raises(errors.RuleError, match=message):
            whence.explain(net, x, 1, method=whence.LRP({nn.Conv2d: rule}))


@dataclass(frozen=True)
class WithoutBias(whence.Gamma):
    bias: ClassVar[bool] = False


def test_a_bias_that_a_subclass_excludes_is_excluded_for_inputs_of_any_sign():
    torch.manual_seed(0)
    model, x, gamma = nn.Sequential(nn.Linear(6, 3)).eval(), torch.randn(5, 6), 0.25
    contributions = x * model[0].weight[0]
    positive, z = contributions.clamp(min=0), contributions.sum(1) + model[0].bias[0]
    own = torch.where(z < 0, (1 + gamma) * z.abs(), z)
    denominator = own + gamma * positive.sum(1)
    literal = (own[:, None] * contributions + gamma * z[:, None] * positive) / denominator[:, None]
    found = whence.explain(model, x, 0, method=whence.LRP({"0": WithoutBias(gamma)})).relevance
    assert torch.allclose(found, literal.detach(), rtol=1e-12)


@dataclass(frozen=True)
class OnlyMerged(whence.ZPlus):
    def merged(self, w):
        return w.clamp(min=0) + 0.1


@dataclass(frozen=True)
class FewArguments:
    def factors(self, z, positive):
        return None, positive


@dataclass(frozen=True)
class WithoutDenominator:
    def spread(self, linear, weights, share, a, present):
        return share


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (OnlyMerged(), "OnlyMerged overrides merged but inherits factors from ZPlus"),
        (FewArguments(), r"expected arguments: factors\(self, z, positive, contributions\)"),
        (WithoutDenominator(), "spread but not denominator"),
        ("nonsense", "not a rule"),
        (whence.Epsilon, "is the class Epsilon"),
    ],
)
def test_rules_that_would_be_ignored_are_refused_in_mappings_and_composites(rule, message):
    with pytest.raises(whence.errors.RuleError, match=message):
        whence.LRP({"0": rule})
    with pytest.raises(whence.errors.RuleError, match=message):
        whence.LRP(whence.presets.Composite((("0", rule),)))


@dataclass(frozen=True)
class ByDepth:
    rule: object

    def at(self, depth):
        return self.rule


def test_a_rule_by_depth_may_return_epsilon_and_nothing_without_factors():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(2, 6)
    explained = whence.explain(model, x, 0, method=whence.LRP({nn.Linear: ByDepth(whence.Epsilon(0.1))})).relevance
    assert torch.equal(explained, whence.explain(model, x, 0, method=whence.LRP({nn.Linear: whence.Epsilon(0.1)})).relevance)
    for wrong in (None, whence.WSquare(), whence.Identity()):
        with pytest.raises(whence.errors.RuleError, match=r"ByDepth\.at returned"):
            whence.explain(model, x, 0, method=whence.LRP({nn.Linear: ByDepth(wrong)}))


@dataclass(frozen=True)
class OwnIdentity(whence.Identity):
    pass


def test_a_subclass_of_a_function_rule_is_used_as_its_base():
    model = lambda x: torch.lgamma(x + 2).sum(1, keepdim=True)  # noqa: E731
    x = torch.rand(1, 4)
    ours, base = (whence.explain(model, x, 0, method=whence.LRP({torch.lgamma: r()})) for r in (OwnIdentity, whence.Identity))
    assert torch.equal(ours.relevance, base.relevance)


def edited_rule(scale):
    """Return a rule as an edited notebook cell would define it: one name and one repr, another body."""

    @dataclass(frozen=True)
    class Edited(whence.Gamma):
        def factors(self, z, positive, contributions):
            return None, scale * z / (positive + 0.1)

    return Edited()


@dataclass(frozen=True, eq=False)
class Scaled:
    scale: torch.Tensor

    def factors(self, z, positive, contributions):
        return None, self.scale * z / (positive + 0.1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (edited_rule(0.5), edited_rule(0.25)),
        (Scaled(torch.tensor(0.10001)), Scaled(torch.tensor(0.10004))),
        (whence.Gamma(0.25), edited_rule(0.5)),
    ],
)
def test_edited_rules_are_neither_cached_as_differentiable_graphs_nor_resumed(one, other, tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(2, 6)

    def relevance(rule, differentiable):
        given = x.clone().requires_grad_()
        with whence.relevance_rules(model, {nn.Linear: rule}, differentiable=differentiable):
            (g,) = torch.autograd.grad(model(given)[:, 0].sum(), given)
        return given.detach() * g

    relevance(one, True)
    assert torch.allclose(relevance(other, True), relevance(other, False), rtol=1e-6, atol=1e-7)
    whence.explain_dataset(model, (x, [0, 1]), tmp_path / "store", target=0, method=whence.LRP({nn.Linear: one}))
    with pytest.raises(whence.errors.StoreError, match="different settings"):
        whence.explain_dataset(model, (x, [0, 1]), tmp_path / "store", target=0, method=whence.LRP({nn.Linear: other}))
