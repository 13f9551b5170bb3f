"""Priors of inputs: penalties, densities that are fitted to data, and codes of a decoder.

A prior is any object with `log_prob(x) -> [K]` for inputs `x` `[K, …]`, up to a constant. `CodeSpace` is a prior of codes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.core.argument_checks import check_arguments
from whence.errors import InputError, LoadError, RuleError, value_repr
from whence.prototypes import prior_files


class Prior(Protocol):
    """A log-density that `prototype` maximises together with the concept."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) `[K]` of inputs `[K, …]`, up to a constant."""
        ...


@dataclass(frozen=True, eq=False)
class L2:
    """The prior log p(x) = −strength ‖x − center‖² + const, a Gaussian of variance 1 / (2 strength).

    >>> whence.prototype(model, 3, prior=whence.priors.L2(0.3), shape=(1, 28, 28))

    The squared norm is summed over the input. A class mean as `center` gives the answer away: large strengths return it.

    Args:
        strength: Weight of the squared norm.
        center: A number, a tensor `[…]` of the shape of one input, or `[K, …]`, one for each target.

    Raises:
        RuleError: `strength` is negative.
    """

    strength: float = 0.01
    center: float | Tensor = 0.0

    def __post_init__(self):
        _check_strength(self.strength)

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.strength * _centred(x, self.center).square().flatten(1).sum(1)

    def response(self, w: Tensor) -> Tensor:
        """Return by how much adding wᵀx to log p(x) shifts its maximum, for each row of w: w / 2λ."""
        return w / max(2 * self.strength, torch.finfo(w.dtype).tiny)


@dataclass(frozen=True, eq=False)
class GaussianExpert:
    """A Gaussian density, log p(x) = −½ (x − μ)ᵀ Σ⁻¹ (x − μ) − ½ log |2πΣ|.

    >>> expert = whence.priors.GaussianExpert.fitted(x_train)
    >>> whence.prototype(model, range(10), prior=expert)

    Args:
        mean: μ, a tensor of the shape of one input, with D elements.
        covariance: Σ, `[D, D]`, positive definite.

    Raises:
        InputError: The covariance is of another shape, or not positive definite.
    """

    mean: Tensor
    covariance: Tensor
    _factor: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        numbers = self.mean.numel()
        if self.covariance.shape != (numbers, numbers):
            raise InputError(
                f"covariance has shape {tuple(self.covariance.shape)}, expected ({numbers}, {numbers}) like the mean"
            )
        factor, failed = torch.linalg.cholesky_ex(self.covariance)
        if failed:
            raise InputError(
                "the covariance is not positive definite; add a small value to its diagonal, as GaussianExpert.fitted() does"
            )
        object.__setattr__(self, "_factor", factor)

    @classmethod
    @check_arguments
    def fitted(cls, samples: Tensor, shrinkage: float = 0.02) -> "GaussianExpert":
        """Fit the mean and covariance of samples.

        Args:
            samples: Tensor `[N, …]`.
            shrinkage: Added to the diagonal of the covariance, which is singular for images.
        """
        flat = samples.detach().flatten(1)
        covariance = torch.cov(flat.T).reshape(flat.shape[1], -1) + shrinkage * torch.eye(flat.shape[1]).to(flat)
        return cls(flat.mean(0).view(samples.shape[1:]), covariance)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.mean.shape)

    @property
    def typical(self) -> Tensor:
        """The input that a search starts around."""
        return self.mean

    def log_prob(self, x: Tensor) -> Tensor:
        off = _centred(x, self.mean.to(x)).flatten(1)
        factor = self._factor.to(x)
        whitened = torch.linalg.solve_triangular(factor, off.T, upper=False)
        volume = factor.diagonal().log().sum() + 0.5 * off.shape[1] * math.log(2 * math.pi)
        return -0.5 * whitened.square().sum(0) - volume.to(x)

    def response(self, w: Tensor) -> Tensor:
        """Return by how much adding wᵀx to log p(x) shifts its maximum, for each row of w: Σw."""
        return w @ self.covariance.to(w)

    def draws(self, count: int, random: torch.Generator) -> Tensor:
        """Draw samples `[count, …]` of the prior."""
        noise = torch.randn(count, self.mean.numel(), generator=random, dtype=torch.float32).to(self.mean)
        return self.mean + (noise @ self._factor.T).view(count, *self.shape)


class GaussianRBM:
    """A restricted Boltzmann machine with Gaussian inputs, a product of experts (Montavon et al. 2018, section 3.2).

    log p(x) = Σ_j log(1 + exp(w_jᵀx / σ² + b_j)) − ‖x − c‖² / (2σ²) + const.

    >>> expert = whence.priors.GaussianRBM(shape=(1, 28, 28), hidden=300).fit(x_train)
    >>> expert.save("expert.safetensors"); expert = whence.priors.GaussianRBM.load("expert.safetensors")
    >>> whence.prototype(model, range(10), prior=expert, strength=0.3)

    An overfitted expert generates realistic data whatever the model has learned of the class, and so hides the model's
    failures.

    Args:
        shape: Shape of one input.
        hidden: Number of hidden units j.
        variance: σ², the variance of each input given the hidden units.
        seed: Random seed of the weights.

    Raises:
        RuleError: `hidden` or `variance` is not positive.
    """

    def __init__(self, shape: tuple[int, ...], hidden: int = 300, variance: float = 0.1, seed: int = 0):
        if hidden < 1 or variance <= 0:
            raise RuleError(
                f"hidden and variance must be positive, got hidden={value_repr(hidden)}, variance={value_repr(variance)}"
            )
        numbers = int(torch.Size(shape).numel())
        self.shape = tuple(shape)
        self.variance = variance
        self.weight = 0.01 * torch.randn(hidden, numbers, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        self.hidden_bias = torch.full((hidden,), -1.0, dtype=torch.float32)
        self.center = torch.zeros(numbers, dtype=torch.float32)

    @classmethod
    def from_parameters(
        cls, weight: Tensor, bias: Tensor, strength: float, shape: tuple[int, ...] | None = None
    ) -> "GaussianRBM":
        """Return the machine with log p(x) = Σ_j log(1 + exp(w_jᵀx + b_j)) − λ‖x‖² + const.

        >>> expert = whence.priors.GaussianRBM.from_parameters(w, b, strength=0.5)

        Args:
            weight: w, a tensor `[hidden, …]` with inputs of the remaining shape.
            bias: b, a tensor `[hidden]`.
            strength: λ > 0; the variance of each input given the hidden units is 1 / 2λ.
            shape: Shape of one input, if `weight` is flattened.

        Raises:
            RuleError: `strength` is not positive.
            InputError: The shapes do not fit each other.
        """
        if not strength > 0:
            raise RuleError(f"strength={value_repr(strength)}; expected λ > 0, without which log p(x) has no maximum")
        shape = tuple(weight.shape[1:]) if shape is None else tuple(shape)
        flat = weight.detach().flatten(1).float()
        if flat.shape[1] != torch.Size(shape).numel() or bias.shape != (len(flat),):
            raise InputError(
                f"weights {tuple(weight.shape)} and biases {tuple(bias.shape)} for inputs of shape {shape}; expected "
                f"[hidden, {torch.Size(shape).numel()}] and [hidden]"
            )
        made = cls(shape, len(flat), 1 / (2 * strength))
        made.weight, made.hidden_bias = flat * made.variance, bias.detach().float()
        return made

    @property
    def typical(self) -> Tensor:
        """The input that a search starts around; from 0 most searches would end in the nearest mode."""
        return self.center.view(self.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise InputError(f"the expert expects inputs of shape {self.shape}, got {tuple(x.shape[1:])}")
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
        """Fit by persistent contrastive divergence (Tieleman 2008), on the CPU regardless of the device of the samples.

        Args:
            samples: Tensor `[N, …]`.
            epochs: Passes over the samples.
            batch_size: Samples in a batch, and persistent chains.
            lr: Initial learning rate, which decreases linearly to 0.
            seed: Random seed.
            progress: Called after each epoch with its number and the number of epochs.

        Returns:
            The expert itself.

        Raises:
            InputError: The samples are empty, of another shape, or not finite.
        """
        if tuple(samples.shape[1:]) != self.shape:
            raise InputError(f"samples of shape {tuple(samples.shape[1:])} do not match the expert's shape {self.shape}")
        data = samples.detach().flatten(1).float().cpu()
        if not len(data) or not torch.isfinite(data).all():
            raise InputError("samples must not be empty or have NaN or infinite values")
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
        """Return by how much adding wᵀx to log p(x) shifts its maximum at fixed hidden units, for each row of w: σ²w."""
        return self.variance * w

    def draws(self, count: int, random: torch.Generator, steps: int = 300) -> Tensor:
        """Draw samples `[count, …]`, the final means of independent Gibbs chains of `steps` steps."""
        numbers = self.center.numel()
        chains = self.center + torch.randn(count, numbers, generator=random, dtype=torch.float32)
        for _ in range(steps):
            means = self._means(chains, random)
            chains = means + self.variance**0.5 * torch.randn(means.shape, generator=random, dtype=torch.float32)
        return self._means(chains, random).view(count, *self.shape)

    def _means(self, x: Tensor, random: torch.Generator) -> Tensor:
        """Return the means of inputs given hidden units that are sampled given `x`."""
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
        """Save the weights as .safetensors and return the path."""
        tensors = {"weight": self.weight, "hidden_bias": self.hidden_bias, "center": self.center}
        return prior_files.save(tensors, {"variance": self.variance, "shape": ",".join(map(str, self.shape))}, path)

    @classmethod
    def load(cls, path: str | Path) -> "GaussianRBM":
        """Return the expert that `save` wrote to a file.

        Raises:
            LoadError: The file cannot be read, or holds something else.
        """
        wanted = ("weight", "hidden_bias", "center", "variance", "shape")
        tensors, described = prior_files.load(path, "Gaussian RBM", wanted)
        expert = cls(prior_files.shape_of(described), len(tensors["weight"]), float(described["variance"]))
        for name in ("weight", "hidden_bias", "center"):
            if tensors[name].shape != getattr(expert, name).shape:
                raise LoadError(
                    f"{path} is not a saved Gaussian RBM of inputs {expert.shape}: {name} has shape "
                    f"{tuple(tensors[name].shape)}"
                )
            setattr(expert, name, tensors[name])
        return expert

    def __repr__(self) -> str:
        return f"GaussianRBM(shape={self.shape}, hidden={len(self.weight)}, variance={self.variance})"


@dataclass(frozen=True, eq=False)
class CodeSpace:
    """A prior of codes z of a decoder x = g(z): log q(z) = −strength ‖z − center‖² (Montavon et al. 2018, section 3.3).

    >>> whence.prototype(model, range(10), prior=whence.priors.CodeSpace(decoder, strength=0.1))

    A strength of ½ is the log-density of codes from N(0, I); with 0 codes leave the distribution of training, and some
    prototypes are unrealistic.

    Args:
        decoder: A trained `VAE` or `AdversarialAutoencoder`, or any callable from codes `[K, k]` to inputs `[K, …]`.
        strength: Weight of the squared norm.
        center: A number, a tensor `[k]`, or `[K, k]`, one for each target.
        size: k, if it cannot be inferred from the decoder.

    Raises:
        RuleError: `strength` is negative.
    """

    decoder: Callable[[Tensor], Tensor]
    strength: float = 0.1
    center: float | Tensor = 0.0
    size: int | None = None

    def __post_init__(self):
        _check_strength(self.strength)

    def code_size(self) -> int:
        """Return the length k of a code."""
        center = self.center.shape[-1] if isinstance(self.center, Tensor) and self.center.dim() else None
        found = self.size or center or getattr(self.decoder, "code_size", None) or _first_inputs(self.decoder)
        if found is None:
            raise InputError("cannot infer the code size from the decoder; pass it: whence.priors.CodeSpace(decoder, size=…)")
        return int(found)

    def log_prob(self, z: Tensor) -> Tensor:
        return -self.strength * _centred(z, self.center).square().flatten(1).sum(1)

    def response(self, w: Tensor) -> Tensor:
        """Return by how much adding wᵀz to log q(z) shifts its maximum, for each row of w: w / 2λ."""
        return w / max(2 * self.strength, torch.finfo(w.dtype).tiny)


def _first_inputs(decoder: Any) -> int | None:
    if not isinstance(decoder, torch.nn.Module):
        return None
    return next((m.in_features for m in decoder.modules() if isinstance(m, torch.nn.Linear)), None)


def _centred(x: Tensor, center: float | Tensor) -> Tensor:
    center = torch.as_tensor(center).to(x)
    if center.dim() and center.shape not in (x.shape[1:], x.shape):
        raise InputError(f"center of shape {tuple(center.shape)} does not fit inputs of shape {tuple(x.shape[1:])}")
    return x - center


def _check_strength(strength: float) -> None:
    if not strength >= 0:
        raise RuleError(f"strength must not be negative, got {value_repr(strength)}")
