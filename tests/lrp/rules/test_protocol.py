"""Rules as a user writes them: asked wherever they hold, and refused where they are no rules."""

from dataclasses import dataclass

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
