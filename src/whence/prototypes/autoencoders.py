"""Small autoencoders, variational and adversarial, whose decoders map codes distributed as N(0, I) to inputs."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whence.core.devices import device_of
from whence.errors import InputError, LoadError, RuleError, first_line, value_repr
from whence.methods.forward_backward import gradients_enabled
from whence.prototypes import prior_files

ProgressFunction = Callable[[int, int], None]
A = TypeVar("A", bound="Autoencoder")


class Autoencoder(nn.Module):
    """A fully connected encoder and decoder for inputs in [0, 1]; `forward` decodes."""

    outputs_a_code = 1

    def __init__(self, shape: tuple[int, ...], code_size: int = 16, hidden: int = 300, seed: int = 0):
        super().__init__()
        if code_size < 1 or hidden < 1:
            raise RuleError(
                f"code_size and hidden must be positive, got code_size={value_repr(code_size)}, hidden={value_repr(hidden)}"
            )
        numbers = int(torch.Size(shape).numel())
        self.shape, self.code_size, self.hidden = tuple(shape), code_size, hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(
                nn.Flatten(), nn.Linear(numbers, hidden), nn.ReLU(), nn.Linear(hidden, self.outputs_a_code * code_size)
            )
            self.decoder = nn.Sequential(
                nn.Linear(code_size, hidden), nn.ReLU(), nn.Linear(hidden, numbers), nn.Sigmoid(), nn.Unflatten(1, self.shape)
            )
            self._extend()
        self.eval()

    def _extend(self) -> None:
        """Create modules that only training needs."""

    def forward(self, codes: Tensor) -> Tensor:
        """Return the inputs `[N, …]` that codes `[N, k]` decode to."""
        return self.decoder(codes)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes `[N, k]` of inputs `[N, …]`."""
        return self.encoder(x)[:, : self.code_size]

    def fit(
        self: A,
        samples: Tensor,
        epochs: int = 25,
        batch_size: int = 128,
        lr: float = 1e-3,
        seed: int = 0,
        progress: ProgressFunction | None = None,
    ) -> A:
        """Train by Adam with a cosine learning rate schedule that ends at 0, on the device of the weights.

        Args:
            samples: Tensor `[N, …]` with values in [0, 1].
            epochs: Passes over the samples.
            batch_size: Samples in a batch.
            lr: Initial learning rate.
            seed: Random seed of the batches and of the sampled codes.
            progress: Called after each epoch with its number and the number of epochs.

        Returns:
            The autoencoder itself, in eval mode.

        Raises:
            InputError: The samples are empty, of another shape, or not in [0, 1].
        """
        if tuple(samples.shape[1:]) != self.shape:
            raise InputError(f"samples of shape {tuple(samples.shape[1:])} do not match the decoder's shape {self.shape}")
        if not len(samples) or not bool(((samples >= 0) & (samples <= 1)).all()):
            raise InputError("samples must not be empty and must lie in [0, 1], since the decoder ends in a sigmoid")
        random = torch.Generator().manual_seed(seed)
        with gradients_enabled():
            learn = self._learner(lr, epochs * -(-len(samples) // batch_size))
            for epoch in range(epochs):
                for batch in torch.randperm(len(samples), generator=random).split(batch_size):
                    learn(samples[batch].to(device_of(self), torch.float32, copy=True), random)
                if progress is not None:
                    progress(epoch + 1, epochs)
        return self.eval()

    def _learner(self, lr: float, steps: int) -> Callable[[Tensor, torch.Generator], None]:
        raise NotImplementedError

    def save(self, path: str | Path) -> Path:
        """Save the weights as .safetensors and return the path."""
        described = {"shape": ",".join(map(str, self.shape)), "code_size": self.code_size, "hidden": self.hidden}
        return prior_files.save(self.state_dict(), described, path)

    @classmethod
    def load(cls: type[A], path: str | Path) -> A:
        """Return the autoencoder that `save` wrote to a file.

        Raises:
            LoadError: The file cannot be read, or holds something else.
        """
        tensors, described = prior_files.load(path, cls.__name__, ("shape", "code_size", "hidden"))
        made = cls(prior_files.shape_of(described), int(described["code_size"]), int(described["hidden"]))
        try:
            made.load_state_dict(tensors)
        except RuntimeError as error:
            raise LoadError(f"{path} is not a saved {cls.__name__}: {first_line(error)}") from error
        return made


class VAE(Autoencoder):
    """A variational autoencoder (Kingma and Welling 2014): its codes are near N(0, I), its inputs near the data.

    >>> decoder = whence.priors.VAE(shape=(1, 28, 28), code_size=16).fit(x_train)
    >>> decoder(torch.randn(9, 16))                       # nine inputs
    >>> whence.prototype(model, range(10), prior=whence.priors.CodeSpace(decoder, strength=0.1))

    Args:
        shape: Shape of one input.
        code_size: Length k of a code.
        hidden: Units of the hidden layers.
        seed: Random seed of the weights.

    Raises:
        RuleError: `code_size` or `hidden` is not positive.
    """

    outputs_a_code = 2  # mean and log-variance

    def _learner(self, lr: float, steps: int) -> Callable[[Tensor, torch.Generator], None]:
        optimizer = torch.optim.Adam(self.parameters(), lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

        def learn(x: Tensor, random: torch.Generator) -> None:
            mean, log_variance = self.encoder(x).chunk(2, 1)
            codes = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=random).to(mean)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
            loss = (F.binary_cross_entropy(self.decoder(codes), x, reduction="sum") + divergence) / len(x)
            _step(optimizer, loss)
            schedule.step()

        return learn


class AdversarialAutoencoder(Autoencoder):
    """An autoencoder whose codes a discriminator cannot tell from N(0, I) (Makhzani et al. 2016).

    >>> decoder = whence.priors.AdversarialAutoencoder(shape=(1, 28, 28), code_size=16).fit(x_train)
    >>> decoder.encode(x)                                 # [N, 16]

    Args:
        shape: Shape of one input.
        code_size: Length k of a code.
        hidden: Units of the hidden layers.
        seed: Random seed of the weights.

    Raises:
        RuleError: `code_size` or `hidden` is not positive.
    """

    def _extend(self) -> None:
        self.discriminator = nn.Sequential(
            nn.Linear(self.code_size, self.hidden), nn.LeakyReLU(0.2), nn.Linear(self.hidden, self.hidden), nn.LeakyReLU(0.2),
            nn.Linear(self.hidden, 1),
        )  # fmt: skip

    def _learner(self, lr: float, steps: int) -> Callable[[Tensor, torch.Generator], None]:
        coding = [*self.encoder.parameters(), *self.decoder.parameters()]
        optimizers = [torch.optim.Adam(p, lr) for p in (coding, self.discriminator.parameters(), self.encoder.parameters())]
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) for optimizer in optimizers]

        def learn(x: Tensor, random: torch.Generator) -> None:
            reconstruct, discriminate, regularise = optimizers
            _step(reconstruct, F.binary_cross_entropy(self.decoder(self.encoder(x)), x, reduction="sum") / len(x))
            drawn = torch.randn(len(x), self.code_size, generator=random).to(x)
            fake, real = self.discriminator(self.encoder(x).detach()), self.discriminator(drawn)
            _step(discriminate, F.softplus(fake).mean() + F.softplus(-real).mean())
            _step(regularise, F.softplus(-self.discriminator(self.encoder(x))).mean())
            for schedule in schedules:
                schedule.step()

        return learn


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
