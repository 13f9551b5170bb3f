"""Prototypes: exercise A and further closed forms, priors, objectives, images, batches that equal single runs, bad input."""

import json
import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F

import whence
from test_gradients import close
from test_models import command
from whence import Logit, errors, prototype
from whence.images import CPPN, MACO, Fourier, Jiggle, Pixels
from whence.objectives import Caricature, Channel, Direction, Inversion, Layer, LogProbability, Neuron
from whence.priors import L2, VAE, AdversarialAutoencoder, CodeSpace, GaussianExpert, GaussianRBM
from whence.prototypes import image_parameterizations
from whence.prototypes.objectives import parse_objectives

pytestmark = pytest.mark.usefixtures("float64")
D = 20


def linear(outputs=1):
    model = nn.Linear(D, outputs).eval()
    return model, model.weight.detach()


def precise(model, target, **settings):
    return prototype(model, target, **{"n_steps": 3000, "lr": 0.1, "progress": False} | settings)


# exercise A


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


# further closed forms


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


# priors


def test_the_gaussian_expert_is_a_density():
    x, mean = torch.randn(5, D), torch.randn(D)
    covariance = torch.cov(torch.randn(D, 100))
    expected = torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)
    close(GaussianExpert(mean, covariance).log_prob(x), expected)
    fitted = GaussianExpert.fitted(torch.randn(500, 2, 3), shrinkage=0.01)
    assert fitted.shape == (2, 3)
    close(fitted.covariance.diagonal().mean(), 1.01, atol=0.1, rtol=0)


def test_the_rbms_density_is_that_of_its_energy():
    """p(x) ∝ Σ_h exp(−E(x, h)) over all hidden states."""
    expert = GaussianRBM((4,), hidden=3, variance=0.5)
    expert.weight, expert.hidden_bias, expert.center = torch.randn(3, 4), torch.randn(3), torch.randn(4)
    x = torch.randn(6, 4)
    states = torch.tensor([[k >> j & 1 for j in range(3)] for k in range(8)]).double()
    energy = (x - expert.center).square().sum(1)[:, None] / (2 * 0.5) - (
        x @ expert.weight.T / 0.5 + expert.hidden_bias
    ) @ states.T
    close(expert.log_prob(x), (-energy).logsumexp(1))


def test_the_rbm_learns_and_travels(tmp_path):
    torch.manual_seed(0)
    kinds = (torch.rand(8, 16) > 0.5).float()
    data = kinds[torch.randint(8, (2000,))] + 0.1 * torch.randn(2000, 16)
    expert = GaussianRBM((16,), hidden=30, variance=0.05).fit(data, epochs=15)
    again = GaussianRBM((16,), hidden=30, variance=0.05).fit(data, epochs=15)
    assert torch.equal(expert.weight, again.weight)
    others = (torch.rand(200, 16) > 0.5).float() + 0.1 * torch.randn(200, 16)
    assert expert.log_prob(data[:200].float()).median() > expert.log_prob(others).quantile(0.9)
    loaded = GaussianRBM.load(expert.save(tmp_path / "expert.safetensors"))
    close(loaded.log_prob(data[:5].float()), expert.log_prob(data[:5].float()))
    with pytest.raises(errors.LoadError, match="no Gaussian RBM"):
        GaussianRBM.load(VAE((4,), 2, 3).save(tmp_path / "vae.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing")
    with pytest.raises(errors.LoadError, match="no Gaussian RBM"):
        GaussianRBM.load(tmp_path / "broken.safetensors")
    with pytest.raises(errors.WhenceError, match="no folder"):
        expert.save(tmp_path / "nowhere" / "expert.safetensors")
    assert GaussianRBM((16,), hidden=3).fit(data[:7], epochs=1)
    with pytest.raises(errors.InputError, match="NaN"):
        expert.fit(data * math.nan)


@pytest.mark.parametrize("kind", [VAE, AdversarialAutoencoder])
def test_decoders_learn_and_travel(kind, tmp_path):
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    kinds = (torch.rand(4, 1, 4, 4) > 0.5).float()
    data = kinds[torch.randint(4, (1500,))]
    decoder = kind((1, 4, 4), code_size=4, hidden=40).fit(data, epochs=12, lr=3e-3)
    made = decoder(decoder.encode(data[:50])).detach()
    assert (made - data[:50]).square().mean() < 0.05
    codes = decoder.encode(data).detach()
    assert codes.abs().mean() < 3
    loaded = kind.load(decoder.save(tmp_path / "decoder.safetensors"))
    assert torch.equal(loaded(codes[:3]), decoder(codes[:3]))
    assert not decoder.training
    p = prototype(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), [0, 1], prior=CodeSpace(decoder), n_steps=20)
    assert p.images.shape == (2, 1, 4, 4)
    assert p.codes.shape == (2, 4)
    assert all(q.grad is None for q in loaded.parameters())


def test_training_a_decoder_leaves_the_global_draws_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    VAE((4,), 2, 3)
    assert torch.equal(torch.rand(3), expected)


def test_any_object_with_a_log_prob_is_a_prior():
    class Shell:
        def log_prob(self, x):
            return -(x.norm(dim=1) - 2).square()

    model, w = linear()
    x = precise(model, 0, prior=Shell(), strength=10.0).images
    close(x, w / w.norm() * x.norm(), atol=1e-3, rtol=0)
    close(x.norm(), 2 + w.norm() / 20, atol=1e-3, rtol=0)


def test_strength_trades_the_prior_against_the_concept():
    model, _ = linear(3)
    expert = GaussianExpert(torch.zeros(D), torch.eye(D))
    found = [precise(model, LogProbability(1), prior=expert, strength=s, steps=500) for s in (0.01, 0.1, 1.0, 10.0)]
    activations, log_probs = (torch.cat([getattr(p, name) for p in found]) for name in ("activation", "log_prob"))
    assert (activations.diff() < 0).all()
    assert (log_probs.diff() > 0).all()


# images


@given(st.integers(1, 4), st.integers(2, 31), st.integers(2, 31))
def test_fourier_images_round_trip(channels, height, width):
    x = torch.rand(2, channels, height, width) * 1.6 + 0.2
    image, shape = Fourier(0.0, 2.0), (channels, height, width)
    close(image.render(image.written(x), shape), x, atol=1e-10, rtol=0)
    started = image.render(image.start(shape, [torch.Generator().manual_seed(k) for k in range(2)]), shape)
    assert started.shape == (2, *shape)
    assert 0 < started.min() < started.max() < 2


@given(st.integers(1, 3), st.integers(3, 20), st.integers(3, 20))
def test_maco_keeps_its_magnitudes(channels, height, width):
    shape = (channels, height, width)
    spectrum = MACO.spectrum_of(torch.rand(5, *shape))
    image = MACO(0.0, 1.0, spectrum)
    phases = image.start(shape, [torch.Generator().manual_seed(1)])
    found = torch.fft.rfft2(image.picture(phases, shape), norm="ortho").abs()
    close(found[0], spectrum.expand_as(found[0]), atol=1e-6, rtol=1e-5)


IMAGES = [Pixels(), Pixels(-1.0, 1.0), Fourier(), MACO(), CPPN(depth=3, width=6)]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: type(image).__name__)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_image_is_optimised(image, channels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    p = prototype(model, "2:1", shape=(channels, 12, 14), image=image, n_steps=40, transforms=None)
    assert p.images.shape == (1, channels, 12, 14)
    assert p.history["activation"][-1] > p.history["activation"][0]


def test_colours_are_decorrelated_and_back():
    x = torch.rand(2, 3, 4, 4)
    close(image_parameterizations.to_rgb(image_parameterizations.decorrelate(x)), x)
    assert torch.equal(image_parameterizations.to_rgb(x[:, :2]), x[:, :2])


def test_jiggled_copies_differ_by_picture_and_are_near_it():
    x = torch.rand(1, 1, 24, 24).expand(2, -1, -1, -1)
    still = Jiggle(0, 0, 0)(x, [torch.Generator().manual_seed(k) for k in range(2)])
    close(still, x)
    moved = Jiggle(shift=3, scale=0.1, turn=10, crops=3)(x, [torch.Generator().manual_seed(k) for k in range(2)])
    assert moved.shape == (6, 1, 24, 24)
    assert (moved[:, None] - moved[None]).flatten(2).abs().amax(2).add(torch.eye(6)).min() > 0.1
    shifted = Jiggle(shift=3, scale=0, turn=0)(torch.eye(24)[None, None], [torch.Generator().manual_seed(0)])
    assert shifted.shape == (1, 1, 24, 24)


# many at once, and nothing left


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


# models and callers of all kinds


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
    atlas = whence.images.spatial_atlas(deep(), "3", torch.rand(1, 3, 34, 34), cells=3, size=34, steps=3)
    assert atlas.images.shape == (9, 3, 34, 34)
    assert atlas.columns == 3


# the data's own


def test_top_samples_by_activation_and_relevance():
    model, data = deep(), torch.randn(30, 3, 34, 34)
    top = whence.top_samples(model, ["3:2", 1, Logit(0, rather_than=3)], data, n_samples=4, batch_size=7)
    channel = model[:4](data.clone())[:, 2].mean((1, 2)).detach()
    logits = model(data.clone()).detach()
    for row, values in enumerate((channel, logits[:, 1], logits[:, 0] - logits[:, 3])):
        expected = values.topk(4)
        assert torch.equal(top.indices[row], expected.indices)
        close(top.values[row], expected.values)
    relevant = whence.top_samples(model, "3:2", data, n_samples=3, ranking="relevance", batch_size=8)
    e = whence.explain(model, data, layers=["3"])
    close(relevant.values[0], e.layers["3"][:, 2].sum((1, 2)).topk(3).values)
    p = prototype(model, "3:2", shape=(3, 34, 34), n_steps=2).beside(data[top.indices[:1]])
    assert p.samples.shape == (1, 4, 3, 34, 34)
    with pytest.raises(errors.RuleError, match="that of channels"):
        whence.top_samples(model, 1, data, ranking="relevance")
    with pytest.raises(errors.InputError, match="sample 3 gives NaN"):
        whence.top_samples(model, "3:2", data.index_fill(0, torch.tensor([3]), math.nan))
    with pytest.raises(errors.InputError, match="batch_size=-1"):
        whence.top_samples(model, "3:2", data, batch_size=-1)
    with pytest.raises(errors.InputError, match="n=31 of 30"):
        whence.top_samples(model, 1, data, n_samples=31)


# what comes back


def test_prototypes_are_saved_and_drawn(tmp_path):
    p = prototype(deep(), ["3:0", "3:1"], shape=(3, 34, 34), n_steps=2)
    for name in ("grid.png", "grid.pdf", "p.npz", "p.safetensors"):
        assert p.save(tmp_path / name).stat().st_size > 500
    assert p.beside(torch.rand(2, 3, 3, 34, 34)).save(tmp_path / "beside.png").is_file()
    assert p._repr_png_().startswith(b"\x89PNG")
    assert "3:1" in repr(p)
    assert len(list(p)) == 2
    assert set(p.numbers()) == {"images", "activation", "history.activation", "history.log_prob"}
    bars = prototype(nn.Linear(5, 2).eval(), [0, 1], prior=L2(1.0), n_steps=2)
    bars.save(tmp_path / "bars.png")
    with pytest.raises(errors.WhenceError, match="cannot save"):
        p.save(tmp_path / "p.html")
    with pytest.raises(errors.InputError, match="samples of shape"):
        p.beside(torch.rand(1, 3, 3, 34, 34))


def test_concepts_are_read():
    assert [str(o) for o in parse_objectives(["features.10:0-2", 7, Logit(3)])][:4] == [
        "features.10:0",
        "features.10:1",
        "features.10:2",
        "7",
    ]
    assert str(Channel("a", 1) - 2 * Neuron("b", 3)) == "a:1 − 2 b:3 in the middle"
    assert [str(o) for o in parse_objectives(range(2))] == ["0", "1"]
    for wrong in ("a:b", ":3", "a:1-x"):
        with pytest.raises(errors.SelectorError, match="no concept"):
            parse_objectives(wrong)
    for wrong in (3.5, True, [None], []):
        with pytest.raises(errors.TargetError):
            parse_objectives(wrong)


# bad input


@pytest.mark.parametrize(
    ("target", "settings", "error", "message"),
    [
        ("7:0", {}, errors.SelectorError, "no layer '7'"),
        ("3:8", {}, errors.TargetError, "channels 0 to 7"),
        (9, {}, errors.TargetError, "classes 0 to 3"),
        (Neuron("3", 0, (99, 0)), {}, errors.TargetError, "not among the"),
        (Direction("3", torch.zeros(5)), {}, errors.TargetError, "of 8 channels"),
        (0, {"n_steps": 0}, errors.RuleError, "at least 1"),
        (0, {"prior": GaussianExpert(torch.zeros(4), torch.eye(4))}, errors.InputError, "the prior is of inputs of \\(4,\\)"),
        (0, {"prior": L2(1.0, torch.zeros(5))}, errors.InputError, "center of shape"),
        (0, {"shape": None}, errors.InputError, "pass shape="),
        (0, {"shape": (3, -1, 2)}, errors.InputError, "positive sizes"),
        (0, {"image": Fourier(), "shape": (5,)}, errors.InputError, "pictures have a shape"),
        (0, {"transforms": "jitter"}, errors.RuleError, "give whence.images.Jiggle"),
        (0, {"start": torch.zeros(1, 3, 3, 3)}, errors.InputError, "start of shape"),
        (0, {"start": torch.zeros(3, 3, 34, 34)}, errors.InputError, "3 inputs for 1 targets"),
        (0, {"image": MACO(), "start": torch.zeros(1, 3, 34, 34)}, errors.RuleError, "cannot start from an input"),
        (0, {"image": MACO(spectrum=torch.ones(3, 4, 4))}, errors.InputError, "a spectrum of shape"),
        (0, {"image": Pixels(), "prior": CodeSpace(lambda z: z, size=3)}, errors.RuleError, "leave image out"),
        ("*:0", {}, errors.SelectorError, "stands for several"),
        (0, {"image": "fourier"}, errors.RuleError, "is no image"),
        (0, {"prior": L2}, errors.RuleError, "is no prior"),
        (0, {"strength": -1.0}, errors.RuleError, "neither may be negative"),
        (0, {"lr": 0.0}, errors.RuleError, "neither may be negative"),
        (0, {"seed": 1.5}, errors.RuleError, "whole number"),
        (0, {"shape": 5}, errors.InputError, "positive sizes"),
        (0, {"start": torch.zeros(1, 3, 34, 34).int()}, errors.InputError, "floating-point"),
        (0, {"transforms": lambda x, randoms: None}, errors.InputError, "as many pictures"),
        (0, {"start": torch.full((1, 3, 34, 34), 9.0), "image": Fourier()}, errors.InputError, "beyond the image's bounds"),
        (Direction("3", torch.zeros(8), position=(99, 0)), {}, errors.TargetError, "not among"),
        ({"a": 1}, {}, errors.TargetError, "as a dict"),
        (
            0,
            {"prior": CodeSpace(lambda z: z @ torch.ones(2, 4).to(z), size=2)},
            errors.InputError,
            "the decoder makes inputs of",
        ),
        (
            0,
            {"prior": CodeSpace(lambda z: z @ torch.ones(3, 4).to(z), size=2)},
            errors.InputError,
            "cannot make inputs of codes",
        ),
        (Inversion("3", torch.ones(1, 3, 20, 20, dtype=torch.float64)), {}, errors.RuleError, "give shape=photo.shape"),
    ],
)
def test_what_cannot_be_is_refused(target, settings, error, message):
    with pytest.raises(error, match=message):
        prototype(deep(), target, **{"shape": (3, 34, 34), "n_steps": 2} | settings)


def test_models_and_priors_are_checked():
    model = deep()
    with pytest.raises(errors.TrainingModeError):
        prototype(model.train(), 0, shape=(3, 34, 34))
    with pytest.raises(errors.RuleError, match="must not be negative"):
        L2(-1.0)
    with pytest.raises(errors.InputError, match="not positive definite"):
        GaussianExpert(torch.zeros(2), torch.zeros(2, 2))
    with pytest.raises(errors.InputError, match="a covariance of shape"):
        GaussianExpert(torch.zeros(2), torch.eye(3))
    with pytest.raises(errors.InputError, match="how long its codes are"):
        prototype(nn.Linear(3, 1).eval(), 0, prior=CodeSpace(lambda z: z), shape=(3,))
    with pytest.raises(errors.InputError, match="must lie in"):
        VAE((4,), 2, 3).fit(torch.full((5, 4), 2.0))
    with pytest.raises(errors.InputError, match="samples of"):
        GaussianRBM((4,)).fit(torch.zeros(3, 5))

    class Wrong:
        def log_prob(self, x):
            return x

    with pytest.raises(errors.InputError, match="log_prob gave"):
        prototype(nn.Linear(3, 1).eval(), 0, prior=Wrong(), n_steps=2)


def test_one_objective_that_explodes_stops_alone():
    calls = []

    def fading(y):
        calls.append(1)
        return y[:, 0] * (math.nan if len(calls) > 5 else 1.0)

    model = nn.Linear(3, 2).eval()
    with pytest.warns(UserWarning, match="fading is NaN or infinite after 5 steps"):
        p = prototype(model, [1, fading], prior=L2(0.1), n_steps=20)
    close(p.images[0], prototype(model, 1, prior=L2(0.1), n_steps=20).images[0])
    assert torch.isfinite(p.images).all()
    with pytest.raises(errors.ModelError, match="at the start"):
        prototype(model, lambda y: y[:, 0] / 0, n_steps=3)


def test_a_dead_unit_is_named_beside_a_prior_as_well():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, -1
    with pytest.warns(UserWarning, match="the gradient of 1:0 has been zero"):
        prototype(model, "1:0", shape=(1, 6, 6), prior=L2(0.1), n_steps=40)


def test_an_objective_that_explodes_gives_the_last_good_input():
    steps = []

    def fading(y):
        steps.append(1)
        return y[:, 0] * (math.nan if len(steps) > 5 else 1.0)

    with pytest.warns(UserWarning, match="NaN or infinite after 5 steps"):
        p = prototype(nn.Linear(3, 1).eval(), fading, n_steps=20)
    assert torch.isfinite(p.images).all()
    assert len(p.history["activation"]) == 5
    assert "NaN" in repr(p)


def test_what_grows_without_end_is_told():
    with pytest.warns(UserWarning, match="may not have arrived"):
        prototype(nn.Linear(3, 1).eval(), 0, n_steps=80)


# the command line


def test_the_command_draws_ten_digits(tmp_path):
    done = command("prototype", "--n-steps", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["prior"] for row in report["prototypes"][::10]] == ["l2", "expert", "decoder"]
    assert (tmp_path / "prototypes.png").stat().st_size > 5000
    grid = command("prototype", "--layer", "5", "--channels", "0-3", "--n-steps", "3", "--out", "c.png", cwd=tmp_path)
    assert grid.returncode == 0, grid.stderr
    assert "5:3" in grid.stdout
    import numpy as np

    np.save(tmp_path / "data.npy", np.random.default_rng(0).random((20, 1, 28, 28), dtype=np.float32))
    options = ("--layer", "5", "--channels", "0, 2", "--beside", "data.npy", "--n-steps", "3", "--out", "beside.npz")
    beside = command("prototype", *options, cwd=tmp_path)
    assert beside.returncode == 0, beside.stderr
    assert np.load(tmp_path / "beside.npz")["samples"].shape == (2, 9, 1, 28, 28)
    layers = command("models", "--layers", "digits", cwd=tmp_path)
    assert "64 × 7 × 7" in layers.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer", "55"), "no layer '55'"),
        (("--layer", "5", "--channels", "99"), "channels 0 to 63"),
        (("--prior", "vae"), "no prior 'vae'"),
        (("--image", "gan"), "no image 'gan'"),
        (("--target", "ten"), "no class 'ten'"),
        (("--target", "3", "--layer", "5"), "not both"),
        (("--n-steps", "0"), "at least 1"),
        (("--out", "p.html"), "cannot save"),
        (("--target", "3", "--channels", "0-3"), "--channels goes with --layer"),
        (("--prior", "none", "--strength", "2"), "--strength is that of a prior"),
    ],
)
def test_the_command_refuses_in_one_line(options, message, tmp_path):
    done = command("prototype", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_real_channels_show_more_than_noise(data):
    """SqueezeNet: prototypes of channels excite them far more than any photo-like noise, at a middle and a late layer."""
    torchvision = pytest.importorskip("torchvision")
    from whence.models.registry import load_model

    torch.set_default_dtype(torch.float32)
    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    assert torchvision
    low, high = loaded.preprocessing.bounds
    p = prototype(loaded.model, ["features.7:0-1", "features.12:0-1"], shape=(3, 96, 96), image=Fourier(low, high), n_steps=60)
    noise = low + (high - low) * torch.rand(40, 3, 96, 96)
    top = whence.top_samples(loaded.model, ["features.7:0-1", "features.12:0-1"], noise, n_samples=1)
    assert (p.activation > 2 * top.values[:, 0]).all()


def test_bundled_priors_beat_l2_in_the_eyes_of_a_nearest_neighbour():
    from whence.models.digits import digit_decoder, digit_expert, digit_samples, digits

    torch.set_default_dtype(torch.float32)
    samples, labels = digit_samples()

    def likeness(p):
        flat = [F.normalize(t.flatten(1) - t.flatten(1).mean(1, keepdim=True), dim=1) for t in (p.images, samples)]
        return torch.stack([(flat[0][c] @ flat[1][labels == c].T).max() for c in range(10)]).mean()

    ridge = prototype(digits(), range(10), prior=L2(0.3), shape=(1, 28, 28), n_steps=150)
    expert = prototype(digits(), range(10), prior=digit_expert(), strength=0.3, n_steps=150)
    decoder = prototype(digits(), range(10), prior=CodeSpace(digit_decoder(), 0.1), n_steps=150)
    assert likeness(ridge) < 0.4 < likeness(expert)
    assert likeness(decoder) > 0.6
    assert digits()(decoder.images).argmax(1).tolist() == list(range(10))
