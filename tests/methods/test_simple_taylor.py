"""Simple Taylor decomposition: exercise B of the course sheet, roots of networks, the remainder."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import GradientTimesInput, Sensitivity, SimpleTaylor, errors
from whence.methods.taylor_roots import root_on_curve
from whence.roots import NearestRoot, RootOnManifold, RootTowards

pytestmark = pytest.mark.usefixtures("float64")


def net(*last):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3), *last).eval()


def linear():
    w, x = torch.randn(5), torch.randn(3, 5)
    return w, x, lambda x: (x @ w)[:, None]


def test_exercise_b_sensitivity_and_the_roots_of_a_linear_function():
    w, x, f = linear()
    assert torch.equal(whence.explain(f, x, 0, method=Sensitivity()).relevance, w.square().expand(3, 5))
    torch.testing.assert_close(whence.explain(f, x, 0, method=SimpleTaylor("origin")).relevance, w * x)
    nearest = whence.explain(f, x, 0, method=SimpleTaylor())
    torch.testing.assert_close(nearest.relevance, w.square() / w.dot(w) * f(x))
    torch.testing.assert_close(nearest.root, x - f(x) / w.dot(w) * w)
    assert nearest.conservation.absorbed.abs().max() < 1e-12


def test_exercise_b_gradient_times_input_is_exact_without_biases():
    model = nn.Sequential(nn.Linear(5, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)).eval()
    x = torch.randn(4, 5)
    for method in (GradientTimesInput(), SimpleTaylor("origin"), whence.IntegratedGradients(n_steps=3)):
        e = whence.explain(model, x, 1, method=method)
        torch.testing.assert_close(e.relevance.sum(1), model(x)[:, 1].detach())
        torch.testing.assert_close(e.relevance, whence.explain(model, x, 1, method=GradientTimesInput()).relevance)


def test_exercise_b_a_root_of_ones_own():
    w, x, f = linear()
    root = torch.randn(1, 5)
    e = whence.explain(f, x, 0, method=SimpleTaylor(root))
    torch.testing.assert_close(e.relevance, w * (x - root))
    torch.testing.assert_close(e.conservation.baseline, f(root)[:, 0].expand(3))


def test_exercise_b_the_nearest_root_in_a_box():
    w, f = torch.tensor([2.0, 1.0]), lambda x: (x @ torch.tensor([2.0, 1.0]) - 1.5)[:, None]
    x = torch.tensor([[1.0, 0.9]])
    free = whence.explain(f, x, 0, method=SimpleTaylor()).root
    torch.testing.assert_close(free, x - f(x) / 5 * w)
    boxed = whence.explain(f, x, 0, method=SimpleTaylor(NearestRoot(low=0.5, high=1.0, tolerance=1e-9))).root
    # x1 would be 0.44: it stops at the edge, and x2 has to give way
    torch.testing.assert_close(boxed, torch.tensor([[0.5, 0.5]]), rtol=0, atol=1e-6)


def test_exercise_b_a_root_on_the_data_manifold():
    w, x, f = linear()
    samples = torch.randn(40, 5)
    e = whence.explain(f, x, 0, method=SimpleTaylor(RootTowards(samples, tolerance=1e-9)))
    along = f(x) / (f(x) - f(samples).T)  # [3, 40]: where each line crosses
    distances = along * torch.cdist(x, samples)
    distances[(along <= 0) | (along > 1)] = float("inf")
    best = distances.argmin(1)
    expected = x + along[torch.arange(3), best, None] * (samples[best] - x)
    torch.testing.assert_close(e.root, expected)

    a, c = torch.randn(5, 2), torch.randn(5)
    codes = (x - c) @ torch.linalg.pinv(a).T
    on_manifold = whence.explain(f, x, 0, method=SimpleTaylor(RootOnManifold(lambda z: z @ a.T + c, codes, 1e-10))).root
    steepest, height = a.T @ w, f(codes @ a.T + c)
    nearest = codes - height / steepest.dot(steepest) * steepest
    torch.testing.assert_close(on_manifold, nearest @ a.T + c)
    encoded = whence.explain(
        f, x, 0, method=SimpleTaylor(RootOnManifold(lambda z: z @ a.T + c, lambda x: (x - c) @ torch.linalg.pinv(a).T, 1e-10))
    )
    torch.testing.assert_close(encoded.root, on_manifold)


@pytest.mark.parametrize(
    "root", ["nearest", NearestRoot(low=-3, high=3), RootTowards(torch.randn(60, 5))], ids=lambda r: str(r)[:12]
)
def test_roots_of_a_network_are_roots(root):
    model, x = net(), torch.randn(6, 5).clamp(-2.9, 2.9)
    e = whence.explain(model, x, 0, method=SimpleTaylor(root))
    assert (model(e.root)[:, 0].abs() <= 1e-4 * e.output.abs()).all()
    assert e.conservation.error.max() < 1e-12
    point = e.root.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
    torch.testing.assert_close(e.relevance, (x - e.root) * g)
    torch.testing.assert_close(e.conservation.absorbed, e.output - model(e.root)[:, 0].detach() - e.relevance.sum(1))
    assert torch.equal(e.conservation.by_layer["second-order terms"], e.conservation.absorbed)


def test_the_nearest_root_of_a_ball_is_on_its_surface():
    x = torch.tensor([[0.3, 0.4], [2.0, 0.0]])
    e = whence.explain(lambda x: (1 - x.square().sum(1))[:, None], x, 0, method=SimpleTaylor(NearestRoot(tolerance=1e-9)))
    torch.testing.assert_close(e.root, x / x.norm(dim=1, keepdim=True))
    # f(x) = R + ½ (x − x̃)ᵀ H (x − x̃) with H = −2: the second-order terms are −‖x − x̃‖²
    torch.testing.assert_close(e.conservation.absorbed, -(x - e.root).square().sum(1))


def test_the_nearest_root_fulfils_the_condition_of_lagrange():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 3)).eval()
    x = torch.randn(20, 5)
    e = whence.explain(model, x, 0, method=SimpleTaylor())
    point = e.root.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
    assert torch.cosine_similarity(x - e.root, g).abs().min() > 0.999


def test_the_nearest_root_is_the_nearest_of_many_samples():
    model, x = net(), torch.randn(8, 5)
    found = whence.explain(model, x, 0, method=SimpleTaylor()).root
    samples = x[:, None] + torch.randn(8, 20_000, 5) * (found - x).norm(dim=1)[:, None, None] / 5**0.5
    values = model(samples.flatten(0, 1))[:, 0].view(8, -1)
    crossed = values * model(x)[:, :1] <= 0
    distance = (samples - x[:, None]).norm(dim=2).masked_fill(~crossed, float("inf")).amin(1)
    assert ((found - x).norm(dim=1) <= 1.05 * distance).sum() >= 7  # a local minimum may lie farther


def test_the_nearest_root_at_a_kink_of_two_relus():
    f = lambda x: x.relu().sum(1, keepdim=True)  # noqa: E731
    e = whence.explain(f, torch.tensor([[2.0, 1.0], [0.5, 3.0]]), 0, method=SimpleTaylor())
    torch.testing.assert_close(e.root, torch.zeros(2, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(e.relevance, torch.tensor([[2.0, 1.0], [0.5, 3.0]]), atol=1e-3, rtol=0)


def test_the_origin_is_found_where_the_gradient_leads_nowhere():
    f = lambda x: x.abs().sum(1, keepdim=True) + 2 * (x[:, :1] * x[:, 1:2]).abs()  # noqa: E731  # a root at 0 alone
    e = whence.explain(f, torch.tensor([[0.3, -2.0, 1.0]]), 0, method=SimpleTaylor())
    assert e.root.norm() < 1e-3


def test_roots_of_small_relu_networks_are_as_near_as_those_of_sequential_quadratic_programming():
    optimize = pytest.importorskip("scipy.optimize")
    near, far = 0, 1.0
    for seed in range(12):
        torch.manual_seed(seed)
        size = (2, 3, 5)[seed % 3]
        model = nn.Sequential(nn.Linear(size, 8, bias=seed % 2 == 0), nn.ReLU(), nn.Linear(8, 1, bias=seed % 2 == 0)).eval()
        x = torch.randn(1, size)
        expected = _nearest_by_quadratic_programming(optimize, model, x)
        found = float((whence.explain(model, x, 0, method=SimpleTaylor()).root - x).norm())
        near, far = near + (found <= 1.01 * expected), max(far, found / expected)
    assert near >= 11
    assert far < 1.1


def _nearest_by_quadratic_programming(optimize, model, x):
    """Return the smallest distance of a root from forty starts."""

    def value(z):
        return model(torch.as_tensor(z)[None])[0, 0].item()

    def gradient(z):
        point = torch.as_tensor(z)[None].requires_grad_()
        return torch.autograd.grad(model(point)[0, 0], point)[0][0].numpy()

    x0, best = x[0].numpy(), float(x.norm()) if value(0 * x[0].numpy()) == 0 else float("inf")
    random = np.random.default_rng(0)
    for k in range(40):
        start = x0 + (0.1, 0.5, 1, 2, 4)[k % 5] * random.normal(size=len(x0))
        found = optimize.minimize(
            lambda z: ((z - x0) ** 2).sum(), start, jac=lambda z: 2 * (z - x0), method="SLSQP",
            constraints=[{"type": "eq", "fun": value, "jac": gradient}],
        ).x  # fmt: skip
        if abs(value(found)) <= 1e-4 * abs(value(x0)):
            best = min(best, float(np.linalg.norm(found - x0)))
    return best


def test_a_curve_that_is_crossed_late_is_closed_in():
    calls = []

    def value(t):
        calls.append(t)
        return torch.stack([1 - t[0] ** 3, 2 - t[1]])

    t, found = root_on_curve(value, torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.1]), tuple(2.0**k for k in range(8)), 1e-10)
    assert found.all()
    torch.testing.assert_close(t, torch.tensor([1.0, 2.0]))
    assert len(calls) < 30


def test_several_inputs_have_one_root_together():
    e = whence.explain(
        lambda a, b: (a.sum(1) + 2 * b.sum(1))[:, None], (torch.ones(1, 2), torch.ones(1, 1)), 0, method=SimpleTaylor()
    )
    torch.testing.assert_close(e.relevance, (torch.full((1, 2), 4 / 6), torch.full((1, 1), 16 / 6)))
    assert [part.shape for part in e.root] == [(1, 2), (1, 1)]


def test_digits_show_counter_relevance():
    """The report's finding: simple Taylor puts a large share against the class, LRP-α1β0 none."""
    from whence.models.digits import digit_samples, digits

    x, labels = digit_samples()
    model = digits().float()
    taylor = whence.explain(model, x.float(), labels, method=SimpleTaylor("origin")).relevance
    against = taylor.clamp(max=0).abs().sum() / taylor.abs().sum()
    assert against > 0.2
    z_plus = whence.explain(model, x.float(), labels, method=whence.LRP({(nn.Conv2d, nn.Linear): whence.ZPlus()})).relevance
    assert z_plus.clamp(max=0).abs().sum() / z_plus.abs().sum() < 1e-3


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (lambda: SimpleTaylor("closest"), errors.RuleError, "choose 'nearest'"),
        (lambda: NearestRoot(tolerance=0.0), errors.RuleError, "expected a fraction of the output between"),
        (lambda: NearestRoot(n_steps=0), errors.RuleError, "at least 1"),
        (lambda: SimpleTaylor(torch.zeros(1, 4)), errors.InputError, "baselines of shape"),
        (lambda: SimpleTaylor(NearestRoot(low=0.9)), errors.InputError, "lies outside"),
        (
            lambda: SimpleTaylor(RootTowards(torch.zeros(3, 4))),
            errors.InputError,
            r"of shape \(3, 4\) for an input of \(2, 5\); expected \[B, 5\]",
        ),
        (lambda: SimpleTaylor(RootOnManifold(lambda z: z, torch.zeros(3, 4))), errors.InputError, "codes of shape"),
        (lambda: SimpleTaylor(RootOnManifold(lambda z: z, torch.zeros(2, 4))), errors.InputError, "the decoder returned"),
    ],
)
def test_taylor_refuses(method, error, message):
    with pytest.raises(error, match=message):
        whence.explain(net(), torch.rand(2, 5), 0, method=method())


def test_an_output_without_a_root_says_so():
    model, x = net(nn.Softplus()), torch.randn(2, 5)
    with pytest.raises(errors.ModelError, match="found for sample 0, 1 near it"):
        whence.explain(model, x, 0, method=SimpleTaylor())
    with pytest.raises(errors.ModelError, match="on the lines to the given samples"):
        whence.explain(model, x, 0, method=SimpleTaylor(RootTowards(torch.randn(4, 5))))
    with pytest.raises(errors.InputError, match="Taylor decomposition needs floating-point inputs"):
        whence.explain(
            nn.Sequential(nn.Embedding(5, 3), nn.Flatten()).eval(), torch.ones(1, 2).long(), 0, method=SimpleTaylor()
        )
