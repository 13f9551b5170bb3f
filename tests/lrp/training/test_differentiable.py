"""Relevance as a training signal: its derivatives agree with finite differences, and nothing stays on the model."""

import pytest
import torch
from torch import nn

import whence
from support.story_model import story_model
from whence import errors

RULES = {
    "epsilon": {nn.Conv2d: whence.Epsilon(0.1), nn.Linear: whence.Epsilon(0.1)},
    "gamma": {nn.Conv2d: whence.Gamma(0.25), nn.Linear: whence.Gamma(0.1)},
    "alphabeta": {nn.Conv2d: whence.AlphaBeta(2, 1), nn.Linear: whence.AlphaBeta(2, 1)},
    "zplus": {nn.Conv2d: whence.ZPlus(), nn.Linear: whence.ZPlus()},
    "default": whence.presets.attn_lrp(),
}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(36, 3)

    def forward(self, x):
        a = nn.functional.max_pool2d(torch.relu_(self.norm(self.stem(x))), 2)
        return self.head(torch.relu(a + self.inner(a)).flatten(1))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Linear(3, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.block(self.embed(x)).mean(1))


def relevance(model, rules, x, target=1, **options):
    given = x.detach().clone().requires_grad_() if not x.requires_grad else x
    with whence.relevance_rules(model, rules, **options):
        logits = model(given)
    (g,) = torch.autograd.grad(logits[:, target].sum(), given, create_graph=bool(options))
    return given * g


def weighed(model, rules, x, weights):
    return float((relevance(model, rules, x).detach() * weights).sum())


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("network", [Residual, Attentive])
def test_derivatives_agree_with_finite_differences(network, rules):
    model = network().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64) if network is Residual else torch.randn(2, 4, 3, dtype=torch.float64)
    if network is Attentive:
        rules = rules if rules is RULES["default"] else {nn.Linear: rules[nn.Linear]} if nn.Linear in rules else {}
    weights = torch.randn_like(x)
    plain = relevance(model, rules, x)
    given = x.clone().requires_grad_()
    found = relevance(model, rules, given, differentiable=True)
    torch.testing.assert_close(found.detach(), plain.detach(), rtol=1e-9, atol=1e-12)  # attention by another kernel
    parameters = dict(model.named_parameters())
    derivatives = torch.autograd.grad((found * weights).sum(), [given, *parameters.values()], allow_unused=True)
    step = 1e-6
    for (name, t), derivative in zip([("x", x), *parameters.items()], derivatives, strict=True):
        direction = torch.randn_like(t)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                t.add_(direction, alpha=sign * step)
            values.append(weighed(model, rules, x, weights))
            with torch.no_grad():
                t.sub_(direction, alpha=sign * step)
        expected = (values[0] - values[1]) / (2 * step)
        got = 0.0 if derivative is None else float((derivative * direction).sum())
        assert got == pytest.approx(expected, rel=2e-4, abs=2e-6), name


def test_weights_are_read_anew_and_graphs_are_kept():
    model, x = Residual().double().eval(), torch.rand(2, 1, 6, 6, dtype=torch.float64)
    rules = RULES["gamma"]
    relevance(model, rules, x, differentiable=True)
    with torch.no_grad():
        model.stem.weight.mul_(1.5)
        model.norm.running_mean.add_(0.1)
    torch.testing.assert_close(relevance(model, rules, x, differentiable=True), relevance(model, rules, x), rtol=0, atol=0)
    from whence.lrp.training.relevance_rules import GRAPHS

    assert len(GRAPHS[model]) == 1
    relevance(model, rules, x[:1], differentiable=True)
    assert len(GRAPHS[model]) == 2


def test_a_llama_by_its_embeddings(data):
    model = story_model(data).double()
    with torch.no_grad():
        x = model.model.embed_tokens(torch.tensor([[1, 403, 407, 261]]))
    found = []
    for options in ({"differentiable": True}, {}):
        given = x.clone().requires_grad_()
        with whence.relevance_rules(model, whence.presets.attn_lrp(), **options):
            logits = model(inputs_embeds=given, use_cache=False).logits
        found += torch.autograd.grad(logits[0, -1, 400], given, create_graph=bool(options))
    torch.testing.assert_close(found[0].detach(), found[1], rtol=1e-6, atol=1e-9)
    (of_weight,) = torch.autograd.grad((x * found[0]).square().sum(), model.model.layers[2].mlp.down_proj.weight)
    assert torch.isfinite(of_weight).all()
    assert of_weight.any()


def test_nothing_stays_on_the_model():
    model, x = Residual().eval(), torch.rand(1, 1, 6, 6, requires_grad=True)

    def fails():
        with whence.relevance_rules(model, {}, differentiable=True):
            model(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert "forward" not in vars(model)
    assert all(p.grad is None for p in model.parameters())
    assert type(model(x).grad_fn).__name__ == "AddmmBackward0"


def test_what_cannot_be_differentiated_says_so():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else x[:, :2]

    x, deciding = torch.rand(1, 3, requires_grad=True), Deciding().eval()
    message = "data-dependent control flow at .*test_differentiable"
    with whence.relevance_rules(deciding, {}, differentiable=True), pytest.raises(errors.ModelError, match=message):
        deciding(x)
    with (
        pytest.raises(errors.RuleError, match="needs the model: relevance_rules"),
        whence.relevance_rules(None, {}, differentiable=True),
    ):
        pass
    linear = nn.Linear(3, 2).eval()
    rules = {"nowhere": whence.Gamma(0.1)}
    with whence.relevance_rules(linear, rules, differentiable=True), pytest.raises(errors.SelectorError, match="nowhere"):
        linear(x)


def test_a_network_learns_to_be_right_for_the_right_reason():
    """A decoy tells the class in training; with relevance on it in the loss, accuracy without it rises."""
    torch.manual_seed(0)
    x = torch.randn(256, 10)
    y = (x[:, :3].sum(1) > 0).long()
    decoyed = x.clone()
    decoyed[:, 9] = 20.0 * (2 * y - 1)
    accuracies = []
    for penalty in (0.0, 1.0):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(200):
            loss = nn.functional.cross_entropy(model(decoyed), y)
            if penalty:
                given = decoyed.clone().requires_grad_()
                with whence.relevance_rules(model, {nn.Linear: whence.Epsilon(0.01)}, differentiable=True):
                    logits = model(given)
                (g,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), given, create_graph=True)
                loss = loss + penalty * (given * g)[:, 9].square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        fresh = torch.randn(2000, 10)
        fresh[:, 9] = 0
        accuracies.append(float((model(fresh).argmax(1) == (fresh[:, :3].sum(1) > 0)).float().mean()))
    assert accuracies[1] > accuracies[0] + 0.1
    assert accuracies[1] > 0.8


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.by = nn.Linear(3, 2, bias=False), 1.0

    def forward(self, x):
        return self.linear(x) * self.by


def test_attributes_training_mode_and_copies():
    import copy

    model, x = Scaled().eval(), torch.rand(1, 3, requires_grad=True)
    for by in (1.0, 3.0):
        model.by = by
        torch.testing.assert_close(
            relevance(model, {}, x, differentiable=True).sum(), model(x)[:, 1].sum(), rtol=1e-4, atol=1e-6
        )
    cast = {}
    for enabled in (True, False, True):  # a graph of its own each
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            cast[enabled] = relevance(model, {}, x, differentiable=True)
            torch.testing.assert_close(cast[enabled], relevance(model, {}, x), rtol=1e-2, atol=1e-2)
    assert not torch.equal(cast[True], cast[False])
    with (
        whence.relevance_rules(model, {}, differentiable=True),
        pytest.raises(errors.ModelError, match="rules block is already active in this thread; leave it befor"),
    ):
        whence.explain(model, x, 1)
    with whence.relevance_rules(model, {}, differentiable=True), pytest.raises(errors.ModelError, match="cannot be copied"):
        copy.deepcopy(model)
    with (
        whence.relevance_rules(model.train(), {}, differentiable=True),
        pytest.raises(errors.ModelError, match="training mode"),
    ):
        model(x)


def test_graphs_of_many_shapes_are_bounded():
    from whence.lrp.training.relevance_rules import GRAPHS, MAX_GRAPHS

    model = nn.Linear(3, 2).eval()
    for rows in range(1, MAX_GRAPHS + 3):
        x = torch.rand(rows, 3, requires_grad=True)
        with whence.relevance_rules(model, {nn.Linear: whence.Epsilon(0.01)}, differentiable=True):
            model(x)
    assert len(GRAPHS[model]) == MAX_GRAPHS
