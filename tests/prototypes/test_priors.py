"""Prototypes: exercise A and further closed forms, priors, objectives, images, batches that equal single runs, bad input."""

import math

import pytest
import torch
from torch import nn

import whence
from support.comparisons import close
from whence import errors, prototype
from whence.objectives import LogProbability
from whence.priors import VAE, AdversarialAutoencoder, CodeSpace, GaussianExpert, GaussianRBM

pytestmark = pytest.mark.usefixtures("float64")


D = 20


def linear(outputs=1):
    model = nn.Linear(D, outputs).eval()
    return model, model.weight.detach()


def precise(model, target, **settings):
    return prototype(model, target, **{"n_steps": 3000, "lr": 0.1, "progress": False} | settings)


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
    with pytest.raises(errors.LoadError, match="safetensors is not a saved Gaussian RBM"):
        GaussianRBM.load(VAE((4,), 2, 3).save(tmp_path / "vae.safetensors"))
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing")
    with pytest.raises(errors.LoadError, match="safetensors is not a saved Gaussian RBM"):
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
    found = [precise(model, LogProbability(1), prior=expert, strength=s, n_steps=500) for s in (0.01, 0.1, 1.0, 10.0)]
    activations, log_probs = (torch.cat([getattr(p, name) for p in found]) for name in ("activation", "log_prob"))
    assert (activations.diff() < 0).all()
    assert (log_probs.diff() > 0).all()


def test_an_rbm_from_given_parameters_has_the_density_of_the_paper():
    torch.manual_seed(0)
    w, b, strength, x = torch.randn(5, 2, 3), torch.randn(5), 0.3, torch.randn(4, 2, 3)
    expert = whence.priors.GaussianRBM.from_parameters(w, b, strength)
    literal = torch.log1p(torch.exp(x.flatten(1) @ w.flatten(1).T + b)).sum(1) - strength * x.flatten(1).square().sum(1)
    assert torch.allclose(expert.log_prob(x), literal, atol=1e-5)
    assert whence.priors.GaussianRBM.from_parameters(w.flatten(1), b, strength, shape=(2, 3)).shape == (2, 3)
    with pytest.raises(whence.errors.RuleError, match="expected λ > 0"):
        whence.priors.GaussianRBM.from_parameters(w, b, 0)
    with pytest.raises(whence.errors.InputError, match=r"expected \[hidden, 6\] and \[hidden\]"):
        whence.priors.GaussianRBM.from_parameters(w, b[:4], strength)


@pytest.mark.parametrize("prior", [None, whence.priors.L2(0)])
def test_a_search_without_prior_and_bounds_says_that_there_may_be_no_maximum(prior):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    found = whence.prototype(net, 1, shape=(6,), prior=prior, n_steps=20, progress=False)
    assert "neither a prior nor bounds" in found.note
    for bounded in ({"prior": whence.priors.L2(0.1)}, {"image": whence.images.Pixels(0.0, 1.0)}):
        assert whence.prototype(net, 1, shape=(6,), n_steps=20, progress=False, **bounded).note == ""
