"""The bundled digit networks, small and without biases, so that relevance sums exactly to the output."""

from contextlib import AbstractContextManager
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from safetensors.torch import load
from torch import Tensor, nn

from whence.prototypes.autoencoders import VAE
from whence.prototypes.priors import GaussianRBM


def digit_network() -> nn.Sequential:
    """Return an untrained ReLU network for MNIST digits, `[N, 1, 28, 28]` in [0, 1] to `[N, 10]` logits.

    It has no biases: f(tx) = t f(x) for t > 0, hence gradient × input and LRP-0 conserve exactly.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 10, bias=False),
    )


def digits() -> nn.Sequential:
    """Return the trained digit network in eval mode (`scripts/train_digits.py` trains it and reports its accuracy).

    >>> digits()(digit_samples()[0]).shape
    torch.Size([50, 10])
    """
    return _trained("digits.safetensors")


def robust_digits() -> nn.Sequential:
    """Return the digit network trained against adversarial examples within 0.25 of each pixel, in eval mode (trained by
    `scripts/train_robust_digits.py`; its accuracies are in the metadata of the weights).

    >>> whence.explain_attack(robust_digits(), *digit_samples(), whence.attacks.PGD(0.2))
    """
    return _trained("digits_robust.safetensors")


def digit_expert() -> GaussianRBM:
    """Return a Gaussian RBM prior for digits, fitted to MNIST's training set (`scripts/train_digit_experts.py`).

    >>> whence.prototype(digits(), range(10), prior=digit_expert(), strength=0.3)
    """
    with _bundled_path("digits_expert.safetensors") as path:
        return GaussianRBM.load(path)


def digit_decoder() -> VAE:
    """Return a decoder from codes to digits, `[N, 16]` to `[N, 1, 28, 28]` in [0, 1] (`scripts/train_digit_experts.py`).

    >>> whence.prototype(digits(), range(10), prior=whence.priors.CodeSpace(digit_decoder(), strength=0.1))
    """
    with _bundled_path("digits_decoder.safetensors") as path:
        return VAE.load(path)


def digit_samples() -> tuple[Tensor, Tensor]:
    """Return MNIST test digits, five of each class, in order 0, 1, …, 9, …: images `[50, 1, 28, 28]` in [0, 1], labels `[50]`.

    MNIST by Yann LeCun and Corinna Cortes, CC BY-SA 3.0.
    """
    samples = load(_bundled("digit_samples.safetensors"))
    return samples["images"].float().div(255), samples["labels"].long()


def _trained(weights: str) -> nn.Sequential:
    model = digit_network()
    model.load_state_dict(load(_bundled(weights)))
    return model.eval()


def _bundled(name: str) -> bytes:
    return _weights(name).read_bytes()


def _bundled_path(name: str) -> AbstractContextManager[Path]:
    return resources.as_file(_weights(name))


def _weights(name: str) -> Traversable:
    return resources.files("whence.models").joinpath("weights", name)
