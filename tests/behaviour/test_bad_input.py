"""Each first error of a user: one clear line of the library's own hierarchy that says what to do."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import whence
from whence import LRP, Epsilon, errors
from whence.core import diagnosis
from whence.models.preprocessing import Preprocessing
from whence.models.weight_files import load_weights


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()


X = torch.rand(2, 1, 6, 6)


def refused(error, message, *args, **kwargs):
    with pytest.raises(error, match=message) as caught:
        whence.explain(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_training_mode():
    model = nn.Sequential(net(), nn.Dropout(0.5))
    refused(errors.TrainingModeError, r"call model.eval\(\)", model.train(), X)
    model.eval()[1].train()
    refused(errors.TrainingModeError, "'1' is in training mode", model, X)


LARGE = torch.rand(300, 300)


@pytest.mark.parametrize("value", [LARGE, LARGE.numpy(), [LARGE] * 50, LARGE.tolist(), [net()] * 20])
@pytest.mark.parametrize(
    "call",
    [
        lambda value: whence.explain_targets(net(), X, value),
        lambda value: whence.explain(net(), X, 0, through=value),
        lambda value: whence.explain(net(), X, 0, through={"0": value}),
        lambda value: whence.explain(net(), X, 0, value),
        lambda value: whence.explain(net(), X, whence.Logit(0, position=value)),
        lambda value: whence.explain(net(), X, value),
        lambda value: LRP({"0": value}),
        lambda value: LRP(value),
        lambda value: Epsilon(value),
        lambda value: whence.IntegratedGradients(n_steps=value),
        lambda value: whence.SmoothGrad(kind=value),
        lambda value: whence.prototype(net(), value),
        lambda value: whence.prototype(net(), 0, n_steps=value),
        lambda value: whence.prototype(net(), 0, prior=value),
        lambda value: whence.attacks.FGSM(0.1, box=value)(net(), X, [0, 1]),
        lambda value: whence.attack(net(), X, [0, 1], attack=[value]),
        lambda value: whence.evaluate(net(), X, methods=[value]),
        lambda value: whence.metrics.PixelFlipping(imputer=[value]),
    ],
)
def test_messages_show_no_tensors(call, value):
    with pytest.raises((errors.WhenceError, TypeError, ValueError, AttributeError)) as caught:
        call(value)
    assert len(str(caught.value)) < 600, str(caught.value)
    if isinstance(caught.value, errors.WhenceError):
        assert "tensor([" not in str(caught.value)


@pytest.mark.parametrize("target", [3, -1, [0, 5]])
def test_target_out_of_range(target):
    refused(errors.TargetError, "classes 0 to 2", net(), X, target)


@pytest.mark.parametrize(
    ("target", "message"),
    [([0, 1, 2], "each of the 2 samples"), (torch.tensor([[0], [1]]), "has shape"), (0.5, "class index"),
     (torch.tensor(True), "class index"), ("cat", "is a name; pass"), ([0, None], "expected a class index"), (2**70,
     "expected a class index"), (lambda y: y, r"returned \(2, 3\)"), (lambda y: 3, "returned int"), (lambda y: y.sum(),
     r"returned \(\)")],
)  # fmt: skip
def test_target_of_the_wrong_form(target, message):
    refused(errors.TargetError, message, net(), X, target)


def test_wrong_input_shape_and_type():
    refused(errors.ModelError, r"input of shape \(2, 3, 6, 6\)", net(), torch.rand(2, 3, 6, 6))
    refused(errors.InputError, r"the input is a text; .*whence.Preprocessing", net(), "photo.jpg")
    refused(errors.InputError, r"x.float\(\) / 255", net(), torch.zeros(2, 1, 6, 6, dtype=torch.uint8))
    refused(errors.InputError, "nothing to explain", net(), ())


@pytest.mark.parametrize(
    ("x", "what_to_do"),
    [
        (torch.rand(2, 1, 6, 6).double(), "dtype float64, the model float32: pass x.to\\(torch.float32"),
        (torch.rand(2, 1, 6, 6, device="cpu").bfloat16(), "dtype bfloat16, the model float32"),
        (torch.rand(1, 6, 6), r"pass x\[None\]"),
        (torch.rand(6, 6, 1), r"pass x.movedim\(-1, 0\)\[None\]"),
        (torch.rand(2, 6, 6), r"pass x\[:, None\]"),
        (torch.rand(6, 6), r"pass x\[None, None\]"),
        (torch.rand(2, 6, 6, 1), r"pass x.movedim\(-1, 1\)"),
        (torch.rand(2, 3, 6, 6), "expected 1 channels, got 3"),
        (torch.rand(2, 1, 8, 8), r"whence.Preprocessing\(\(H, W\)\), or --size"),
    ],
)
def test_what_is_wrong_with_an_input_is_guessed(x, what_to_do):
    refused(errors.ModelError, what_to_do, net(), x)
    if "pass x" in what_to_do:  # as it says
        asked = what_to_do.partition("pass ")[2].replace("\\", "")
        whence.explain(net(), eval(asked if asked.count("(") == asked.count(")") else f"{asked})", {"x": x, "torch": torch}))


def test_arrays_for_a_network():
    for method in ("lrp", "occlusion"):
        with pytest.raises(errors.WhenceError, match=r"pass torch.from_numpy\(x\).float\(\)"):
            whence.explain(net(), X.numpy(), method=method)


def test_nothing_is_guessed_of_another_error():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            raise KeyError("mask")

    refused(errors.ModelError, r"KeyError: 'mask'$", Fails().eval(), torch.rand(2, 6, 6))


def test_preprocessing_says_what_does_not_fit():
    for given, message in (
        ({"size": 64}, "give height and width"),
        ({"size": (0, 4)}, "give height and width"),
        ({"size": (4, 4), "channels": 4}, "expected 3"),
        ({"size": (4, 4), "channels": 1, "mean": (0.5,) * 3, "std": (0.5,) * 3}, "3 numbers for 1 channels"),
        ({"size": (4, 4), "crop": False, "resize": 8}, "is the size before cropping; it requires crop=True"),
    ):
        with pytest.raises(errors.InputError, match=message):
            Preprocessing(**given)
    for given in ({"std": (0.5,) * 3}, {"mean": (0.5,) * 3}, {"mean": (0.5,) * 3, "std": (0.0,) * 3}):
        with pytest.raises(errors.RuleError, match="give both, with one positive std per channel"):
            Preprocessing((4, 4), **given)
    assert Preprocessing((4, 4), mean=torch.zeros(3), std=[1, 1, 1]).mean == (0.0, 0.0, 0.0)


def test_a_single_row_of_a_table():
    refused(errors.ModelError, r"pass x\[None\]", nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), torch.rand(4))


def test_an_input_elsewhere():
    device = nn.Linear(3, 2, device="meta").weight.device
    assert diagnosis._device_hint(device, [torch.ones(3)]) == "; the input is on cpu, the model on meta: pass x.to('meta')"


def test_a_class_a_picture_and_a_path():
    refused(errors.ModelError, r"Identity is a class, not a model; instantiate it: Identity\(…\).eval\(\)", nn.Identity, X)
    refused(errors.InputError, r"whence.Preprocessing\(…\).read\(path\)", net(), Image.new("L", (6, 6)))
    refused(errors.InputError, r"whence.Preprocessing\(…\).read\(path\)", net(), Path("photo.jpg"))


def test_names_in_place_of_things():
    refused(errors.ModelError, r"'net.pt' is a name, not a model; pass whence.load_model\(…\).model", "net.pt", X)
    refused(errors.TargetError, "or the index of the class", net(), X, "robin")


def test_a_file_that_is_not_there_has_near_ones(tmp_path):
    (tmp_path / "bird_net.pt").touch()
    with pytest.raises(errors.LoadError, match=r"no weights file .*birdnet.pt; did you mean 'bird_net.pt'"):
        load_weights(net(), tmp_path / "birdnet.pt")
    with pytest.raises(errors.LoadError, match=r"no file .*; did you mean 'bird_net.pt'"):
        Preprocessing((6, 6)).read(tmp_path / "bird_net.jpg")


def test_a_layer_that_is_not_there_among_few():
    refused(errors.SelectorError, "available layers: 0, 1, 2, 3$", net(), X, layers=["conv9"])
    many = nn.Sequential(*net(), *[nn.Identity() for _ in range(9)]).eval()
    refused(errors.SelectorError, "available layers: 0, 1, 2, 3, 4, …, 10, 11, 12$", many, X, layers=["conv9"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_input(value):
    x = X.clone()
    x[1, 0, 2, 2] = value
    refused(errors.InputError, "nan_to_num", net(), x)


def test_empty_batch_and_scalar():
    refused(errors.InputError, "empty", net(), X[:0])
    refused(errors.InputError, "empty", lambda x: x, torch.tensor(1.0))


def test_sparse_and_meta_inputs():
    refused(errors.InputError, "sparse", net(), torch.eye(3).to_sparse())
    refused(errors.InputError, "meta device", net(), X.to("meta"))


def test_whatever_the_model_raises_is_told_in_one_line():
    for error in (AssertionError("wrong size"), KeyError("x"), AttributeError("none")):

        def fails(x, error=error):
            raise error

        refused(errors.ModelError, f"input of shape .*{type(error).__name__}", fails, X)


def test_lists_of_targets_and_names_of_layers():
    with pytest.raises(errors.TargetError, match="must be a list"):
        whence.explain_targets(net(), X, 3)
    refused(errors.SelectorError, "module path", net(), X, layers=[0])
    with pytest.raises(errors.RuleError, match="both bounds"):
        whence.presets.deep_taylor(0)


def test_nan_output():
    refused(errors.ModelError, "NaN or infinite", lambda x: (x * float("inf")).flatten(1), X)


def test_output_that_is_not_classes():
    refused(errors.TargetError, r"expected \[N, classes\]", lambda x: x, X)
    refused(errors.TargetError, "no logits but a dict of y: a tensor", lambda x: {"y": x}, X)


def test_models_and_methods_that_are_none():
    refused(errors.ModelError, "must be callable, not int", 3, X)
    refused(errors.RuleError, "unknown method", net(), X, method="lrb")
    refused(errors.RuleError, r"not an instance; pass LRP", net(), X, method=LRP)
    refused(errors.RuleError, "is not a method", net(), X, method=3)


def test_output_cut_off_from_the_input():
    refused(errors.ModelError, "does not depend on the input", lambda x: x.detach().flatten(1), X)
    refused(errors.ModelError, "does not depend on the input", torch.no_grad()(net()), X)


def test_a_lazy_model():
    refused(errors.ModelError, "uninitialised", nn.Sequential(nn.LazyLinear(3)).eval(), X)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([1], "mapping"),
        ({"0": Epsilon}, "is the class Epsilon, not an instance; pass Epsilon"),
        ({"0": 0.25}, "not a rule"),
        ({"0": None}, "not a rule"),
    ],
)
def test_rules_of_the_wrong_form(rules, message):
    with pytest.raises(errors.RuleError, match=message):
        LRP(rules)


@pytest.mark.parametrize("make", [lambda: Epsilon("a"), lambda: Epsilon(float("inf")), lambda: whence.Gamma(None)])
def test_rules_with_no_number(make):
    with pytest.raises(errors.RuleError, match="finite number"):
        make()


def test_bounds_that_do_not_go_together():
    with pytest.raises(errors.RuleError, match="bounds of shapes"):
        whence.ZBox(torch.zeros(3), torch.ones(4))


def test_bounds_that_do_not_fit():
    refused(
        errors.RuleError,
        "do not broadcast",
        net(),
        X,
        method=LRP({"0": whence.ZBox(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))}),
    )


def test_an_unknown_choice_for_unknown():
    with pytest.raises(errors.RuleError, match="'error', 'warn' or 'gradient'"):
        LRP(unknown="ignore")


def test_layers():
    refused(errors.SelectorError, "no layer '7'", net(), X, layers=["7"])

    class Skips(nn.Sequential):
        def forward(self, x):
            return self[3](self[2](self[0](x)))

    refused(errors.ModelError, "was not called", Skips(*net()).eval(), X, layers=["1"])


def test_saving_as_something_else(tmp_path):
    with pytest.raises(errors.WhenceError, match="the suffix must be one of"):
        whence.explain(net(), X).save(tmp_path / "heat.gif")


@pytest.mark.parametrize(
    "method", [None, "integrated_gradients", "gradient_times_input", whence.Occlusion((1, 3, 3), strides=3)]
)
@pytest.mark.parametrize("draws", [lambda h: nn.functional.dropout(h, 0.5), lambda h: h * (1 + 0.1 * torch.rand_like(h))])
@pytest.mark.filterwarnings("ignore:integrated gradients do not add up")
def test_a_model_that_is_random_in_eval_mode_is_said_to_be(method, draws):
    plain, x = net(), torch.rand(2, 1, 6, 6)
    model = lambda x: plain[3](draws(plain[2](plain[1](plain[0](x)))))  # noqa: E731
    torch.manual_seed(0)
    for e in whence.explain_targets(model, x, [0, 1], method=method, progress=False):
        assert "random in eval mode" in e.note
    assert not whence.explain(plain, x, 0, method=method, progress=False).note


class ReadsMode(nn.Module):
    """Drops out by its own mode, in a function within `forward`."""

    def forward(self, x):
        def dropped(x):
            return nn.functional.dropout(x, 0.5, self.training)

        return dropped(x)


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.LayerNorm(3), nn.Linear(3, 2))]
)
def test_modules_without_modes_are_explained_in_training_mode(layer):
    x = torch.randn(2, 4)
    assert torch.equal(whence.explain(layer.train(), x, 0).relevance, whence.explain(layer.eval(), x, 0).relevance)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.1),
        nn.BatchNorm1d(4),
        nn.RReLU(),
        ReadsMode(),
        nn.TransformerEncoderLayer(4, 2),
        nn.MultiheadAttention(4, 2),
    ],
)
def test_modules_that_read_their_mode_are_refused_in_training_mode(layer):
    with pytest.raises(errors.TrainingModeError, match=r"call model.eval\(\)"):
        whence.explain(nn.Sequential(nn.Linear(4, 4), layer), torch.randn(2, 4), 0)


def test_modules_behind_functions_and_hooks_in_training_mode_are_refused():
    x, net = torch.randn(2, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    normed = torch.nn.utils.spectral_norm(nn.Linear(4, 3)).train()
    weight_u = normed.weight_u.clone()
    for model in (lambda x: net(x), net.forward, normed):
        with pytest.raises(errors.TrainingModeError, match=r"call model.eval\(\)"):
            whence.explain(model, x, 0)
    assert torch.equal(normed.weight_u, weight_u)
    assert net[0].num_batches_tracked == 0
