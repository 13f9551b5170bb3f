"""Methods made of gradients: closed forms, captum's portable truths and captum itself, completeness."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from support.comparisons import captum, close, cnn, relevance
from support.toy_models import C, L, M, b2, b3, picture
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
    Sensitivity,
    SmoothGrad,
    ZPlus,
    errors,
)
from whence.methods.integrated_gradients import QUADRATURES

pytestmark = pytest.mark.usefixtures("float64")


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


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: IntegratedGradients(method="simpson"), "choose from gausslegendre"),
        (lambda: IntegratedGradients(n_steps=0), "too few"),
        (lambda: ExpectedGradients(torch.zeros(3, 4), n_samples=1), "at least 2"),
        (lambda: SmoothGrad(Sensitivity), "is not a method; pass an instance such as whence"),
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
        (IntegratedGradients({"x": 0.0}), errors.InputError, "which is not an input; the inputs are unnamed"),
        (IntegratedGradients(float("nan")), errors.InputError, "NaN"),
        (ExpectedGradients(torch.zeros(5, 3, 8, 8)), errors.InputError, r"expected \[B, 3, 12, 12\]"),
        (GradCAM("5"), errors.SelectorError, "which is not a feature map of the input"),
        (GradCAM("7"), errors.SelectorError, "no layer '7'"),
        (GradCAM("*"), errors.SelectorError, "layers; name one of them"),
        (GuidedBackprop(), errors.ModelError, "GuidedBackprop needs a model with ReLUs, and this one has no"),
    ],
)
def test_methods_refuse_what_does_not_fit(method, error, message):
    with pytest.raises(error, match=message):
        whence.explain(cnn(act=nn.Tanh), torch.randn(2, 3, 12, 12), 0, method=method)


def test_inner_layers_are_refused_where_they_would_be_ignored():
    for method in ("integrated_gradients", "smooth_grad", "grad_cam", "occlusion", "shapley", "simple_taylor", "rise"):
        with pytest.raises(errors.RuleError, match="computes no relevance of inner layers; omit "):
            whence.explain(cnn(), torch.randn(1, 3, 12, 12), 0, method=method, layers=["0"])


def test_class_activation_maps_need_pictures():
    with pytest.raises(errors.InputError, match="class activation maps need exactly one image input"):
        whence.explain(nn.Linear(4, 2).eval(), torch.randn(1, 4), 0, method=GradCAM())
    with pytest.raises(errors.ModelError, match="reads a layer of"):
        whence.explain(lambda x: x.flatten(1), torch.randn(1, 3, 4, 4), 0, method=GradCAM())
    with pytest.raises(errors.SelectorError, match="no layer of the model returns feature maps of"):
        whence.explain(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), torch.randn(1, 1, 4, 4), 0, method=GradCAM())
