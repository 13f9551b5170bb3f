"""Concepts, circuits, interactions, subspaces: against literal transcriptions and sums that must hold."""

import pytest
import torch
from torch import nn

import whence
from support.story_model import story_model
from whence import errors

SIDE = 12


def pictures(n=3):
    return torch.rand(n, 1, SIDE, SIDE, dtype=torch.float64)


class Mixer(nn.Module):
    """Tokens, two linear layers with a way round, and a metric on the last token: patching it is linear."""

    def __init__(self, activation=nn.Identity):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        self.act, self.head = activation(), nn.Linear(6, 11)

    def forward(self, ids):
        a = self.embed(ids)
        for layer in self.layers:
            a = a + self.act(layer(a.cumsum(1)))
        return self.head(a)


def tokens():
    return torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[1, 9, 3, 4], [5, 6, 2, 8]])


@pytest.mark.parametrize("components", [["layers.*"], {"layers.*": "channels"}, {"input of layers.1": whence.Heads((), of=3)}])
def test_patching_of_a_linear_network_is_exact(components):
    model, (clean, corrupted) = Mixer().double().eval(), tokens()
    found = whence.patching(
        model,
        clean,
        corrupted,
        whence.Logit(3, rather_than=4),
        components,
        estimator=["relevance", "gradient", "exact"],
        progress=False,
    )
    for layer in found.effects["exact"]:
        torch.testing.assert_close(found.effects["relevance"][layer], found.effects["exact"][layer], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.effects["gradient"][layer], found.effects["exact"][layer])
    assert found.correlation("relevance", "exact") == pytest.approx(1, abs=1e-6)


def test_exact_patching_is_a_run_with_the_activation_replaced():
    model, (clean, corrupted) = Mixer(nn.GELU).double().eval(), tokens()
    target = whence.Logit(3, rather_than=4)
    found = whence.patching(model, clean, corrupted, target, ["layers.0"], estimator="exact", progress=False)
    with torch.no_grad():
        metric = lambda out: out[:, -1, 3] - out[:, -1, 4]  # noqa: E731
        torch.testing.assert_close(found.clean, metric(model(clean)))
        torch.testing.assert_close(found.corrupted, metric(model(corrupted)))
        there = model.layers[0](model.embed(corrupted).cumsum(1))
        for t in range(4):

            def patched(module, args, out, t=t):
                out = out.clone()
                out[:, t] = there[:, t]
                return out

            handle = model.layers[0].register_forward_hook(patched)
            expected = metric(model(clean)) - found.clean
            handle.remove()
            torch.testing.assert_close(found.effects["exact"]["layers.0"][:, t], expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_relevance_patching_by_default_on_a_llama(data, tmp_path):
    model = story_model(data)
    clean, corrupted = torch.tensor([[1, 317, 267, 326, 400, 281]]), torch.tensor([[1, 326, 267, 317, 400, 281]])
    found = whence.patching(model, clean, corrupted, whence.Logit(317, rather_than=326), progress=False)
    assert list(found.effects["relevance"]) == [f"model.layers.{i}" for i in range(5)]
    assert found.effects["relevance"]["model.layers.0"].shape == (1, 6)
    exact = whence.patching(
        model, clean, corrupted, whence.Logit(317, rather_than=326), estimator=["relevance", "exact"], progress=False
    )
    assert exact.correlation("relevance", "exact") > 0.8
    last = exact.effects["exact"]["model.layers.4"][:, -1]  # all that the head reads
    torch.testing.assert_close(last, exact.corrupted - exact.clean, rtol=1e-4, atol=1e-4)
    assert exact.save(tmp_path / "p.png").is_file()
    assert "correlation of relevance with exact" in repr(exact)
    assert exact.top(1)[0][0].startswith("model.layers.")


def test_wrong_patching_is_named():
    model, (clean, corrupted) = Mixer().eval(), tokens()
    with pytest.raises(errors.InputError, match="components are compared position by position; pass inputs of"):
        whence.patching(model, clean, corrupted[:, :3], components=["layers.0"])
    with pytest.raises(errors.SelectorError, match=r"no layer 'layer\.0'"):
        whence.patching(model, clean, corrupted, components=["layer.0"])
    with pytest.raises(errors.SelectorError, match="cannot be divided into 4 heads"):
        whence.patching(model, clean, corrupted, components={"layers.0": whence.Heads((), of=4)})
    with pytest.raises(errors.RuleError, match="estimator='relevence'"):
        whence.patching(model, clean, corrupted, components=["layers.0"], estimator="relevence")
    with pytest.raises(errors.RuleError, match="every head is patched"):
        whence.patching(model, clean, corrupted, components={"layers.0": whence.Heads([0], of=2)})
    x = pictures(1).float()
    with pytest.raises(errors.SelectorError, match="no tokens to patch"):
        whence.patching(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval(), x, x * 0.5, 1, ["0"])
    with pytest.raises(errors.RuleError, match="choose 'places'"):
        whence.patching(model, clean, corrupted, components={"layers.0": "tokens"})
    with pytest.raises(errors.RuleError, match=r"estimator=\[\]"):
        whence.patching(model, clean, corrupted, estimator=[])
    model.spare = nn.Linear(2, 2).eval()
    with pytest.raises(errors.ModelError, match="layer 'spare' was not called"):
        whence.patching(model, clean, corrupted, components=["spare"], estimator="exact")


def test_layers_by_their_usual_names_are_patched_unasked():
    model, (clean, corrupted) = Mixer().eval(), tokens()
    assert list(whence.patching(model, clean, corrupted).effects["relevance"]) == ["layers.0", "layers.1"]


class Told(nn.Module):
    """A layer that gives a dict, and vectors without tokens."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3, bias=False)

        def forward(self, x):
            return {"hidden": self.linear(x), "width": 3}

    def __init__(self):
        super().__init__()
        self.layer, self.head = self.Layer(), nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.head(self.layer(x)["hidden"])


@pytest.mark.parametrize("parts", ["places", "channels"])
def test_vectors_have_one_place_and_dicts_are_patched(parts, tmp_path):
    model, (x, y) = Told().eval(), torch.randn(2, 4, 3)
    found = whence.patching(model, x, y, 1, {"layer": parts}, estimator=["relevance", "exact"], progress=False)
    assert found.effects["exact"]["layer"].shape == ((4, 1) if parts == "places" else (4, 1, 3))
    torch.testing.assert_close(found.flat("relevance"), found.flat("exact"), rtol=1e-4, atol=1e-5)
    found.save(tmp_path / "patching.png")
