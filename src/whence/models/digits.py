"""The bundled digit network: small, bias-free, so that its output is exactly the sum of its relevance."""

from importlib import resources

from safetensors.torch import load
from torch import Tensor, nn


def digit_network() -> nn.Sequential:
    """A ReLU network for MNIST digits, `[N, 1, 28, 28]` in [0, 1] to `[N, 10]` logits, untrained.

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
    """The trained digit network in eval mode (`scripts/train_digits.py` made it and states its accuracy).

    >>> digits()(digit_samples()[0]).shape
    torch.Size([50, 10])
    """
    model = digit_network()
    model.load_state_dict(load(_bundled("digits.safetensors")))
    return model.eval()


def digit_samples() -> tuple[Tensor, Tensor]:
    """Real MNIST test digits, five of each class in order 0, 1, …, 9, 0, …: images `[50, 1, 28, 28]` in [0, 1], labels `[50]`.

    MNIST by Yann LeCun and Corinna Cortes, CC BY-SA 3.0.
    """
    samples = load(_bundled("digit_samples.safetensors"))
    return samples["images"].float().div(255), samples["labels"].long()


def _bundled(name: str) -> bytes:
    return resources.files("whence.models").joinpath("weights", name).read_bytes()
