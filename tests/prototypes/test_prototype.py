"""Prototypes: exercise A and further closed forms, priors, objectives, images, batches that equal single runs, bad input."""

import pytest
import torch
from torch import nn

import whence
from support.comparisons import close
from whence import errors, prototype
from whence.images import CPPN, MACO, Fourier, Jiggle, Pixels
from whence.objectives import Caricature, Channel, Direction, Inversion, Layer, LogProbability, Neuron
from whence.priors import L2, CodeSpace, GaussianExpert, GaussianRBM

pytestmark = pytest.mark.usefixtures("float64")


D = 20


def linear(outputs=1):
    model = nn.Linear(D, outputs).eval()
    return model, model.weight.detach()


def precise(model, target, **settings):
    return prototype(model, target, **{"n_steps": 3000, "lr": 0.1, "progress": False} | settings)


def test_exercise_a_the_three_closed_forms():
    model, w = linear()
    close(precise(model, 0, prior=L2(0.05)).images, w / 0.1, atol=1e-6, rtol=0)

    mean, root = torch.randn(D), torch.randn(D, D) / D**0.5
    covariance = root @ root.T + 0.1 * torch.eye(D)
    close(precise(model, 0, prior=GaussianExpert(mean, covariance)).images, mean + w @ covariance, atol=1e-6, rtol=0)

    a, c, strength = torch.randn(D, 5), torch.randn(D), 0.2
    found = precise(model, 0, prior=CodeSpace(lambda z: z @ a.T + c, strength, size=5), shape=(D,))
    close(found.codes, w @ a / (2 * strength), atol=1e-6, rtol=0)
    close(found.images, w @ a @ a.T / (2 * strength) + c, atol=1e-6, rtol=0)  # Aᵀ w, which the hand-written answer drops


@pytest.mark.slow
def test_exercise_a_the_equivalences():
    model, _ = linear()
    λ = 0.05
    ridge = precise(model, 0, prior=L2(λ)).images
    gaussian = precise(model, 0, prior=GaussianExpert(torch.zeros(D), torch.eye(D) / (2 * λ))).images
    close(ridge, gaussian, atol=1e-6, rtol=0)
    orthogonal, _ = torch.linalg.qr(torch.randn(D, D))
    a, c = orthogonal * torch.linspace(0.5, 1.5, D), torch.randn(D)
    coded = precise(model, 0, prior=CodeSpace(lambda z: z @ a.T + c, 0.5, size=D), shape=(D,)).images
    close(coded, precise(model, 0, prior=GaussianExpert(c, a @ a.T)).images, atol=1e-6, rtol=0)
    close(
        precise(model, 0, prior=CodeSpace(lambda z: z @ orthogonal.T, λ, size=D), shape=(D,)).images, ridge, atol=1e-6, rtol=0
    )


def test_the_fixed_point_of_a_softmax():
    model, w = linear(4)
    λ = 0.5
    found = precise(model, [LogProbability(c) for c in range(4)], prior=L2(λ))
    p = model(found.images).softmax(1).detach()
    close(found.images, (torch.eye(4) - p) @ w / (2 * λ), atol=1e-6, rtol=0)
    close(found.activation, p.diagonal().log(), atol=1e-8, rtol=0)


def test_the_stationary_point_of_an_rbm_of_one_unit():
    model, w = linear()
    expert = GaussianRBM((D,), hidden=1, variance=1.0)
    expert.weight, expert.hidden_bias, expert.center = torch.randn(1, D), torch.randn(1), torch.randn(D)
    x = precise(model, 0, prior=expert).images
    unit = torch.sigmoid(x @ expert.weight.T + expert.hidden_bias)
    close(x, expert.center + w + unit @ expert.weight, atol=1e-6, rtol=0)


def test_bounded_pixels_go_where_the_weights_point():
    model, w = linear()
    x = precise(model, 0, image=Pixels(-1.0, 2.0)).images
    assert torch.equal(x > 0.5, w > 0)
    assert -1 <= x.min() <= x.max() <= 2


def test_the_patch_under_a_neuron_is_its_kernel():
    model = nn.Sequential(nn.Conv2d(1, 2, 5)).eval()
    x = precise(model, Neuron("0", 1, (3, 4)), shape=(1, 12, 12), prior=L2(0.1)).images
    patch = x[0, 0, 3:8, 4:9]
    assert torch.cosine_similarity(patch.flatten(), model[0].weight[1].detach().flatten(), dim=0) > 0.9999


def test_a_one_hot_direction_is_a_channel():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh()).eval()
    settings = {"shape": (1, 6, 6), "prior": L2(0.1), "n_steps": 50, "start": torch.full((1, 1, 6, 6), 0.1)}
    channel = prototype(model, "1:2", **settings)
    direction = prototype(model, Direction("1", torch.tensor([0.0, 0, 1]), cosine=0), **settings)
    close(direction.images, channel.images)
    close(direction.activation, channel.activation)


def deep():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 14 * 14, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"prior": L2(0.01)}, {"image": MACO()}, {"transforms": Jiggle(crops=2)}], ids=str)
def test_many_at_once_equal_single_runs(settings):
    model, targets = deep(), ["3:2", 1, Channel("3", 0) - 0.5 * Channel("3", 1), Neuron("0", 3)]
    together = prototype(model, targets, shape=(3, 34, 34), n_steps=12, **settings)
    for k, target in enumerate(targets):
        alone = prototype(model, target, shape=(3, 34, 34), n_steps=12, **settings)
        close(together.images[k], alone.images[0], rtol=1e-7, atol=1e-9)
        close(together[k].activation, alone.activation)
    again = prototype(model, targets, shape=(3, 34, 34), n_steps=12, **settings)
    assert torch.equal(again.images, together.images)
    other = prototype(model, targets, shape=(3, 34, 34), n_steps=12, seed=1, **settings)
    assert not torch.allclose(other.images, together.images)


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_stays_on_the_model(failing):
    model = deep()
    model[0].weight.requires_grad_(False)
    before = {name: (p.clone(), p.requires_grad, p.grad) for name, p in model.named_parameters()}
    calls = []

    def target(y):
        calls.append(y)
        if failing and len(calls) > 3:
            raise ZeroDivisionError
        return y[:, 0]

    if failing:
        with pytest.raises(ZeroDivisionError):
            prototype(model, [target, "3:0"], shape=(3, 34, 34), n_steps=5)
    else:
        prototype(model, [target, "3:0"], shape=(3, 34, 34), n_steps=5)
    for name, p in model.named_parameters():
        value, needs, grad = before[name]
        assert torch.equal(p, value)
        assert p.requires_grad == needs
        assert p.grad is grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    from torch.nn.modules import module as global_hooks

    assert not global_hooks._global_forward_hooks
    assert not global_hooks._global_forward_hooks_with_kwargs


def test_the_forward_pass_ends_at_the_target():
    ran = []

    class Later(nn.Module):
        def forward(self, x):
            ran.append(x.shape)
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Later()).eval()
    prototype(model, "0:1", shape=(3, 8, 8), n_steps=3)
    assert not ran
    prototype(nn.Sequential(model, nn.Flatten(), nn.Linear(4 * 36, 2)).eval(), ["0.0:1", 1], shape=(3, 8, 8), n_steps=2)
    assert ran


def test_units_that_are_off_at_the_start_are_switched_on():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 16, 1)).eval()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-0.5, 0.1]))
        model[3].weight.fill_(1.0)
    assert prototype(model, "1:0", shape=(1, 6, 6), n_steps=100, image=Pixels(-1.0, 1.0)).activation > 0
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].weight[1] = 0.2
    with pytest.warns(UserWarning, match="the gradient of 1:0 has been zero everywhere"):
        dead = prototype(model, ["1:0", "1:1"], shape=(1, 6, 6), n_steps=40, image=Pixels(0.0, 1.0))
    assert "1:0" in dead.note
    assert "1:1" not in dead.note


def test_diversity_pushes_the_same_target_apart():
    model = deep()
    settings = {"shape": (3, 34, 34), "n_steps": 60, "image": Pixels(0.0, 1.0), "start": torch.rand(2, 3, 34, 34) * 0.2 + 0.4}
    near, apart = (prototype(model, ["3:2", "3:2"], diversity=d, **settings).images.flatten(1) for d in (0.0, 20.0))
    cosines = [torch.cosine_similarity(*(p - p.mean(1, keepdim=True)), dim=0) for p in (near, apart)]
    assert cosines[1] < cosines[0] - 0.1


def test_caricature_and_inversion_of_a_photo():
    model, photo = deep(), torch.randn(1, 3, 34, 34)
    inverted = prototype(model, Inversion("3", photo), shape=(3, 34, 34), image=Pixels(), transforms=None, n_steps=150)
    a, a0 = (model[:4](x.clone()).detach() for x in (inverted.images, photo))
    assert (a - a0).norm() < 0.2 * a0.norm()
    close(inverted.activation, -((a - a0).square().sum() / a0.square().sum())[None])
    drawn = prototype(
        model, Caricature("3", photo), start=photo.clamp(-2.9, 2.9), image=Pixels(-3.0, 3.0), transforms=None, n_steps=30
    )
    assert drawn.history["activation"][-1] > drawn.history["activation"][0]


def test_deep_dream_and_deep_features_of_a_text_like_layer():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.mix = nn.Conv2d(3, 8, 8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.mix(self.patch(x).flatten(2).transpose(1, 2)).mean(1)

    model = Tokens().eval()
    p = prototype(model, ["mix:7", Neuron("mix", 2, (3,)), Layer("mix"), 1], shape=(3, 32, 32), n_steps=5)
    assert p.names == ["mix:7", "mix:2 at (3,)", "mix", "1"]


class Kinds(nn.Module):
    """Pictures held with their channels last, a recurrent layer, and a model that gives named outputs."""

    def __init__(self):
        super().__init__()
        self.norm, self.lstm, self.head = nn.LayerNorm(8), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)
        self.eval()

    def forward(self, x):
        x, _ = self.lstm(x)
        return {"logits": self.head(x.mean(1)), "hidden": x}


def test_channels_are_where_the_layers_kind_has_them():
    model = Kinds()
    x = torch.randn(1, 7, 6)
    assert whence.layers.layer_shapes(model, x) == {"lstm": (1, 7, 5), "head": (1, 3)}
    p = prototype(
        model,
        ["lstm:4", lambda y: y["hidden"][:, 0, 1], Neuron("lstm", 2, (6,)), lambda y: y["logits"][:, 1]],
        start=x,
        n_steps=2,
    )
    hidden = model.lstm(p.images)[0].detach()
    close(p.activation[:3], torch.stack([hidden[0, :, 4].mean(), hidden[1, 0, 1], hidden[2, 6, 2]]))
    with pytest.raises(errors.TargetError, match="channels 0 to 4"):
        prototype(model, "lstm:6", start=x, n_steps=2)

    swin = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Permuted(), nn.LayerNorm(8)).eval()
    p = prototype(swin, "2:3", shape=(3, 16, 16), image=Pixels(0.0, 1.0), n_steps=3)
    close(p.activation, swin(p.images)[..., 3].mean((1, 2)).detach())


class Permuted(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 2, 3)
        self.eval()

    def forward(self, x):
        return self.conv(x.sub_(0.5).div_(0.25)).mean((2, 3))


def test_a_model_that_overwrites_its_input_changes_neither_prototype_nor_photo():
    model, photo = InPlace(), torch.rand(1, 3, 12, 12)
    kept = photo.clone()
    p = prototype(model, [0, Inversion("conv", photo)], shape=(3, 12, 12), image=Fourier(0.0, 1.0), transforms=None, n_steps=3)
    assert torch.equal(photo, kept)
    assert 0 <= p.images.min() <= p.images.max() <= 1
    close(p.activation[0], model(p.images[:1].clone())[0, 0].detach())
    prototype(model, 0, shape=(3, 12, 12), image=Pixels(), prior=L2(0.1), n_steps=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_other_dtypes(dtype):
    model = deep().to(dtype)
    for image in (Pixels(), Fourier(), MACO(), CPPN(depth=2, width=4)):
        p = prototype(model, [1, "3:2"], shape=(3, 34, 34), image=image, n_steps=3)
        assert p.images.dtype == torch.float32
    coded = nn.Sequential(nn.Linear(2, 5 * 5), nn.Unflatten(1, (1, 5, 5))).eval()
    small = nn.Sequential(nn.Flatten(), nn.Linear(25, 2)).eval().to(dtype)
    assert prototype(small, 1, prior=CodeSpace(coded), shape=(1, 5, 5), n_steps=3).codes.dtype == torch.float64


def test_under_no_grad_in_inference_mode_and_interrupted():
    model = deep()
    expected = prototype(model, "3:2", shape=(3, 34, 34), n_steps=3).images
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            close(prototype(model, "3:2", shape=(3, 34, 34), n_steps=3).images, expected)

    def interrupt(y):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prototype(model, interrupt, shape=(3, 34, 34), n_steps=3)
    from torch.nn.modules import module as global_hooks

    assert not global_hooks._global_forward_hooks


def test_a_decoder_in_training_mode_is_refused():
    decoder = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5))
    with pytest.raises(errors.TrainingModeError):
        prototype(nn.Linear(5, 2).eval(), 0, prior=CodeSpace(decoder), shape=(5,), n_steps=2)


def test_concepts_of_one_name_are_still_their_own():
    model, settings = deep(), {"shape": (3, 34, 34), "n_steps": 8, "image": Pixels(-1.0, 1.0)}
    one, two = torch.randn(8), torch.randn(8)
    targets = [lambda y: y[:, 0], lambda y: y[:, 1], Direction("3", one), Direction("3", two), 0, LogProbability(0)]
    together = prototype(model, targets, diversity=5.0, **settings)
    for k, target in enumerate(targets):
        close(prototype(model, target, **settings).images[0], together.images[k], rtol=1e-7, atol=1e-9)


def test_centers_and_starts_of_each_code():
    model, a = nn.Linear(D, 1).eval(), torch.randn(D, 3)
    center = torch.randn(2, 3)
    p = precise(model, [0, 0], prior=CodeSpace(lambda z: z @ a.T, 0.2, center), shape=(D,), start=torch.randn(2, 3))
    close(p.codes, center + model.weight.detach() @ a / 0.4, atol=1e-6, rtol=0)


def test_a_spatial_atlas():
    atlas = whence.images.spatial_atlas(deep(), "3", torch.rand(1, 3, 34, 34), cells=3, size=34, n_steps=3)
    assert atlas.images.shape == (9, 3, 34, 34)
    assert atlas.columns == 3
