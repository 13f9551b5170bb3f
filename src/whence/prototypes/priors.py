"""What is likely a priori: penalties, densities to be fitted, and codes of a decoder.

A prior is any object with `log_prob(x) -> [K]` for inputs `x` `[K, …]`, up to a constant. `CodeSpace` is one of codes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.errors import InputError, LoadError, RuleError
from whence.prototypes import prior_files


class Prior(Protocol):
    """What `prototype` maximises beside the concept."""

    def log_prob(self, x: Tensor) -> Tensor:
        """`[K]` for inputs `[K, …]`, up to a constant."""
        ...


@dataclass(frozen=True, eq=False)
class L2:
    """log p(x) = −strength ‖x − center‖² + const: a Gaussian of variance 1 / (2 strength).

    >>> whence.prototype(model, 3, prior=whence.priors.L2(0.3), shape=(1, 28, 28))

    The squared norm, summed over the input. `center` is a number or a tensor `[…]` like one input, or `[K, …]`, one for each
    target. A class mean as center gives the answer away: large strengths return it.
    """

    strength: float = 0.01
    center: float | Tensor = 0.0

    def __post_init__(self):
        _check_strength(self.strength)

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.strength * _centred(x, self.center).square().flatten(1).sum(1)

    def response(self, w: Tensor) -> Tensor:
        """How far wᵀx moves the maximum of the density, for rows of w: w / 2λ."""
        return w / max(2 * self.strength, torch.finfo(w.dtype).tiny)


@dataclass(frozen=True, eq=False)
class GaussianExpert:
    """log p(x) = −½ (x − μ)ᵀ Σ⁻¹ (x − μ) − ½ log |2πΣ|.

    >>> expert = whence.priors.GaussianExpert.fitted(x_train)
    >>> whence.prototype(model, range(10), prior=expert)

    `mean` `[…]` has the shape of one input of D numbers, `covariance` is `[D, D]` and positive definite.
    """

    mean: Tensor
    covariance: Tensor
    _factor: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        numbers = self.mean.numel()
        if self.covariance.shape != (numbers, numbers):
            raise InputError(f"a covariance of shape {tuple(self.covariance.shape)} for a mean of {numbers} numbers")
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        if failed:
            raise InputError("the covariance is not positive definite; add a little to its diagonal, as fitted() does")
        object.__setattr__(self, "_factor", factor)

    @classmethod
    def fitted(cls, samples: Tensor, shrinkage: float = 0.02) -> "GaussianExpert":
        """The mean and covariance of samples `[N, …]`, `shrinkage` added to its diagonal: that of pictures is singular."""
        flat = samples.detach().flatten(1)
        covariance = torch.cov(flat.T).reshape(flat.shape[1], -1) + shrinkage * torch.eye(flat.shape[1]).to(flat)
        return cls(flat.mean(0).view(samples.shape[1:]), covariance)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    @property
    def typical(self) -> Tensor:
        """Where a search starts."""
        return self.mean

    def log_prob(self, x: Tensor) -> Tensor:
        off = _centred(x, self.mean.to(x)).flatten(1)
        factor = self._factor.to(x)
        whitened = torch.linalg.solve_triangular(factor, off.T, upper=False)
        volume = factor.diagonal().log().sum() + 0.5 * off.shape[1] * math.log(2 * math.pi)
        return -0.5 * whitened.square().sum(0) - volume.to(x)

    def response(self, w: Tensor) -> Tensor:
        """How far wᵀx moves the maximum of the density, for rows of w: Σw."""
        return w @ self.covariance.to(w)

    def draws(self, count: int, random: torch.Generator) -> Tensor:
        """Samples `[count, …]`."""
        noise = torch.randn(count, self.mean.numel(), generator=random, dtype=torch.float32).to(self.mean)
        return self.mean + (noise @ self._factor.T).view(count, *self.shape)


class GaussianRBM:
    """A restricted Boltzmann machine with Gaussian inputs, a product of experts (Montavon et al. 2018, section 3.2):

    log p(x) = Σ_j log(1 + exp(w_jᵀx / σ² + b_j)) − ‖x − c‖² / (2σ²) + const.

    >>> expert = whence.priors.GaussianRBM(shape=(1, 28, 28), hidden=300).fit(x_train)
    >>> expert.save("expert.safetensors"); expert = whence.priors.GaussianRBM.load("expert.safetensors")
    >>> whence.prototype(model, range(10), prior=expert, strength=0.3)

    `variance` σ² is that of each input given the hidden units. An overfitted expert draws data of its own, whatever the model
    takes the class to be, and so hides the model's failures.
    """

    def __init__(self, shape: tuple[int, ...], hidden: int = 300, variance: float = 0.1, seed: int = 0):
        if hidden < 1 or variance <= 0:
            raise RuleError(f"hidden={hidden!r}, variance={variance!r}; both must be positive")
        numbers = int(torch.Size(shape).numel())
        self.shape = tuple(shape)
        self.variance = variance
        self.weight = 0.01 * torch.randn(hidden, numbers, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        self.hidden_bias = torch.full((hidden,), -1.0, dtype=torch.float32)
        self.center = torch.zeros(numbers, dtype=torch.float32)

    @property
    def typical(self) -> Tensor:
        """Where a search starts: at 0 the mode nearest by would take all."""
        return self.center.view(self.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"the expert was made for inputs of {self.shape}, not {tuple(x.shape[1:])}")
        flat = x.flatten(1)
        units = F.softplus(flat @ self.weight.to(x).T / self.variance + self.hidden_bias.to(x)).sum(1)
        return units - (flat - self.center.to(x)).square().sum(1) / (2 * self.variance)

    def fit(
        self,
        samples: Tensor,
        epochs: int = 20,
        batch_size: int = 100,
        lr: float = 0.05,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> "GaussianRBM":
        """Persistent contrastive divergence (Tieleman 2008) on samples `[N, …]`: chains of its own stand for the model. It runs
        on the CPU, wherever the samples lie."""
        if tuple(samples.shape[1:]) != self.shape:
            raise InputError(f"samples of {tuple(samples.shape[1:])} for an expert of {self.shape}")
        data = samples.detach().flatten(1).float().cpu()
        if not len(data) or not torch.isfinite(data).all():
            raise InputError("the samples are empty, or have NaN or infinite values")
        batch_size = min(batch_size, len(data))
        random = torch.Generator().manual_seed(seed)
        self.center = data.mean(0)
        chains = data[torch.randint(len(data), (batch_size,), generator=random)].clone()
        steps = epochs * (len(data) // batch_size)
        for epoch in range(epochs):
            order = torch.randperm(len(data), generator=random)
            for i, batch in enumerate(order[: len(data) // batch_size * batch_size].split(batch_size)):
                done = epoch * (len(data) // batch_size) + i
                chains = self._step(data[batch], chains, lr * (1 - done / steps), random)
            if progress is not None:
                progress(epoch + 1, epochs)
        return self

    def response(self, w: Tensor) -> Tensor:
        """How far wᵀx moves the maximum of the density while no hidden unit changes, for rows of w: σ²w."""
        return self.variance * w

    def draws(self, count: int, random: torch.Generator, steps: int = 300) -> Tensor:
        """Samples `[count, …]`, the last means of as many chains of Gibbs sampling."""
        numbers = self.center.numel()
        chains = self.center + torch.randn(count, numbers, generator=random, dtype=torch.float32)
        for _ in range(steps):
            means = self._means(chains, random)
            chains = means + self.variance**0.5 * torch.randn(means.shape, generator=random, dtype=torch.float32)
        return self._means(chains, random).view(count, *self.shape)

    def _means(self, x: Tensor, random: torch.Generator) -> Tensor:
        """Of inputs, given hidden units drawn given `x`."""
        return self.center + torch.bernoulli(self._hidden(x), generator=random) @ self.weight

    def _step(self, seen: Tensor, chains: Tensor, lr: float, random: torch.Generator) -> Tensor:
        here, there = self._hidden(seen), self._hidden(chains)
        self.weight += lr * (here.T @ seen - there.T @ chains) / len(seen)
        self.hidden_bias += lr * (here.mean(0) - there.mean(0))
        self.center += lr * (seen.mean(0) - chains.mean(0))
        means = self._means(chains, random)
        return means + self.variance**0.5 * torch.randn(means.shape, generator=random, dtype=means.dtype)

    def _hidden(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x @ self.weight.T / self.variance + self.hidden_bias)

    def save(self, path: str | Path) -> Path:
        """Write the weights as .safetensors."""
        tensors = {"weight": self.weight, "hidden_bias": self.hidden_bias, "center": self.center}
        return prior_files.save(tensors, {"variance": self.variance, "shape": ",".join(map(str, self.shape))}, path)

    @classmethod
    def load(cls, path: str | Path) -> "GaussianRBM":
        """Read what `save` wrote."""
        wanted = ("weight", "hidden_bias", "center", "variance", "shape")
        tensors, described = prior_files.load(path, "Gaussian RBM", wanted)
        expert = cls(prior_files.shape_of(described), len(tensors["weight"]), float(described["variance"]))
        for name in ("weight", "hidden_bias", "center"):
            if tensors[name].shape != getattr(expert, name).shape:
                raise LoadError(
                    f"{path} holds no Gaussian RBM of inputs {expert.shape}: {name} is {tuple(tensors[name].shape)}"
                )
            setattr(expert, name, tensors[name])
        return expert

    def __repr__(self) -> str:
        return f"GaussianRBM(shape={self.shape}, hidden={len(self.weight)}, variance={self.variance})"


@dataclass(frozen=True, eq=False)
class CodeSpace:
    """Inputs x = g(z) of a decoder, and log q(z) = −strength ‖z − center‖² for its codes (Montavon et al. 2018, section 3.3).

    >>> whence.prototype(model, range(10), prior=whence.priors.CodeSpace(decoder, strength=0.1))

    `decoder` makes inputs `[K, …]` from codes `[K, k]`: a trained `VAE` or `AdversarialAutoencoder`, or any function; `size` is
    k where the decoder does not say it. `center` is a number, `[k]`, or `[K, k]`, one for each target. Strength ½ is the
    log-density of codes from N(0, I); with 0 the code prior is left, and some prototypes are broken.
    """

    decoder: Callable[[Tensor], Tensor]
    strength: float = 0.1
    center: float | Tensor = 0.0
    size: int | None = None

    def __post_init__(self):
        _check_strength(self.strength)

    def code_size(self) -> int:
        """The length of a code."""
        center = self.center.shape[-1] if isinstance(self.center, Tensor) and self.center.dim() else None
        found = self.size or center or getattr(self.decoder, "code_size", None) or _first_inputs(self.decoder)
        if found is None:
            raise InputError("the decoder does not say how long its codes are; pass CodeSpace(decoder, size=…)")
        return int(found)

    def log_prob(self, z: Tensor) -> Tensor:
        return -self.strength * _centred(z, self.center).square().flatten(1).sum(1)

    def response(self, w: Tensor) -> Tensor:
        """How far wᵀz moves the maximum of the density, for rows of w: w / 2λ."""
        return w / max(2 * self.strength, torch.finfo(w.dtype).tiny)


def _first_inputs(decoder: Any) -> int | None:
    if not isinstance(decoder, torch.nn.Module):
        return None
    return next((m.in_features for m in decoder.modules() if isinstance(m, torch.nn.Linear)), None)


def _centred(x: Tensor, center: float | Tensor) -> Tensor:
    center = torch.as_tensor(center).to(x)
    if center.dim() and center.shape not in (x.shape[1:], x.shape):
        raise InputError(f"a center of shape {tuple(center.shape)} for inputs of {tuple(x.shape[1:])}")
    return x - center


def _check_strength(strength: float) -> None:
    if not strength >= 0:
        raise RuleError(f"strength={strength!r} must not be negative")
