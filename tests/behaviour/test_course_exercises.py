"""The course sheets (exercises B, C, D, E), solved with whence alone; closed forms in float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import whence
from whence import LRP, AlphaBeta, Epsilon, Gamma, GradientTimesInput, Sensitivity, WSquare, ZBox, ZPlus

pytestmark = pytest.mark.usefixtures("float64")


def everywhere(rule) -> LRP:
    return LRP({F.linear: rule})


def one_output(y: Tensor) -> Tensor:
    return y[:, 0]


def test_b_linear_model():
    w, x = torch.randn(1, 5), torch.randn(2, 5)
    model = lambda x: F.linear(x, w)  # noqa: E731
    squares = whence.explain(model, x, one_output, method=Sensitivity()).relevance
    assert torch.allclose(squares, w.square().expand(2, 5), rtol=1e-14)
    at_zero = whence.explain(model, x, one_output, method=GradientTimesInput()).relevance
    assert torch.allclose(at_zero, w * x, rtol=1e-14)


def test_b_gradient_times_input_is_exact_without_biases():
    model = nn.Sequential(
        nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)
    )
    x = torch.randn(5, 6)
    e = whence.explain(model.eval(), x, method=GradientTimesInput())
    assert torch.allclose(e.relevance.sum(1), model(x).max(1).values, rtol=1e-12)
    assert e.conservation.error.max() < 1e-12


def test_b_w_square_is_the_taylor_decomposition_at_the_nearest_root():
    w, x = torch.randn(1, 5), torch.randn(1, 5)
    r = whence.explain(lambda x: F.linear(x, w), x, one_output, method=everywhere(WSquare())).relevance
    assert torch.allclose(r, w.square() / w.square().sum() * (w * x).sum(), rtol=1e-12)


def relu_network(hidden: list[list[float]], top: list[float]):
    w1, w2 = (torch.tensor(w, dtype=torch.float64) for w in (hidden, [top]))
    return lambda a: F.linear(F.relu(F.linear(a, w1)), w2)


MAXIMA = {
    "i": (relu_network([[1, -1], [0, 1]], [1, 1]), lambda a, b: (max(0.0, a - b), b)),
    "ii": (relu_network([[-1, 1], [1, 0]], [1, 1]), lambda a, b: (a, max(0.0, b - a))),
    "iii": (
        relu_network([[0.5, 0.5], [0.5, -0.5], [-0.5, 0.5]], [1, 1, 1]),
        lambda a, b: (a - b / 2, b / 2) if a >= b else (a / 2, b - a / 2),
    ),
}


@pytest.mark.parametrize("rule", [AlphaBeta(1, 0), ZPlus()], ids=repr)
@pytest.mark.parametrize("name", MAXIMA)
@pytest.mark.parametrize("a", [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.0, 0.0), (0.5, 0.4)])
def test_c_maximum(name, a, rule):
    model, expected = MAXIMA[name]
    e = whence.explain(model, torch.tensor([a]), one_output, method=everywhere(rule))
    assert e.output.item() == pytest.approx(max(a))
    assert e.relevance[0].tolist() == pytest.approx(list(expected(*a)), abs=1e-12)


def first_minimum(a1: float, a2: float, g: float) -> tuple[float, float]:
    if a1 == a2:
        return a1, 0.0
    y, p = a2, (1 + g) * a1 - (a1 - a2)
    r3, r4 = (1 + g) * a1 / p * y, -(a1 - a2) / p * y
    q = (1 + g) * a1 - a2
    return r3 + (1 + g) * a1 / q * r4, -a2 / q * r4


@pytest.mark.parametrize("g", [0.0, 0.25, 1.0, 10.0])
@pytest.mark.parametrize("a", [(3.0, 1.0), (2.0, 2.0), (1.7, 1.5)])
def test_c_minimum(a, g):
    first = relu_network([[1, 0], [1, -1]], [1, -1])  # y = relu(a1) − relu(a1 − a2)
    mirror = relu_network([[-1, 1], [0, 1]], [-1, 1])  # y = relu(a2) − relu(a2 − a1)
    method = everywhere(Gamma(g))
    r = whence.explain(first, torch.tensor([a]), one_output, method=method).relevance[0].tolist()
    assert r == pytest.approx(list(first_minimum(*a, g)), abs=1e-12)
    r = whence.explain(mirror, torch.tensor([a[::-1]]), one_output, method=method).relevance[0].tolist()
    assert r == pytest.approx(list(first_minimum(*a, g))[::-1], abs=1e-12)


def mlp(bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8, bias), nn.ReLU(), nn.Linear(8, 7, bias), nn.ReLU(), nn.Linear(7, 3, bias)).eval()


@pytest.mark.parametrize("rule", [Epsilon(0), Gamma(0.25), AlphaBeta(2, 1), AlphaBeta(3, 2), AlphaBeta(1, 0)], ids=repr)
def test_d_relevance_is_conserved(rule):
    x = torch.rand(4, 6)
    e = whence.explain(mlp(), x, method=everywhere(rule), layers=["0", "2"])
    assert e.conservation.error.max() < 1e-12
    if rule not in (AlphaBeta(2, 1), AlphaBeta(3, 2), AlphaBeta(1, 0)):  # those lose R where a neuron has no positive part
        for relevance in (e.relevance, e.layers["0"], e.layers["2"]):
            assert torch.allclose(relevance.sum(1), e.output, rtol=1e-10)


def test_d_alpha_beta_is_relevance_and_counter_relevance():
    """R^∧ = αR along positive and R^∨ = −βR along negative weights, added: the same as one sum with α and β."""
    w, a, r = torch.randn(4, 6), torch.rand(6), torch.rand(4)
    up, down = w.clamp(min=0), w.clamp(max=0)
    alpha, beta = 2, 1
    relevance = a * (up.T @ (alpha * r / (up @ a)))
    counter = a * (down.T @ (-beta * r / (down @ a)))
    g = r / (w @ a)
    ours = whence.explain(lambda x: F.linear(x, w), a[None], lambda z: (z * g).sum(1), method=everywhere(AlphaBeta(2, 1)))
    assert torch.allclose(ours.relevance[0], relevance + counter, rtol=1e-10)


def test_d_deep_taylor_of_a_relu_layer_is_alpha1_beta0():
    """First-order Taylor of relu(wᵀa + b) at the root on the segment from a to a·1[w < 0] (the rescaled excitation)."""
    w, b, a = torch.randn(6), -0.1, torch.rand(6) + 0.5
    w[0] = 10.0  # active
    direction = a * (w > 0)
    t = (w @ a + b) / (w @ direction)
    root = a - t * direction
    taylor = w * (a - root)
    model = lambda x: F.relu(F.linear(x, w[None], torch.tensor([b])))  # noqa: E731
    ours = whence.explain(model, a[None], one_output, method=everywhere(ZPlus()))
    assert torch.allclose(ours.relevance[0], taylor, rtol=1e-10)


def test_d_pixel_box():
    w, x, r = torch.randn(3, 5), torch.rand(5), torch.rand(3)
    low, high = torch.zeros(5), torch.ones(5)
    q = x * w - low * w.clamp(min=0) - high * w.clamp(max=0)
    expected = (q / q.sum(1, keepdim=True) * r[:, None]).sum(0)
    g = r / (w @ x)
    ours = whence.explain(lambda x: F.linear(x, w), x[None], lambda z: (z * g).sum(1), method=everywhere(ZBox(0, 1)))
    assert torch.allclose(ours.relevance[0], expected, rtol=1e-10)


def test_d_digits_counter_relevance_grows_with_beta():
    from whence.models.digits import digit_samples, digits

    images, labels = digit_samples()
    model = digits().double()
    share = {}
    for alpha in (1, 2, 3):
        rules = {(F.conv2d, F.linear): AlphaBeta(alpha, alpha - 1)}
        r = whence.explain(model, images.double()[:10], labels[:10], method=LRP(rules)).relevance
        share[alpha] = (r.clamp(max=0).sum() / r.abs().sum()).abs().item()
    assert share[1] == 0
    assert 0 < share[2] < share[3]


def sheet_layer(layer: nn.Module, a: Tensor, gamma: float) -> Tensor:
    """z ← p · [z/p]_const with p the layer with weights w + γ w⁺ and bias b + γ b⁺."""
    weight, bias = (t.detach() + gamma * t.detach().clamp(min=0) for t in (layer.weight, layer.bias))
    z = layer(a)
    p = F.conv2d(a, weight, bias, layer.stride, layer.padding)
    return p * (z / p).detach()


def sheet_vgg(model: nn.Module, x: Tensor, target: int) -> Tensor:
    centre = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    spread = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    x, low, high = (
        t.detach().requires_grad_() for t in (x, ((0 - centre) / spread).expand_as(x), ((1 - centre) / spread).expand_as(x))
    )
    gammas = {2: 0.0} | dict.fromkeys([5, 7], -0.5) | dict.fromkeys([10, 12, 14], -1.0)
    gammas |= dict.fromkeys([17, 19, 21], -1.5) | dict.fromkeys([24, 26, 28], -2.0)
    first = model.features[0]
    up, down = first.weight.detach().clamp(min=0), first.weight.detach().clamp(max=0)
    z = first(x)
    p = F.conv2d(x, first.weight.detach(), padding=1) - F.conv2d(low, up, padding=1) - F.conv2d(high, down, padding=1)
    a = p * (z / p).detach()
    for i, layer in enumerate(model.features):
        if i in gammas:
            a = sheet_layer(layer, a, 10 ** gammas[i])
        elif i:
            a = F.relu(a) if isinstance(layer, nn.ReLU) else layer(a)
    model.classifier(torch.flatten(model.avgpool(a), 1))[0, target].backward()
    return x.data * x.grad + low.data * low.grad + high.data * high.grad


def test_e_vgg16():
    from torchvision.models import vgg16

    model = vgg16(weights=None).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.bias, 0, 0.05)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = torch.rand(1, 3, 64, 64).sub(mean).div(std)
    expected = sheet_vgg(model, x, 483)
    model.zero_grad()
    ours = whence.explain(model, x, 483, method=LRP(whence.presets.vgg16_falling_gamma()))
    assert (ours.relevance - expected).abs().max() < 1e-9 * expected.abs().max()
    assert ours.conservation.error.max() < 1e-9
