"""Explainers as files: they give what explain() gives, at any batch size, where this library cannot be imported."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors, presets


class UNet(nn.Module):
    def __init__(self):
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1))

        self.down, self.deep, self.up = block(3, 6), block(6, 8), nn.ConvTranspose2d(8, 6, 2, 2)
        self.last, self.head = block(12, 6), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        a = self.down(x).relu()
        b = self.up(self.deep(nn.functional.max_pool2d(a, 2)).relu())
        return self.head(self.last(torch.cat([a, b], 1)).relu()).mean((2, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 9, 2, batch_first=True, bidirectional=True), nn.Linear(18, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Logits(nn.Module):
    """Of a Hugging Face model, from ids alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


def residual_network():
    from torchvision.models import ResNet
    from torchvision.models.resnet import Bottleneck

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7)


def vision_transformer(**size):
    from torchvision.models import VisionTransformer

    found = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=7) if not size else VisionTransformer(**size)
    nn.init.normal_(found.heads.head.weight)  # torchvision's is zero
    return found


def llama():
    import transformers

    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Logits(transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, num_hidden_layers=2, **size)))


def vgg_like():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3),
        nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 7),
    )  # fmt: skip


GAMMA = whence.LRP({nn.Conv2d: whence.Gamma(0.25)})


BOX = whence.LRP({"0": whence.ZBox(-4.0, 4.0), nn.Conv2d: whence.Gamma(0.25), nn.Linear: whence.Epsilon(1e-3)})


def pictures(n, side=32):
    return torch.randn(n, 3, side, side).clamp(-4, 4)


NETWORKS = {
    "resnet": (residual_network, GAMMA, pictures, 7),
    "vgg": (vgg_like, BOX, lambda n: pictures(n, 20), 7),
    "vit": (vision_transformer, whence.LRP(), pictures, 7),
    "llama": (llama, whence.LRP(presets.attn_lrp()), lambda n: torch.randint(0, 40, (n, 6)), 40),
    "unet": (UNet, whence.LRP(presets.epsilon_plus()), lambda n: pictures(n, 16), 4),
    "lstm": (Recurrent, whence.LRP(), lambda n: torch.randn(n, 4, 5), 4),
    "gradient": (vgg_like, whence.GradientTimesInput(), lambda n: pictures(n, 20), 7),
    "guided": (vgg_like, whence.GuidedBackprop(), lambda n: pictures(n, 20), 7),
    "sensitivity": (Recurrent, whence.Sensitivity(), lambda n: torch.randn(n, 4, 5), 4),
    "cam": (vgg_like, whence.GradCAM("2"), lambda n: pictures(n, 20), 7),
}


class ByValue(nn.Linear):
    def forward(self, x):
        return super().forward(x * float(x.detach().sum()))


@pytest.mark.parametrize("name", NETWORKS)
def test_replayed_explanations_are_the_same(name):
    make, method, data, classes = NETWORKS[name]
    model = make().eval()
    plain, replaying = whence.Explainer(model, method), whence.Explainer(model, method, capture=True)
    for n in (2, 2, 3):
        x, y = data(n), torch.randint(0, classes, (n,))
        e, again = plain(x, y), replaying(x, y)
        torch.testing.assert_close(again.relevance, e.relevance, rtol=1e-5, atol=1e-6 * float(e.relevance.abs().max()))
        torch.testing.assert_close(again.output, e.output)
        assert torch.equal(again.target, e.target)
        assert again.conservation.by_layer.keys() == e.conservation.by_layer.keys()
        assert repr(again).splitlines()[0] == repr(e).splitlines()[0]
    assert torch.equal(replaying(x).target, plain(x).target)


def test_replays_notice_weights_modules_and_settings_that_changed():
    model, x = vgg_like().eval(), pictures(2, 20)
    explainer = whence.Explainer(model, GAMMA, capture=True)

    def check():
        e = whence.explain(model, x, 1, method=GAMMA)
        torch.testing.assert_close(explainer(x, 1).relevance, e.relevance, rtol=1e-4, atol=1e-6)

    check()
    with torch.no_grad():
        model[0].weight.mul_(-2)
    check()
    model[2].weight = nn.Parameter(torch.randn_like(model[2].weight))
    check()
    model[0].weight.data = torch.randn_like(model[0].weight)
    check()
    model[3] = nn.GELU().eval()
    check()
    model[4].stride = 1
    model[5].output_size = 3
    check()
    with pytest.raises(errors.TrainingModeError):
        explainer.model.train() and explainer(x, 1)


def test_replays_warn_and_raise_as_explanations_do():
    model, x = vgg_like().eval(), pictures(2, 20)
    explainer = whence.Explainer(model, capture=True)
    explainer(x, 1)
    with pytest.raises(errors.InputError, match="NaN"):
        explainer(x / 0, 1)
    with pytest.raises(errors.TargetError, match="target 7 is out of range"):
        explainer(x, torch.tensor([1, 7]))
    with pytest.raises(
        errors.ModelError, match=r"data-dependent control flow at .*test_replay.py:\d+; cannot capture as one graph"
    ):
        whence.Explainer(ByValue(4, 3).eval(), capture=True)(torch.rand(2, 4))
    with pytest.raises(errors.RuleError, match="SmoothGrad calls the model several times and cannot be captu"):
        whence.Explainer(model, whence.SmoothGrad(), capture=True)
    assert explainer(x, 1, through={"2": 0}).relevance.shape == x.shape
    named = whence.Explainer(model, class_names=list("abcdefg"), capture=True)
    assert [named(x, k).target_names()[0] for k in (0, 3)] == ["a", "d"]


def test_replays_of_layers_logits_and_dicts():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    plain, replaying = (whence.Explainer(model, capture=capture) for capture in (False, True))
    for target in (
        whence.Logit(1, rather_than=torch.tensor([0, 2])),
        whence.Logit(2, rather_than=0),
        [2, 1],
        None,
        lambda o: o[:, 0],
    ):
        for _ in range(2):
            x = torch.randn(2, 4)
            e, again = (explainer(x, target, layers=["0"]) for explainer in (plain, replaying))
            torch.testing.assert_close(again.relevance, e.relevance)
            torch.testing.assert_close(again.layers["0"], e.layers["0"])
            assert again.target_names() == e.target_names()
            assert torch.equal(again.inputs, x)


class BySize(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (3 if x.shape[0] > 16 else 1)


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("n", torch.ones(()))

    def forward(self, x):
        self.n.add_(1)
        return super().forward(x) * self.n


class Attributed(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.scales, self.act, self.shift = [1.0], torch.relu, torch.ones(3)

    def forward(self, x):
        return self.act(super().forward(x) + self.shift) * self.scales[0]


def test_branches_on_sizes_and_writes_to_buffers_are_refused():
    with pytest.raises(errors.ModelError, match=r"control flow depends on a dynamic size at line \d+ of .*test_replay.py"):
        whence.export(BySize(4, 3).eval(), torch.rand(2, 4))
    with pytest.raises(errors.ModelError, match="modifies one of its tensors"):
        whence.export(Counting().eval(), torch.rand(2, 4))
    with pytest.raises(errors.ModelError, match="modifies one of its tensors"):
        whence.Explainer(Counting().eval(), capture=True)(torch.rand(2, 4), 1)


def test_replays_notice_attributes_and_give_nothing_of_their_own_away():
    model, x = Attributed().eval(), torch.rand(2, 4)
    explainer = whence.Explainer(model, capture=True)

    def check():
        torch.testing.assert_close(explainer(x, 1).relevance, whence.explain(model, x, 1).relevance)

    for _ in range(2):
        check()
    model.scales[0] = 10.0
    check()
    model.act = torch.tanh
    check()
    model.shift = torch.full((3,), 2.0)
    check()
    handle = model.register_forward_hook(lambda module, args, out: out * 2)
    check()
    handle.remove()
    check()
    explainer(x, 1).target.zero_()
    assert explainer(x, 1).target.tolist() == [1, 1]
    with torch.inference_mode():
        assert not explainer(x, 1).relevance.is_inference()


def test_targets_that_are_not_replayed_are_explained_plainly():
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.rand(2, 4)
    explainer = whence.Explainer(model, capture=True)
    for target in (np.array([0, 1]), whence.Logit([0, 1], rather_than=[1, 2]), lambda out: out[:, 0]):
        for _ in range(2):
            torch.testing.assert_close(explainer(x, target).relevance, whence.explain(model, x, target).relevance)
    with pytest.raises(errors.TargetError):
        explainer(x, [0, "a"])
    program = whence.export(model, x)
    assert not program.module()(x, torch.tensor([-7, 0]))["holds"]


def small_convolutional() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_explanations_are_the_same_and_notice_changes():
    torch.manual_seed(0)
    model, x = small_convolutional().eval(), torch.rand(2, 3, 8, 8)
    compiled = whence.Explainer(model, capture="compile")
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def check():
        for y in (torch.tensor([1, 4]), 0, None):
            e, again = whence.explain(model, x, y), compiled(x, y)
            torch.testing.assert_close(again.relevance, e.relevance, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(again.output, e.output)
            assert torch.equal(again.target, e.target)
        with pytest.raises(errors.TargetError):
            compiled(x, 7)

    check()
    check()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    code = next(iter(compiled._captures._captures.values())).program
    with torch.no_grad():
        model[0].weight.mul_(-2)
        model[3].bias.add_(1)
    check()
    assert next(iter(compiled._captures._captures.values())).program is code, "compiled again for other weights"
    taken = model[0].weight.data
    copy = taken.clone()
    model[0].weight.data = torch.randn_like(taken)
    check()
    assert torch.equal(taken, copy), "wrote to a tensor of the user"


def test_a_compiler_that_fails_is_reported(monkeypatch):
    def broken(program, **settings):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(errors.ModelError, match=r"torch\.compile failed .*No working C\+\+ compiler.*capture=True"):
        whence.Explainer(small_convolutional().eval(), capture="compile")(torch.rand(2, 3, 8, 8))
    with pytest.raises(errors.RuleError, match="choose True, False, 'auto' or 'compile'"):
        whence.Explainer(small_convolutional().eval(), capture="compiled")
