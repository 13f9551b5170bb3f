"""Methods made of gradients: closed forms, captum's portable truths and captum itself, completeness."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from test_texts import Language
from toys import C, L, M, b2, b3, picture
from whence import (
    LRP,
    Deconvnet,
    Epsilon,
    ExpectedGradients,
    Gamma,
    GradCAM,
    GradientTimesInput,
    GuidedBackprop,
    IntegratedGradients,
    LayerCAM,
    Sensitivity,
    SmoothGrad,
    ZPlus,
    errors,
)
from whence.methods.integrated_gradients import QUADRATURES

pytestmark = pytest.mark.usefixtures("float64")


def relevance(model, x, method, target=0):
    return whence.explain(model, x, target, method=method).relevance


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), **tolerance)


def cnn(seed=0, act=nn.ReLU, pool=nn.MaxPool2d):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), act(), pool(2), nn.Conv2d(6, 8, 3), act(), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).eval()


# captum's portable truths


def test_integrated_gradients_of_two_spellings_of_one_function():
    for f in (b2, b3):
        e = whence.explain(f, torch.tensor([[3.0, 1.0]]), 0, method=IntegratedGradients(n_steps=2000))
        close(e.relevance, [[1.5, -0.5]], atol=1e-3, rtol=0)
        assert e.conservation.gap.abs() < 1e-3


def test_integrated_gradients_of_m():
    e = whence.explain(M(), torch.tensor([[20.0, 50, 30]]), 0, method=IntegratedGradients(n_steps=2000))
    close(e.relevance, [[78.0, 195, 117]], atol=0.02, rtol=0)
    close(e.conservation.baseline, [2.0])


@pytest.mark.parametrize("n", [2, 3, 4])
def test_quadratures(n):
    def nodes_and_weights(name):
        return [torch.from_numpy(part) for part in QUADRATURES[name](n)]

    for name, offset in (("riemann_left", 0), ("riemann_right", 1), ("riemann_middle", 0.5)):
        nodes, weights = nodes_and_weights(name)
        close(nodes, [(j + offset) / n for j in range(n)])
        close(weights, [1 / n] * n)
    for name in QUADRATURES:
        close(nodes_and_weights(name)[1].sum(), 1.0)  # captum's trapezoid sums to (n − 1) / n
    nodes, weights = nodes_and_weights("gausslegendre")
    for power in range(2 * n):  # exact to degree 2n − 1
        close((weights * nodes**power).sum(), 1 / (power + 1))
    if n == 3:
        close(nodes, [0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15)])
        close(weights, [5 / 18, 8 / 18, 5 / 18])


def test_smoothgrad_without_noise_is_plain():
    x = torch.randn(2, 3, 12, 12)
    for method in (Sensitivity("signed"), GradientTimesInput(), LRP()):
        smooth = relevance(cnn(), x, SmoothGrad(method, n_samples=3, stdevs=0.0))
        close(smooth, relevance(cnn(), x, method))


def test_gradients_of_m_leave_the_input_alone():
    x = torch.tensor([[20.0, 50, 30]], requires_grad=True)
    close(relevance(M(), x, Sensitivity("signed")), [[4.0, 4, 4]])
    close(relevance(M(), x, Sensitivity()), [[16.0, 16, 16]])
    close(relevance(M(), x, Sensitivity("absolute")), [[4.0, 4, 4]])
    close(relevance(M(), x, GradientTimesInput()), [[80.0, 200, 120]])
    assert x.grad is None


@pytest.mark.parametrize("inplace", [False, True])
def test_guided_backprop_and_deconvnet_of_c(inplace):
    model = C()
    model.relu1.inplace = model.relu2.inplace = inplace
    guided, deconvnet = relevance(model, picture(), GuidedBackprop()), relevance(model, picture(), Deconvnet())
    close(guided, [[[[0.0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1]]]])
    close(deconvnet, [[[[2.0, 3, 3, 1], [3, 5, 5, 2], [3, 5, 5, 2], [1, 2, 2, 1]]]])


def test_grad_cam_of_c_and_guided():
    maps = {name: whence.explain(C(), picture(), 0, method=GradCAM(name, relu=False)) for name in ("conv1", "relu1")}
    close(maps["conv1"].layers["conv1"], [[[[11.25, 13.5], [20.25, 22.5]]]])
    close(maps["relu1"].layers["relu1"], [[[[0.0, 4], [28, 32.5]]]])
    guided = F.interpolate(maps["relu1"].layers["relu1"], (4, 4)) * relevance(C(), picture(), GuidedBackprop())
    close(guided, [[[[0.0, 0, 4, 4], [0, 0, 12, 8], [28, 84, 97.5, 65], [28, 56, 65, 32.5]]]])


def test_lrp_of_the_toys():
    x = torch.tensor([[1.0, 2, 3]])
    close(relevance(L(), x, LRP({nn.Linear: Epsilon(1e-9)})), [[18.0, 36, 54]])
    gammas = {"linear": Gamma(1.0), "linear2": Gamma(0.25)}
    close(relevance(L(-2.0), x, LRP(gammas)), [[28 / 3, 104 / 3, 52]])
    close(relevance(L(-2.0), x, LRP({nn.Linear: ZPlus()})), [[12.0, 33.6, 50.4]])
    epsilon = relevance(C(), picture(), LRP({(nn.Conv2d, nn.Linear): Epsilon(1e-9)}))
    close(epsilon, [[[[0.0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]]]], atol=1e-6, rtol=0)
    skip = nn.Linear(2, 2, bias=False)
    nn.init.constant_(skip.weight, 5.0)
    close(relevance(lambda x: skip(x) + x, torch.tensor([[2.0, 3]]), LRP({nn.Linear: Epsilon(1e-9)}), 1), [[10.0, 18]])


def test_lrp_of_two_inputs_counts_nothing_twice():
    model, x = M(), torch.tensor([[1.0, 2, 3]])
    e = whence.explain(lambda a, b: model(a + b), (x, 3 * x), 0, method=LRP({nn.Linear: Epsilon(1e-9)}))
    close(e.relevance[0], [[4.0, 8, 12]], atol=1e-5, rtol=1e-6)
    close(e.relevance[1], [[12.0, 24, 36]], atol=1e-5, rtol=1e-6)
    close(e.conservation.absorbed, [-8.0], atol=1e-5, rtol=0)


# captum itself


def captum():
    return pytest.importorskip("captum.attr", reason="captum is a development dependency")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", [name for name in QUADRATURES if name != "riemann_trapezoid"])
def test_captum_agrees_on_integrated_gradients(seed, method):
    model, x = cnn(seed, nn.Tanh), torch.randn(2, 3, 12, 12)
    baselines, target = torch.randn(1, 3, 12, 12), torch.tensor([1, 4])
    theirs = captum().IntegratedGradients(model).attribute(x, baselines, target, n_steps=20, method=method)
    ours = whence.explain(model, x, target, method=IntegratedGradients(baselines, n_steps=20, method=method, batch_size=7))
    torch.testing.assert_close(ours.relevance, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layer", ["0", "1", "3", "4"])
def test_captum_agrees_on_grad_cam(seed, layer):
    model, x = cnn(seed), torch.randn(2, 3, 12, 12)
    for relu in (False, True):
        theirs = captum().LayerGradCam(model, model[int(layer)]).attribute(x, 2, relu_attributions=relu)
        ours = whence.explain(model, x, 2, method=GradCAM(layer, relu=relu))
        torch.testing.assert_close(ours.layers[layer], theirs)


@pytest.mark.filterwarnings("ignore")
def test_captum_agrees_on_guided_backprop_and_deconvnet():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(relevance(model, x, GuidedBackprop(), 3), captum().GuidedBackprop(model).attribute(x, 3))
    torch.testing.assert_close(relevance(model, x, Deconvnet(), 3), captum().Deconvolution(model).attribute(x, 3))


# completeness


@pytest.mark.parametrize("act", [nn.Tanh, nn.GELU, nn.Softplus])  # smooth: a kink costs the quadrature its order
def test_integrated_gradients_are_complete(act):
    e = whence.explain(
        cnn(1, act, nn.AvgPool2d), torch.randn(3, 3, 12, 12), method=IntegratedGradients(torch.randn(3, 3, 12, 12))
    )
    assert e.conservation.error.max() < 1e-8
    close(e.conservation.output - e.conservation.baseline, e.relevance.flatten(1).sum(1), rtol=1e-8, atol=1e-8)


def test_expected_gradients_are_complete_up_to_their_error():
    model, x, background = cnn(1, nn.Tanh), torch.randn(2, 3, 12, 12), torch.randn(40, 3, 12, 12)
    e = whence.explain(model, x, 1, method=ExpectedGradients(background, n_samples=400))
    close(e.conservation.baseline, model(background)[:, 1].detach().mean().expand(2))
    assert e.conservation.gap.abs().max() < 4 * model(background)[:, 1].std() / 400**0.5
    exact = torch.stack([relevance(model, x, IntegratedGradients(b[None]), 1) for b in background]).mean(0)
    off = (e.relevance - exact) / e.standard_errors
    assert 0.6 < off.square().mean().sqrt() < 1.3


def test_a_linear_function_is_integrated_exactly_by_one_step():
    w, x, background = torch.randn(5), torch.randn(2, 5), torch.randn(6, 5)
    close(relevance(lambda x: (x @ w)[:, None], x, IntegratedGradients(n_steps=1)), x * w)
    expected = relevance(lambda x: (x @ w)[:, None], x, ExpectedGradients(background, n_samples=12))
    close(expected, (x - background.mean(0)) * w)


# token ids


def ids():
    return torch.tensor([[1, 5, 2, 9], [3, 3, 7, 1]])


@pytest.mark.parametrize("start", [None, 0])
def test_integrated_gradients_of_token_ids(start):
    model = Language()
    method = IntegratedGradients(None if start is None else {"input_ids": start}, n_steps=30, batch_size=7)
    e = whence.explain(model, {"input_ids": ids(), "attention_mask": torch.ones(2, 4).long()}, 4, method=method)
    assert e.relevance["input_ids"].shape == (2, 4)
    assert e.conservation.error.max() < 1e-6
    vectors = model.table(ids()).detach()
    begin = torch.zeros_like(vectors) if start is None else model.table.weight[start].detach().expand_as(vectors)

    def on_vectors(v):  # the same from the vectors on
        x = v
        mask = torch.ones(4, 4, dtype=torch.bool).tril()
        return model.head(x + F.scaled_dot_product_attention(model.q(x), model.k(x), model.v(x), mask))[:, -1]

    oracle = whence.explain(on_vectors, vectors, 4, method=IntegratedGradients(begin, n_steps=30))
    torch.testing.assert_close(e.relevance["input_ids"], oracle.relevance.sum(-1))


def test_expected_gradients_and_smoothgrad_of_token_ids():
    model = Language()
    e = whence.explain(model, ids(), 4, method=ExpectedGradients(torch.randint(11, (7, 4)), n_samples=300))
    assert e.conservation.gap.abs().max() < 0.2
    plain = relevance(model, ids(), GradientTimesInput(), 4)
    near = relevance(model, ids(), SmoothGrad(GradientTimesInput(), n_samples=30, stdevs=1e-4), 4)
    torch.testing.assert_close(near, plain, rtol=1e-2, atol=1e-3)
    noisy = [relevance(model, ids(), SmoothGrad(n_samples=6, batch_size=b), 4) for b in (None, 2)]
    torch.testing.assert_close(*noisy)
    assert not torch.allclose(noisy[0], plain)
    with pytest.raises(errors.RuleError, match="cannot be nested"):
        whence.explain(model, ids(), 4, method=SmoothGrad(IntegratedGradients()))


# smoothing


def test_smoothgrad_and_its_variants_by_hand():
    model, x = cnn(act=nn.Tanh), torch.randn(2, 3, 12, 12)
    method = Sensitivity("signed")
    draws = []

    def noisy(x):
        draws.append(x.detach())
        return model(x)

    smooth = whence.explain(noisy, x, 1, method=SmoothGrad(method, n_samples=5, stdevs=0.3, batch_size=2))
    copies = torch.cat(draws[1:])
    assert copies.shape[0] == 10
    noise = copies.view(5, 2, 3, 12, 12) - x
    torch.testing.assert_close(noise[:, 0], noise[:, 1])  # the same for every sample
    assert 0.28 < noise[:, 0].std() < 0.32
    each = torch.stack([relevance(model, x + n, method, 1) for n in noise])
    torch.testing.assert_close(smooth.relevance, each.mean(0))
    for kind, expected in (("smoothgrad_sq", each.square().mean(0)), ("vargrad", each.var(0))):
        torch.testing.assert_close(relevance(model, x, SmoothGrad(method, 5, 0.3, kind), 1), expected)


def test_the_noise_is_a_share_of_each_samples_range():
    x = torch.stack([torch.linspace(0, 1, 50), torch.linspace(0, 10, 50)])
    seen = []
    whence.explain(lambda x: (seen.append(x), x)[1], x, 0, method=SmoothGrad(n_samples=200))
    spread = (torch.cat(seen[1:]).detach().view(200, 2, 50) - x).std((0, 2))
    close(spread, [0.15, 1.5], rtol=0.05, atol=0)


def test_smoothgrad_explains_the_target_of_the_input_itself():
    x = torch.tensor([[0.1, 0.0]])
    e = whence.explain(lambda x: x, x, None, method=SmoothGrad(n_samples=50, stdevs=5.0))
    assert e.target.tolist() == [0]
    close(e.relevance, [[1.0, 0.0]])


# class activation maps


def test_layer_cam_by_hand():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    a = model[:2](x).detach().requires_grad_()
    (g,) = torch.autograd.grad(model[2:](a)[:, 2].sum(), a)
    expected = (g.clamp(min=0) * a).sum(1, keepdim=True).clamp(min=0).detach()
    e = whence.explain(model, x, 2, method=LayerCAM("1"))
    torch.testing.assert_close(e.layers["1"], expected)
    sized = F.interpolate(expected, (12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(e.relevance.sum(1, keepdim=True), sized)


def test_the_last_spatial_layer_is_found():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    found, named = (whence.explain(model, x, 2, method=GradCAM(layer)) for layer in (None, "4"))
    assert list(found.layers) == ["4"]
    torch.testing.assert_close(found.relevance, named.relevance)
    pooled = nn.Sequential(model[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    assert list(whence.explain(pooled, x, 2, method=GradCAM()).layers) == ["0.4"]
    series = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7, 3)).eval()
    assert whence.explain(series, torch.randn(2, 2, 9), 1, method=GradCAM()).relevance.shape == (2, 2, 9)


def test_several_targets_share_what_can_be_shared():
    calls = []
    model, x = cnn(), torch.randn(2, 3, 12, 12)

    def counted(x):
        calls.append(len(x))
        return model(x)

    for method in (IntegratedGradients(n_steps=5), SmoothGrad(n_samples=5), whence.Occlusion((3, 6, 6))):
        calls.clear()
        one, two = whence.explain_targets(counted, x, [1, 2], method=method)
        together = sum(calls)
        calls.clear()
        alone = whence.explain(counted, x, 2, method=method)
        assert together == sum(calls)
        torch.testing.assert_close(two.relevance, alone.relevance)
        assert not torch.allclose(one.relevance, two.relevance)


# bad input


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: IntegratedGradients(method="simpson"), "choose from gausslegendre"),
        (lambda: IntegratedGradients(n_steps=0), "too few"),
        (lambda: ExpectedGradients(torch.zeros(3, 4), n_samples=1), "at least 2"),
        (lambda: SmoothGrad(Sensitivity), "is no method"),
        (lambda: SmoothGrad(kind="mean"), "choose from smoothgrad"),
        (lambda: SmoothGrad(stdevs=-1.0), "negative"),
        (lambda: Sensitivity("squared"), "choose 'square'"),
    ],
)
def test_methods_refuse_wrong_settings(method, message):
    with pytest.raises(errors.RuleError, match=message):
        method()


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (IntegratedGradients(torch.zeros(3, 1, 1)), errors.InputError, "baselines of shape"),
        (IntegratedGradients(torch.zeros(3, 3, 12, 12)), errors.InputError, "baselines of shape"),
        (IntegratedGradients(batch_size=0), errors.InputError, "batch_size=0"),
        (IntegratedGradients((0.0, 1.0)), errors.InputError, "2 baselines for 1 inputs"),
        (IntegratedGradients({"x": 0.0}), errors.InputError, "is no input"),
        (IntegratedGradients(float("nan")), errors.InputError, "NaN"),
        (ExpectedGradients(torch.zeros(5, 3, 8, 8)), errors.InputError, "give \\[B, 3, 12, 12\\]"),
        (GradCAM("5"), errors.SelectorError, "no picture"),
        (GradCAM("7"), errors.SelectorError, "no layer '7'"),
        (GradCAM("*"), errors.SelectorError, "stands for 7 layers"),
        (GuidedBackprop(), errors.ModelError, "defined by ReLUs"),
    ],
)
def test_methods_refuse_what_does_not_fit(method, error, message):
    with pytest.raises(error, match=message):
        whence.explain(cnn(act=nn.Tanh), torch.randn(2, 3, 12, 12), 0, method=method)


def test_inner_layers_are_refused_where_they_would_be_ignored():
    for method in ("integrated_gradients", "smooth_grad", "grad_cam", "occlusion", "shapley", "simple_taylor", "rise"):
        with pytest.raises(errors.RuleError, match="gives no relevance to inner layers"):
            whence.explain(cnn(), torch.randn(1, 3, 12, 12), 0, method=method, layers=["0"])


def test_class_activation_maps_need_pictures():
    with pytest.raises(errors.InputError, match="one picture"):
        whence.explain(nn.Linear(4, 2).eval(), torch.randn(1, 4), 0, method=GradCAM())
    with pytest.raises(errors.ModelError, match="reads a layer of"):
        whence.explain(lambda x: x.flatten(1), torch.randn(1, 3, 4, 4), 0, method=GradCAM())
    with pytest.raises(errors.SelectorError, match="name one with layer="):
        whence.explain(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), torch.randn(1, 1, 4, 4), 0, method=GradCAM())
