"""Adapters, each beside the library that it is for."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.models.digits import digit_samples, digits


@pytest.fixture
def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def test_attribute_is_captums(net):
    captum = pytest.importorskip("captum.attr")
    x = torch.randn(3, 4)
    theirs, delta = captum.IntegratedGradients(net).attribute(x, target=1, return_convergence_delta=True, n_steps=64)
    method = whence.IntegratedGradients(n_steps=64)
    ours, our_delta = whence.adapters.Attribution(net, method).attribute(x, target=1, return_convergence_delta=True)
    assert torch.allclose(ours, theirs.float(), atol=1e-5)
    assert torch.allclose(our_delta, delta.float(), atol=1e-4)
    pair = whence.adapters.Attribution(lambda a, b: net(a + b)).attribute((x, x), target=1)
    assert isinstance(pair, tuple)
    assert len(pair) == 2


@pytest.mark.filterwarnings("ignore:Input Tensor")
def test_captums_own_code_takes_an_attribution(net):
    captum, metrics = pytest.importorskip("captum.attr"), pytest.importorskip("captum.metrics")
    x, ours = torch.randn(2, 4, requires_grad=True), whence.adapters.Attribution(net, "gradient_times_input")
    torch.manual_seed(0)
    smooth = captum.NoiseTunnel(ours).attribute(x, target=1, nt_samples=5, stdevs=0.1)
    torch.manual_seed(0)
    theirs = captum.NoiseTunnel(captum.InputXGradient(net)).attribute(x, target=1, nt_samples=5, stdevs=0.1)
    assert torch.allclose(smooth, theirs, atol=1e-5)
    torch.manual_seed(0)
    sensitivity = metrics.sensitivity_max(ours.attribute, x, target=1)
    torch.manual_seed(0)
    assert torch.allclose(sensitivity, metrics.sensitivity_max(captum.InputXGradient(net).attribute, x, target=1), atol=1e-5)


def test_other_arguments_are_held_fixed_and_repeated_with_the_batch(net):
    captum = pytest.importorskip("captum.attr")
    x, scale = torch.randn(3, 4), torch.tensor([[1.0], [2.0], [3.0]])
    model = lambda a, s: net(a * s)  # noqa: E731
    theirs = captum.IntegratedGradients(model).attribute(x, target=1, additional_forward_args=scale, n_steps=64)
    ours = whence.adapters.Attribution(model, whence.IntegratedGradients(n_steps=64))
    assert torch.allclose(ours.attribute(x, 1, scale), theirs.float(), atol=1e-5)
    with pytest.raises(errors.InputError, match="a tensor or a tuple of tensors"):
        ours.attribute([])


def test_rows_become_those_of_shap():
    shap = pytest.importorskip("shap")
    pd = pytest.importorskip("pandas")
    rows = np.random.default_rng(0).normal(size=(30, 3))
    frame = pd.DataFrame(rows, columns=["a", "b", "c"])
    weights = np.array([1.0, -2.0, 0.5])
    e = whence.explain(lambda f: np.asarray(f) @ weights, frame, lambda out: out, method=whence.Shapley(background=frame))
    found = whence.adapters.to_shap(e)
    assert found.feature_names == ["a", "b", "c"]
    assert np.allclose(found.data, rows)
    assert np.allclose(found.base_values + found.values.sum(1), rows @ weights)
    theirs = shap.Explainer(lambda f: np.asarray(f) @ weights, frame)(frame)
    assert np.allclose(found.values, theirs.values)
    assert np.allclose(found.base_values, theirs.base_values)
    with warnings.catch_warnings():  # of shap about matplotlib
        warnings.simplefilter("ignore")
        shap.plots.beeswarm(found, show=False)
        shap.plots.waterfall(found[0], show=False)


def test_images_become_those_of_shap_with_their_channels_last():
    pytest.importorskip("shap")
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 2)).eval()
    x = torch.rand(2, 3, 8, 8)
    e = whence.explain(net, x, 1)
    found = whence.adapters.to_shap(e)
    assert found.values.shape == (2, 8, 8, 3)
    assert np.allclose(found.data, x.permute(0, 2, 3, 1), atol=1e-6)
    assert np.allclose(found.values.sum((1, 2, 3)) + found.base_values, e.output, atol=1e-5)


def test_quantus_calls_a_method():
    quantus = pytest.importorskip("quantus")
    x, y = (t[:3] for t in digit_samples())
    score = quantus.Sparseness(disable_warnings=True, display_progressbar=False)
    func = whence.adapters.quantus_explain_func("lrp")
    theirs = score(model=digits(), x_batch=x.numpy(), y_batch=y.numpy(), a_batch=None, explain_func=func, device="cpu")
    ours = whence.evaluate(digits(), (x, y), ["lrp"], ["sparseness"], target="label", progress=False)
    assert np.allclose(theirs, ours.values["lrp"]["sparseness"], atol=1e-5)


@pytest.mark.parametrize("mask_type", ["attributes", "object"])
def test_graphs_are_explained_within_pytorch_geometric(mask_type):
    geometric = pytest.importorskip("torch_geometric")
    from torch_geometric.explain import Explainer
    from torch_geometric.nn import GCNConv

    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = GCNConv(3, 8), GCNConv(8, 2)

        def forward(self, x, edge_index):
            return self.second(self.first(x, edge_index).relu(), edge_index)

    net, x = Net().eval(), torch.randn(5, 3)
    edges = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
    explainer = Explainer(
        net, whence.adapters.graph_explainer("gradient_times_input"), explanation_type="model", node_mask_type=mask_type,
        model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"},
    )  # fmt: skip
    found = explainer(x, edges, index=1)
    given = x.clone().requires_grad_()
    out = net(given, edges)[1]
    (gradient,) = torch.autograd.grad(out[out.argmax()], given)
    expected = (x * gradient).sum(-1, keepdim=True) if mask_type == "object" else x * gradient
    assert torch.allclose(found.node_mask, expected, atol=1e-6)
    assert not found.node_mask[3:].any(), "the other component of the graph"
    assert geometric.__version__
    with pytest.raises(ValueError, match="does not support the given explanation settings"):
        Explainer(
            net, whence.adapters.graph_explainer(), explanation_type="model", node_mask_type=mask_type, edge_mask_type="object",
            model_config={"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"},
        )  # fmt: skip


def test_inseq_attributes_by_a_method():
    pytest.importorskip("inseq")
    import inseq
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "<unk>", "the", "cat", "sat", "on", "mat", "dog", "ran"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    name = whence.adapters.register_inseq_method("gradient_times_input")
    assert name == "whence_gradient_times_input"
    found = [
        inseq.load_model(model, kind, tokenizer=tokenizer)
        .attribute("the cat sat", "the cat sat on", attributed_fn="logit", show_progress=False, pretty_progress=False)[0]
        .target_attributions
        for kind in (name, "input_x_gradient")
    ]
    assert torch.allclose(*(torch.nan_to_num(t) for t in found), atol=1e-5)


def test_batches_update_a_metric_of_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics")
    x, y = (t[:6] for t in digit_samples())
    metric = whence.adapters.evaluation_metric(digits(), "sparseness", "lrp")
    assert isinstance(metric, torchmetrics.Metric)
    metric.update(x[:2], y[:2])
    metric.update(x[2:], y[2:])
    whole = whence.evaluate(digits(), (x, y), ["lrp"], ["sparseness"], target="label", progress=False)
    assert torch.allclose(metric.compute(), whole.values["lrp"]["sparseness"].double().mean())
    metric.reset()
    metric.update(x[:1], y[:1])
    assert torch.allclose(metric.compute(), whole.values["lrp"]["sparseness"][0].double())
    both = torchmetrics.MetricCollection({"a": metric, "b": whence.adapters.evaluation_metric(digits(), "complexity")})
    both.update(x[:2], y[:2])
    assert set(both.compute()) == {"a", "b"}
    with pytest.raises(errors.RuleError, match=r"one name of whence\.metrics"):
        whence.adapters.evaluation_metric(digits(), ["srg"])


def test_fixed_arguments_leave_paths_and_modes_as_they_are():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))

        def forward(self, x, k=1.0):
            return self.body(x) * k

    model, x = Scaled().eval(), torch.randn(2, 4)
    lrp = whence.adapters.Attribution(model, whence.LRP({"body.0": whence.Epsilon(0.3)}))
    assert torch.equal(lrp.attribute(x, 1), lrp.attribute(x, 1, additional_forward_args=1.0))
    model.train()
    with pytest.raises(errors.TrainingModeError):
        lrp.attribute(x, 1, additional_forward_args=1.0)


def test_graphs_of_other_tasks_are_explained_by_what_they_ask():
    pytest.importorskip("torch_geometric")
    from torch_geometric.explain import Explainer

    class Net(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.layer = nn.Linear(3, outputs, bias=False)

        def forward(self, x, edge_index):
            return self.layer(x)

    x, edges = torch.randn(5, 3), torch.tensor([[0, 1], [1, 2]])

    def mask(net, mode, index):
        algorithm = whence.adapters.graph_explainer("gradient_times_input")
        config = {"mode": mode, "task_level": "node", "return_type": "raw"}
        explainer = Explainer(net, algorithm, explanation_type="model", node_mask_type="attributes", model_config=config)
        return explainer(x, edges, index=index).node_mask

    one, several = Net(1).eval(), Net(3).eval()
    assert torch.allclose(mask(one, "regression", 2).sum(), one(x, edges)[2, 0], atol=1e-6)
    logit = one(x, edges)[2, 0]
    assert torch.allclose(mask(one, "binary_classification", 2).sum(), logit.abs(), atol=1e-6)
    assert torch.allclose(mask(several, "multiclass_classification", 2).sum(), several(x, edges)[2].max(), atol=1e-6)
    with pytest.raises(errors.InputError, match=r"has outputs of shape \(5, 3\); expected one for each node or graph"):
        mask(several, "regression", 2)


def test_metrics_of_several_methods_stay_apart_in_a_collection():
    torchmetrics = pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    net[0].weight.data.abs_()
    net[0].bias.data.zero_()
    make = whence.adapters.evaluation_metric
    alone = {name: make(net, "sparseness", name) for name in ("lrp", "gradient_times_input")}
    both = torchmetrics.MetricCollection({name: make(net, "sparseness", name) for name in alone})
    y = torch.tensor([0, 1, 2, 0])
    for x in (torch.rand(4, 4) + 0.1, torch.randn(4, 4)):
        both.update(x, y)
        for metric in alone.values():
            metric.update(x, y)
    assert {name: float(value) for name, value in both.compute().items()} == {k: float(m.compute()) for k, m in alone.items()}


def test_a_model_in_training_mode_is_refused_also_with_other_arguments():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x, w=1.0):
            return nn.functional.dropout(self.linear(x), 0.5, self.training) * w

    with pytest.raises(errors.TrainingModeError):
        whence.adapters.Attribution(Dropping().train()).attribute(torch.randn(2, 6), 0, additional_forward_args=2.0)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.filterwarnings("ignore:The set_bad")
def test_adapters_have_defaults_for_one_sample_and_many(count, outputs):
    shap, torchmetrics = pytest.importorskip("shap"), pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, outputs)).eval()
    x, y = torch.rand(count, 4), torch.zeros(count, dtype=torch.long)
    e = whence.explain(net, x, y)
    assert torch.equal(whence.adapters.Attribution(net).attribute(x, y), e.relevance)
    assert np.allclose(whence.adapters.quantus_explain_func()(net, x.numpy(), y.numpy()), e.relevance)
    found = whence.adapters.to_shap(e)
    assert isinstance(found, shap.Explanation)
    assert np.allclose(found.base_values + found.values.sum(1), e.output, atol=1e-6)
    metric = whence.adapters.evaluation_metric(net, "sparseness")
    assert isinstance(metric, torchmetrics.Metric)
    metric.update(x, y)
    assert 0 <= float(metric.compute()) <= 1


def test_graphs_are_explained_by_lrp_by_default_and_as_the_message_says():
    pytest.importorskip("torch_geometric")
    from torch_geometric.explain import Explainer

    class Selected(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2, bias=False)

        def forward(self, x, edge_index):
            return self.layer(x)[:, :1]

    net, x, edges = Selected().eval(), torch.randn(4, 3), torch.tensor([[0, 1], [1, 2]])
    config = {"mode": "regression", "task_level": "node", "return_type": "raw"}
    explainer = Explainer(
        net, whence.adapters.graph_explainer(), explanation_type="model", node_mask_type="attributes", model_config=config
    )
    assert torch.allclose(explainer(x, edges).node_mask.sum(), net(x, edges).sum(), atol=1e-6)
