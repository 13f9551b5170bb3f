"""A prepared explainer gives what `explain` gives, whatever happened to the model since, and keeps no more than it should."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from whence import LRP, Epsilon, Gamma, presets
from whence.core.inputs import Inputs
from whence.graphs.cuda_graphs import as_cuda_graph
from whence.lrp.engine.linear_maps import Convolution

pytestmark = pytest.mark.usefixtures("float64")


RULES = [
    presets.attn_lrp(0.1),
    presets.epsilon_plus_flat(),
    presets.epsilon_alpha2_beta1(),
    presets.epsilon_gamma_box(-4.0, 4.0),
]


class Net(nn.Module):
    def __init__(self, inplace: bool = False):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        )
        self.head = nn.Linear(4, 5)
        self.overwrite = False
        self.eval()
        with torch.no_grad():
            for norm in (self.features[1], self.features[4]):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x):
        y = self.features(x) * 2
        if self.overwrite:
            kept = torch.sin(y)
            y += kept
        return self.head(y.mean((2, 3)))


def picture(samples: int = 2) -> torch.Tensor:
    return torch.randn(samples, 3, 9, 9).clamp(-3.9, 3.9)


def assert_same(explainer: whence.Explainer, model, x, target=None):
    prepared, fresh = explainer(x, target), whence.explain(model, x, target, method=explainer.method)
    assert torch.equal(prepared.output, fresh.output)
    assert (prepared.relevance - fresh.relevance).abs().max() <= 1e-12 * fresh.relevance.abs().max()
    assert (prepared.conservation.absorbed - fresh.conservation.absorbed).abs().max() <= 1e-12


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_it_explains_as_explain_does_call_after_call(rules, inplace):
    model = Net(inplace)
    explainer = whence.Explainer(model, LRP(rules))
    for samples in (2, 1, 3):
        assert_same(explainer, model, picture(samples))


def test_by_default_and_by_name():
    model, x = Net(), picture()
    assert_same(whence.Explainer(model), model, x, 3)
    smooth = whence.SmoothGrad(LRP(), n_samples=3)
    assert torch.equal(whence.Explainer(model, smooth)(x, 1).relevance, whence.explain(model, x, 1, method=smooth).relevance)
    by_name = whence.Explainer(model, "occlusion")
    assert torch.equal(by_name(x, 1).relevance, whence.explain(model, x, 1, method="occlusion").relevance)
    assert repr(whence.Explainer(model, "lrp")).startswith("Explainer(Net, method=LRP(")


def test_layers_and_targets():
    model, x = Net(), picture()
    explainer = whence.Explainer(model)
    explainer(x)
    fresh = whence.explain(model, x, 2, layers=["features.0"])
    assert torch.allclose(explainer(x, 2, layers=["features.0"]).layers["features.0"], fresh.layers["features.0"], atol=1e-13)
    for target, e in enumerate(explainer.targets(x, range(5))):
        assert torch.allclose(e.relevance, whence.explain(model, x, target).relevance, atol=1e-13)
        assert e.conservation.error.max() < 1e-12


def overwritten(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.3)
    model(picture()).square().sum().backward()
    optimiser.step()


def loaded(model):
    model.load_state_dict(Net().state_dict())


def exchanged_parameter(model):
    model.features[3].weight = nn.Parameter(torch.randn_like(model.features[3].weight))


def exchanged_data(model):
    model.features[3].weight.data = torch.randn_like(model.features[3].weight)


def exchanged_module(model):
    model.features[3] = nn.Conv2d(4, 4, 3).eval()


def put_in(model):
    model.features.append(nn.Conv2d(4, 4, 1).eval())


def taken_out(model):
    del model.features[4]


def statistics(model):
    model.features[1].running_mean += 0.5


@pytest.mark.parametrize(
    "change",
    [overwritten, loaded, exchanged_parameter, exchanged_data, exchanged_module, put_in, taken_out, statistics],
)
@pytest.mark.parametrize("rules", [presets.epsilon_plus(), {"features.*": Gamma(0.5), "*": Epsilon(0.1)}], ids=str)
def test_a_model_that_changed_is_noticed(change, rules):
    model, x = Net(), picture()
    explainer = whence.Explainer(model, LRP(rules))
    before = explainer(x, 1).relevance
    change(model)
    assert_same(explainer, model, x, 1)
    assert not torch.allclose(explainer(x, 1).relevance, before)


def test_what_is_written_behind_autograds_back_needs_forget():
    model, x = Net(), picture()
    explainer = whence.Explainer(model, LRP(presets.epsilon_plus()))
    explainer(x, 1)
    model.features[3].weight.data.mul_(-1)
    explainer.forget()
    assert_same(explainer, model, x, 1)


def test_training_mode_is_noticed():
    model, x = Net(), picture()
    explainer = whence.Explainer(model)
    explainer(x)
    model.features[1].train()
    with pytest.raises(whence.errors.TrainingModeError, match=r"features\.1"):
        explainer(x)


def test_a_selector_that_matched_once_need_not_match_again():
    """Where the flow depends on the data, as with experts, not every call meets every layer."""

    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)
            self.eval()

        def forward(self, x):
            return self.one(x) if x.sum() > 0 else self.two(x)

    explainer = whence.Explainer(Either(), LRP({"one": Epsilon(0.1), "two": Epsilon(0.2)}))
    with pytest.raises(whence.errors.SelectorError, match="'two'"):
        explainer(torch.ones(1, 3))
    explainer(-torch.ones(1, 3))
    explainer(torch.ones(1, 3))


def test_a_network_that_overwrites_only_later_is_explained_all_the_same():
    model, x = Net(), picture()
    explainer = whence.Explainer(model)
    explainer(x)
    model.overwrite = True
    assert_same(explainer, model, x)
    assert_same(explainer, model, x)
    model.overwrite = False
    assert_same(explainer, model, x)


def passes(monkeypatch, run) -> int:
    """How often modified weights are applied."""
    count = [0]
    apply = Convolution.apply

    def counted(*args):
        count[0] += 1
        return apply(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Convolution, "apply", counted)
        run()
    return count[0]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_modified_forward_passes_are_made_once_for_all_targets(rules, monkeypatch):
    model, x = Net(), picture()
    one = passes(monkeypatch, lambda: whence.explain(model, x, 0, method=LRP(rules)))
    ten = passes(monkeypatch, lambda: list(whence.explain_targets(model, x, [0, 1, 2, 3, 4] * 2, method=LRP(rules))))
    assert one == ten > 0


def test_modified_weights_are_made_once():
    model, x = Net(), picture()
    explainer = whence.Explainer(model, LRP({"features.*": Gamma(0.5)}))
    kept = explainer._prepared.kept
    explainer(x)
    first = dict(kept._used)
    explainer(x)
    assert kept._used.keys() == first.keys()
    assert all(kept._used[key][0] is value for key, (value, _) in first.items())


def test_what_is_no_longer_used_is_let_go():
    model, x = Net(), picture()
    explainer = whence.Explainer(model, LRP({"features.*": Gamma(0.5)}))
    sizes = []
    for _ in range(4):
        with torch.no_grad():
            model.features[3].weight *= 0.9
        explainer(x)
        sizes.append(len(explainer._prepared.kept._used))
    assert len(set(sizes)) == 1


def test_modules_made_on_the_fly_are_not_kept():
    class OnTheFly(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.eval()

        def forward(self, x):
            return self.head(nn.ReLU()(x))

    explainer = whence.Explainer(OnTheFly())
    for _ in range(3):
        explainer(torch.randn(1, 4))
    root = explainer._prepared.outline.root
    assert [len(place.within) for place in (root, *root.within.values())] == [1, 1]


def test_two_threads_share_an_explainer():
    model = Net()
    inputs = [picture(), picture()]
    alone = [whence.explain(model, x).relevance for x in inputs]
    explainer, failed, barrier = whence.Explainer(model), [], threading.Barrier(2)

    def work(i: int):
        barrier.wait()
        for _ in range(20):
            if not torch.allclose(explainer(inputs[i]).relevance, alone[i], atol=1e-12):
                failed.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_bad_models_and_methods():
    with pytest.raises(whence.errors.TrainingModeError):
        whence.Explainer(Net().train())
    with pytest.raises(whence.errors.RuleError, match="unknown method"):
        whence.Explainer(Net(), "lpr")
    with pytest.raises(whence.errors.TargetError, match="must be a list"):
        list(whence.Explainer(Net()).targets(picture(), 3))


def test_relevance_at_a_layer_that_multiplies_is_what_the_product_gets():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.a(x) * self.b(x)

    model = nn.Sequential(Product(), nn.Linear(4, 2, bias=False)).eval()
    e = whence.explain(model, torch.randn(3, 4), layers=["0", "0.a"])
    assert torch.allclose(e.layers["0"].sum(1), e.output)
    assert torch.allclose(e.layers["0.a"].sum(1), e.output / 2)


def test_a_value_times_a_function_of_what_it_was_before_is_a_product():
    """After `x` is overwritten it is not the value that the gate was made of."""
    w = torch.randn(4, 4)

    def gated(overwrite: bool):
        def model(x):
            x = F.linear(x, w)
            gate = torch.tanh(x)
            if overwrite:
                x = x.add_(F.linear(x, w))
            return (x * gate).sum(1)

        return model

    x = torch.randn(2, 4)
    whole = whence.explain(gated(False), x, lambda y: y, layers=[])
    assert whole.conservation.error.max() < 1e-12
    assert whence.explain(gated(True), x, lambda y: y).conservation.error.max() < 1e-12


class Overwriting(nn.Module):
    """Overwrites a value that a gradient needs, from a certain call on."""

    def __init__(self, since):
        super().__init__()
        self.layer, self.since, self.calls = nn.Linear(4, 4), since, 0
        self.eval()

    def forward(self, x):
        self.calls += 1
        y = self.layer(x).sin()
        z = y * self.layer(x)
        if self.calls > self.since:
            y.add_(1)
        return z + y


@pytest.mark.parametrize("since", [0, 1, 2])
def test_a_network_may_begin_to_overwrite(since):
    model, x = Overwriting(since), torch.randn(2, 4)
    explainer = whence.Explainer(model)
    for call in range(4):
        e = explainer(x, 1)
        whole = Overwriting(0 if call >= since else 99)
        whole.load_state_dict(model.state_dict())
        torch.testing.assert_close(e.relevance, whence.explain(whole, x, 1).relevance)
    runs = model.calls
    explainer(x, 1)
    assert model.calls == runs + 1  # once it is known to, it is not run twice


def test_inputs_are_brought_beside_the_model():
    inputs = Inputs.of({"x": torch.ones(2, 3), "deep": True})
    beside = inputs.beside(nn.Sequential(nn.ReLU(), nn.Linear(3, 2, device="meta")))
    assert beside.parts[0].is_meta
    assert beside.parts[1] is True
    assert inputs.beside(lambda x: x).parts[0] is inputs.parts[0]
    assert inputs.beside(nn.ReLU()).parts[0] is inputs.parts[0]


def test_what_does_not_run_on_one_accelerator_is_not_recorded():
    def program(x):
        return {"x": x}

    assert as_cuda_graph(program, [torch.ones(2)]) is program
    assert as_cuda_graph(program, []) is program


class TinyForSequenceClassification(nn.Module):
    """A classifier with the config of a Hugging Face model."""

    def __init__(self, names):
        super().__init__()
        self.embed, self.head, self.config = nn.Embedding(9, 4), nn.Linear(4, 2), SimpleNamespace(id2label=names)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).mean(1))


@pytest.mark.parametrize("explain", [whence.explain, lambda model, *args: whence.Explainer(model)(*args)])
def test_classes_of_a_text_classifier_are_named_by_its_config_and_never_by_tokens(explain):
    model = TinyForSequenceClassification({0: "NEGATIVE", 1: "POSITIVE"}).eval()
    e = explain(model, {"input_ids": torch.tensor([[1, 2, 3]])}, 1).with_tokens(lambda ids: [f"w{i}" for i in ids])
    assert e.heading() == "POSITIVE"
    assert e.tokens_of(0) == ["w1", "w2", "w3"]
    assert whence.explain(model, torch.tensor([[1, 2]]), 1, class_names=["no", "yes"]).heading() == "yes"


def test_channels_of_a_series_with_the_time_first_are_named(tmp_path):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(60, 2)).eval(), torch.randn(2, 20, 3)
    names = ["pulse", "pressure", "flow"]
    e = whence.explain(model, x, 1, feature_names=names)
    e.save(tmp_path / "series.png")
    with pytest.raises(whence.errors.InputError, match="per channel of a series"):
        whence.explain(model, x, 1, feature_names=["a", "b"])
