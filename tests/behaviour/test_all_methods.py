"""What holds for every method: inputs and modes of all kinds, models that overwrite, targets of all kinds."""

import pytest
import torch
from torch import nn

import whence
from support.comparisons import close, relevance
from support.small_language_model import Language
from whence import errors

pytestmark = pytest.mark.usefixtures("float64")


METHODS = {
    "lrp": whence.LRP(whence.presets.epsilon_plus()),
    "integrated_gradients": whence.IntegratedGradients(n_steps=4),
    "expected_gradients": whence.ExpectedGradients(torch.linspace(-1, 1, 30).view(5, 6), n_samples=6),
    "smooth_grad": whence.SmoothGrad(n_samples=3),
    "simple_taylor": whence.SimpleTaylor(),
    "taylor_at_a_number": whence.SimpleTaylor(0.25),
    "occlusion": whence.Occlusion(),
    "feature_ablation": whence.FeatureAblation(),
    "shapley": whence.Shapley(),
    "sensitivity": whence.Sensitivity(),
}


every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Overwriting(nn.Module):
    """Writes into what it is given, as ReLU(inplace=True) in front does; or into a copy."""

    def __init__(self, copies):
        super().__init__()
        torch.manual_seed(0)
        self.copies, self.first, self.last = copies, nn.Linear(6, 9), nn.Linear(9, 3)
        self.eval()

    def forward(self, x, gain=None):
        gain = torch.ones(6, dtype=torch.int) if gain is None else gain
        x, gain = (x.clone(), gain.clone()) if self.copies else (x, gain)
        return self.last(torch.tanh(self.first(x.mul_(2).add_(0.3) * gain.add_(1) / 2)))


@every_method
def test_models_that_overwrite_their_inputs(method):
    if isinstance(method, whence.SimpleTaylor) and method.root == "nearest":
        method = whence.SimpleTaylor(whence.roots.NearestRoot(tolerance=1e-6))
    if isinstance(method, whence.ExpectedGradients):
        method = whence.ExpectedGradients({"x": method.background}, n_samples=6)
    inputs = {"x": torch.randn(2, 6), "gain": torch.arange(6).int()}
    kept = {name: part.clone() for name, part in inputs.items()}
    ours, theirs = (whence.explain(Overwriting(copies), inputs, 1, method=method) for copies in (False, True))
    close(ours.relevance["x"], theirs.relevance["x"])
    for name, part in inputs.items():
        assert torch.equal(part, kept[name])


@every_method
def test_in_inference_mode(method):
    model, x = Overwriting(True), torch.randn(2, 6)
    expected = relevance(model, x, method, 1)
    with torch.inference_mode():
        found = relevance(model, x, method, 1)
        made_here = relevance(model, x * 1, method, torch.tensor([1, 1]))
    close(found, expected)
    close(made_here, expected)
    assert not found.is_inference()


@every_method
def test_targets_of_all_kinds(method):
    model, x = Overwriting(True), torch.randn(2, 6)
    expected = relevance(model, x, method, 1)
    for target in (torch.tensor(1), [1, 1], whence.Logit(torch.tensor(1)), lambda y: y[:, 1]):
        close(relevance(model, x, method, target), expected)


@every_method
def test_nothing_that_is_returned_has_a_graph(method):
    e = whence.explain(Overwriting(True), torch.randn(2, 6).requires_grad_(), 1, method=method)
    for t in (e.relevance, e.output, e.conservation.relevance, *e.numbers().values()):
        assert not t.requires_grad


@every_method
def test_several_inputs_of_different_dtypes_and_one_number_a_sample(method):
    if isinstance(method, whence.ExpectedGradients):
        method = whence.ExpectedGradients({"x": torch.randn(5, 6), "t": torch.randn(5)}, n_samples=6)
    inputs = {"x": torch.randn(2, 6), "t": torch.rand(2, dtype=torch.float32)}
    e = whence.explain(lambda x, t: torch.stack([x.sum(1) * 2 - 0.4 + t, t], 1), inputs, 0, method=method)
    for name, part in inputs.items():
        assert e.relevance[name].shape == part.shape
        assert e.relevance[name].dtype == part.dtype


def test_a_function_target_over_its_own_samples_is_computed_one_round_at_a_time():
    model, x, one_hot = Overwriting(True), torch.randn(2, 6), torch.eye(3)[[1, 2]]
    x[0, :3] = 0
    for method in ("occlusion", "integrated_gradients", "shapley"):
        e = whence.explain(model, x, lambda y: (y * one_hot).sum(1), method=method, progress=False)
        close(e.relevance, whence.explain(model, x, torch.tensor([1, 2]), method=method, progress=False).relevance)
    e = whence.explain(model, x, lambda y: (y * one_hot[:1]).sum(1), method=whence.Shapley(batch_size=2))
    close(e.relevance[1], relevance(model, x[1:], whence.Shapley(), 1)[0])


def test_an_altered_text_is_asked_for_its_own_words():
    model, ids = Language(), torch.tensor([[1, 5, 2, 9, 4, 7]])
    e = whence.explain(model, {"input_ids": ids}, whence.Span(3, 6), method=whence.FeatureAblation({"input_ids": 0}))
    for i in range(6):
        other = ids.clone()
        other[0, i] = 0
        y, z = model(ids)[0], model(other)[0]
        expected = sum(y[t - 1, ids[0, t]] - z[t - 1, ids[0, t]] for t in range(3, 6))
        close(e.relevance["input_ids"][0, i], expected.detach())
    assert repr(e.target) == "Span(start=3, stop=6)"
    assert e[0].target.ids.shape == (1, 6)


def test_one_baseline_is_that_of_the_text_not_of_its_mask():
    inputs = {"input_ids": torch.tensor([[1, 5, 2]]), "attention_mask": torch.ones(1, 3).long()}
    for method in (whence.FeatureAblation(0), whence.Occlusion(baselines=0), whence.Shapley(0), whence.IntegratedGradients(0)):
        e = whence.explain(Language(), inputs, 4, method=method)
        assert e.relevance["attention_mask"] is None
        assert e.relevance["input_ids"].abs().sum() > 0
    two = {"input_ids": inputs["input_ids"], "segments": inputs["input_ids"]}
    with pytest.raises(errors.InputError, match="ids, segments; pass a dict or tuple structured like the inpu"):
        whence.explain(lambda input_ids, segments: input_ids.float(), two, 0, method=whence.FeatureAblation(0))


class Gated(nn.Module):
    """Looks ids up under no_grad first, and a table that all samples share."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.table, self.places = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)
        self.eval()

    def forward(self, x, order, ids):
        with torch.no_grad():
            gate = self.gate(ids).sigmoid()
        return self.head((self.table(ids) * gate + self.places.weight[order.sum() % 5]).tanh().mean(1)) + x


@pytest.mark.parametrize("shared", [3, 7])
def test_look_ups_without_gradient_and_shared_integers(shared):
    order, ids = torch.arange(shared), torch.tensor([[1, 2, 3], [4, 5, 6]])
    e = whence.explain(Gated(), (torch.zeros(2, 1), order, ids), 1, method=whence.IntegratedGradients())
    # the gate is looked up without gradient, but moves along: only the sum over what has a gradient is given
    vectors, model = Gated().table(ids).detach(), Gated()

    def rest(v, alpha_gate):
        return model.head((v * model.gate(ids).mul(alpha_gate).sigmoid() + model.places.weight[order.sum() % 5]).tanh().mean(1))

    nodes, weights = (torch.from_numpy(t) for t in whence.methods.integrated_gradients.QUADRATURES["gausslegendre"](50))
    expected = torch.zeros(2, 3)
    for alpha, weight in zip(nodes, weights, strict=True):
        point = (alpha * vectors).requires_grad_()
        (g,) = torch.autograd.grad(rest(point, alpha)[:, 1].sum(), point)
        expected += weight * (g * vectors).sum(-1)
    close(e.relevance[2], expected)


def test_smoothgrad_of_a_text_alone_equals_it_in_a_batch():
    model, ids = Language(), torch.tensor([[1, 5, 2], [3, 3, 7]])
    both = relevance(model, ids, whence.SmoothGrad(n_samples=5), 4)
    close(both[1:], relevance(model, ids[1:], whence.SmoothGrad(n_samples=5), 4))


def test_variances_do_not_cancel_in_single_precision():
    slopes = torch.tensor([1000.0, 2000, 3000, 4000], dtype=torch.float32)
    f = lambda x: (slopes.to(x) * x + 5e-4 * x**2).sum(1, keepdim=True)  # noqa: E731
    method = whence.SmoothGrad(kind="vargrad", stdevs=1.0)
    single, double = (relevance(f, torch.ones(1, 4, dtype=t), method) for t in (torch.float32, torch.float64))
    assert double.max() < 1e-5
    assert single.max() < 1e-5


def test_noise_without_a_range_has_to_be_given():
    with pytest.raises(errors.InputError, match="give stdevs"):
        relevance(lambda x: x, torch.ones(1, 4), whence.SmoothGrad())


def test_bfloat16():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).bfloat16().eval()
    x = torch.randn(2, 6).bfloat16()
    for name, method in METHODS.items():
        if name not in ("expected_gradients", "lrp"):
            assert relevance(model, x, method).dtype == torch.bfloat16, name


def test_a_flat_function_has_no_root_rather_than_nan():
    with pytest.raises(errors.ModelError, match="no root of the output found"):
        relevance(lambda x: (torch.relu(x.sum(1)) + 5)[:, None], -torch.ones(1, 3), whence.SimpleTaylor())
    e = whence.explain(lambda x: (torch.relu(x.sum(1)) - 5)[:, None], -torch.ones(1, 3), 0, method=whence.SimpleTaylor())
    close(e.root.sum(1), [5.0], atol=1e-2, rtol=0)  # found from another start, since the gradient at the sample is zero


def test_a_box_for_one_of_two_inputs_leaves_the_other_free():
    f = lambda a, b: (a + b).sum(1, keepdim=True)  # noqa: E731
    e = whence.explain(f, {"a": torch.ones(1, 2), "b": torch.full((1, 2), 0.9)}, 0,
                       method=whence.SimpleTaylor(whence.roots.NearestRoot(low={"a": 0.5})))  # fmt: skip
    assert e.root["a"].min() >= 0.5 - 1e-9
    assert e.root["b"].max() < 0


def test_exact_baselines_in_double_precision_change_nothing():
    rows = []
    whence.explain(lambda x: (rows.append(len(x)), x)[1], torch.full((1, 4), 0.1), 0, method=whence.FeatureAblation(0.1))
    assert sum(rows) == 1
