"""Checkpointed, compiled, scripted, exported, split and half-precision models."""

import contextlib
import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint

import whence
from support import transformer_zoo
from whence import LRP, Gamma, errors, presets


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(width), nn.Hardswish(inplace=True)

    def forward(self, x):
        y = self.act(self.norm(self.first(x)))
        y = self.second(F.relu(y, inplace=True))
        y += x  # overwrites what the convolution's rule keeps
        return y * torch.softmax(y.mean((2, 3), keepdim=True), 1)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None):
        super().__init__()
        self.blocks = nn.ModuleList(Block(4) for _ in range(3))
        self.head = nn.Linear(4, 3)
        self.reentrant = reentrant
        self.eval()

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint.checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))


METHODS = [
    LRP(),
    LRP(presets.epsilon_gamma()),
    LRP(presets.epsilon_plus_flat()),
    LRP({"blocks.1": Gamma(1.0)} | presets.cp_lrp()),
    "gradient_times_input",
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_checkpointing_changes_nothing(method):
    model, x = Checkpointed(False), torch.randn(2, 4, 6, 6)
    plain = copy.deepcopy(model)
    plain.reentrant = None
    layers = ("blocks.1.first", "blocks.0")
    ours = list(whence.explain_targets(model, x, [0, 2], method=method, layers=layers))
    expected = list(whence.explain_targets(plain, x, [0, 2], method=method, layers=layers))
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.relevance, theirs.relevance, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine.layers, theirs.layers, rtol=1e-12, atol=1e-12)
        if mine.conservation.absorbed is not None:
            torch.testing.assert_close(mine.conservation.by_layer, theirs.conservation.by_layer, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_a_map_outside_is_not_taken_over_inside_a_checkpoint():
    conv, norm, x = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), torch.randn(2, 3, 5, 5)
    norm.running_mean.normal_()

    def model(x, use):
        y = conv(x)
        inside = lambda y: F.relu(norm(y)) * torch.tanh(y)  # noqa: E731
        y = checkpoint.checkpoint(inside, y, use_reentrant=False) if use else inside(y)
        return y.mean((2, 3))

    method = LRP({F.conv2d: Gamma(0.25), F.batch_norm: whence.Epsilon(1e-3)})
    carried = whence.explain(lambda x: model(x, True), x, 0, method=method)
    account = carried.conservation
    torch.testing.assert_close(account.relevance + account.absorbed, account.output)
    torch.testing.assert_close(carried.output, whence.explain(lambda x: model(x, False), x, 0).output)


def test_checkpointing_within_relevance_rules():
    model, x = Checkpointed(False), torch.randn(2, 4, 6, 6, requires_grad=True)
    expected = whence.explain(model, x, 1, method=LRP({nn.Conv2d: Gamma(0.5)})).relevance
    with whence.relevance_rules(None, {nn.Conv2d: Gamma(0.5)}):
        values = model(x)[:, 1].sum()
        (inside,) = torch.autograd.grad(values, x, retain_graph=True)
    (outside,) = torch.autograd.grad(values, x)
    torch.testing.assert_close(x * inside, expected)
    torch.testing.assert_close(x * outside, expected)


def test_torch_is_left_as_it_was_with_threads_and_failures():
    before = getattr(checkpoint, "_checkpoint_without_reentrant_generator")  # noqa: B009
    model, x = Checkpointed(False), torch.randn(2, 4, 6, 6)
    failures = []

    def work():
        try:
            whence.explain(model, x)
            with pytest.raises(errors.TargetError):
                whence.explain(model, x, 99)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert getattr(checkpoint, "_checkpoint_without_reentrant_generator") is before  # noqa: B009


def test_checkpointed_layers_hold_less_and_are_left_alone():
    model, x = Checkpointed(None), torch.randn(2, 4, 6, 6)
    expected = whence.explain(model, x, 1).relevance
    kept = []
    for context in (contextlib.nullcontext(), whence.checkpointed(model, "blocks.*")):
        with context, whence.relevance_rules(None, {}) as mode:
            values = model(x.clone().requires_grad_())
            kept.append(len(mode.bench.cells))
            del values
    assert kept[1] < kept[0] / 2
    with whence.checkpointed(model, "blocks.*"):
        torch.testing.assert_close(whence.explain(model, x, 1).relevance, expected)
    with pytest.raises(ZeroDivisionError), whence.checkpointed(model, "blocks.?"):
        raise ZeroDivisionError
    assert all("forward" not in vars(block) for block in model.blocks)
    with (
        pytest.raises(errors.SelectorError, match=r"no layer 'layers"),
        whence.checkpointed(model, "layers.*"),
    ):
        pass


def test_long_texts_of_real_models_can_be_checkpointed():
    pytest.importorskip("transformers")
    model, inputs = transformer_zoo.hugging_face("llama")
    inputs["use_cache"] = False
    expected = whence.explain(model.eval(), inputs, layers=["model.layers.*"])
    with whence.checkpointed(model, "model.layers.*"):
        e = whence.explain(model, inputs, layers=["model.layers.*"])
    torch.testing.assert_close(e.relevance["input_ids"], expected.relevance["input_ids"])
    torch.testing.assert_close(e.layers, expected.layers)


def test_split_and_offloaded_models():
    """Hooks of accelerate move weights in before a layer runs and out after it."""
    accelerate = pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    model, inputs = transformer_zoo.hugging_face("llama")
    expected = whence.explain(model.eval(), inputs)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    e = whence.explain(model, inputs)
    torch.testing.assert_close(e.relevance["input_ids"], expected.relevance["input_ids"])
    assert e.conservation.error.max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_bfloat16_transformers_are_near_float32(family):
    pytest.importorskip("transformers")
    model, inputs = transformer_zoo.hugging_face(family)
    transformer_zoo.randomised(model, additive=True)
    exact = whence.explain(model, inputs, 1).relevance["input_ids"]
    half = whence.explain(model.bfloat16(), inputs, 1)
    assert (half.relevance["input_ids"] - exact).norm() < 0.15 * exact.norm()


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(errors.OpaqueError, match="use_reentrant=False"):
        whence.explain(Checkpointed(True), torch.randn(2, 4, 6, 6))


@pytest.mark.parametrize("how", ["whole", "part", "in place", "function"])
def test_compiled_models_give_the_same_relevance(how):
    model, x = Checkpointed(None), torch.randn(2, 4, 6, 6)
    expected = whence.explain(model, x, 1).relevance
    compiled = model
    if how == "whole":
        compiled = torch.compile(model, backend="aot_eager")
    elif how == "part":
        model.blocks[1] = torch.compile(model.blocks[1], backend="aot_eager")
    elif how == "in place":
        model.compile(backend="aot_eager")
    else:
        compiled = torch.compile(lambda x: model(x), backend="aot_eager")
    for _ in range(2):
        with torch.no_grad():
            compiled(x)  # compiled before, and usable after
        torch.testing.assert_close(whence.explain(compiled, x, 1).relevance, expected)
        torch.testing.assert_close(whence.explain(compiled, x, 1, method="gradient_times_input").conservation.output,
                                   whence.explain(model, x, 1).output)  # fmt: skip
    torch._dynamo.reset()


def test_scripted_and_exported_modules_are_refused():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return torch.relu(self.layer(x))

    model, x = Small().eval(), torch.randn(2, 4)
    exported = torch.export.export(model, (x,)).module()
    with pytest.raises(errors.OpaqueError, match="exported"):
        whence.explain(exported, x)
    symbolic = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(whence.explain(symbolic, x).relevance, whence.explain(model, x).relevance)


def test_float16_is_refused_with_a_reason():
    model = nn.Sequential(nn.Linear(4, 3)).half().eval()
    with pytest.raises(errors.InputError, match="float16, whose range is too narrow"):
        whence.explain(model, torch.randn(1, 4).half())


class GeluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(F.gelu(x), x, g)[0]


class Opaque(nn.Module):
    def forward(self, x):
        return GeluFunction.apply(x)


class OpaquePair(nn.Module):
    def forward(self, x, mask=None, factor=None):
        return GeluFunction.apply(x * factor)


@pytest.mark.usefixtures("float64")
def test_hidden_functions_with_more_arguments():
    module, x = OpaquePair().eval(), torch.randn(2, 4)
    e = whence.explain(
        lambda x: module(x, None, factor=torch.full((4,), 2.0)), x, 1, method=LRP({OpaquePair: whence.Gradient()})
    )
    assert e.conservation.error.max() < 1e-10
    with pytest.raises(errors.OpaqueError):  # two of its arguments depend on the input
        whence.explain(lambda x: module(x, factor=x.tanh()), x, method=LRP({OpaquePair: whence.Identity()}))


@pytest.mark.parametrize("rules", [None, {F.linear: whence.Epsilon(1e-6)}, {F.linear: Gamma(0.25)}], ids=str)
def test_autocast_inside_the_model(rules):
    layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3)).eval()

    def mixed(x):
        with torch.autocast("cpu", torch.bfloat16):
            return layers(x).float()

    method, x = None if rules is None else LRP(rules), torch.randn(2, 8)
    exact, half = whence.explain(layers, x, 1, method=method), whence.explain(mixed, x, 1, method=method)
    assert (half.relevance - exact.relevance).norm() < 0.1 * exact.relevance.norm()


@pytest.mark.usefixtures("float64")
def test_hidden_functions_take_the_rule_of_their_module():
    def net(activation):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3)).eval()

    x = torch.randn(2, 4)
    with pytest.raises(errors.OpaqueError, match="or give its module a rule"):
        whence.explain(net(Opaque()), x)
    for rule in (whence.Identity(), whence.Gradient()):
        hidden = whence.explain(net(Opaque()), x, 1, method=LRP({"1": rule} | presets.attn_lrp()))
        plain = whence.explain(net(nn.GELU()), x, 1, method=LRP({F.gelu: rule} | presets.attn_lrp()))
        torch.testing.assert_close(hidden.relevance, plain.relevance, rtol=1e-10, atol=1e-12)
        assert hidden.conservation.error.max() < 1e-10
    with pytest.raises(errors.ModelError, match="does not depend on the input"):
        whence.explain(net(Opaque()), x, method=LRP({Opaque: whence.Constant()}))
