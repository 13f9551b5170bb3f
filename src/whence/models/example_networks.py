"""The bundled example networks for photos, texts, tables and series, and their example inputs (`scripts/train_examples.py`)."""

from importlib import resources
from importlib.resources.abc import Traversable

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor, nn

SURFACES = ("brick", "grass", "gravel")
OPINIONS = ("negative", "positive")
GROWERS = ("grower 1", "grower 2", "grower 3")
HEARTBEATS = ("regular", "early beat")
LEADS = ("lead I", "lead II")
STEPS_PER_SECOND, SERIES_LENGTH = 100, 300


def surface_network() -> nn.Sequential:
    """Return an untrained network for grey photos of surfaces, `[N, 1, 128, 128]` to `[N, 3]` logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, len(SURFACES), bias=False),
    )


class ReviewNetwork(nn.Module):
    """A text classifier: word embeddings, a convolution over three words, the mean over the text.

    >>> ReviewNetwork(200)(torch.tensor([[4, 8, 15]])).shape
    torch.Size([1, 2])
    """

    def __init__(self, words: int, width: int = 24):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.convolution = nn.Conv1d(width, 32, 3, padding=1, bias=False)
        self.head = nn.Linear(32, len(OPINIONS), bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.convolution(self.embedding(input_ids).transpose(1, 2)).relu()
        return self.head(x.mean(2))


class Standardization(nn.Module):
    """The standardisation of columns, (x − mean) / std.

    >>> Standardization(13)(rows)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, columns: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def wine_network(columns: int = 13) -> nn.Sequential:
    """Return an untrained network for measurements of wines, `[N, 13]` to `[N, 3]` logits."""
    return nn.Sequential(Standardization(columns), nn.Linear(columns, 16), nn.ReLU(), nn.Linear(16, len(GROWERS)))


def heartbeat_network() -> nn.Sequential:
    """Return an untrained network for electrocardiograms of two leads, `[N, 2, 300]` to `[N, 2]` logits."""
    return nn.Sequential(
        nn.Conv1d(len(LEADS), 16, 9, padding=4, bias=False),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 9, padding=4, bias=False),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(32, len(HEARTBEATS), bias=False),
    )


def surfaces() -> nn.Module:
    """Return the trained network that tells brick, grass and gravel apart, in eval mode."""
    return _trained(surface_network(), "surfaces")


def reviews() -> nn.Module:
    """Return the trained network that tells negative and positive restaurant reviews apart, in eval mode."""
    return _trained(ReviewNetwork(len(review_vocabulary())), "reviews")


def wine() -> nn.Module:
    """Return the trained network that tells the growers of wines apart, in eval mode."""
    return _trained(wine_network(len(wine_columns())), "wine")


def heartbeats() -> nn.Module:
    """Return the trained network that finds early beats in electrocardiograms, in eval mode."""
    return _trained(heartbeat_network(), "heartbeats")


def surface_photos() -> Tensor:
    """Return grey photos in [0, 1], `[3, 1, 128, 128]`, each half of one surface and half of another.

    Photos of scikit-image, CC0.
    """
    return load(_bundled("surfaces"))["example_inputs"].float() / 255


def review_texts() -> list[str]:
    """Return made-up reviews."""
    return _metadata("reviews", "examples")


def review_vocabulary() -> list[str]:
    """Return the words that the network of reviews knows."""
    return _metadata("reviews", "vocabulary")


def wine_rows() -> Tensor:
    """Return measurements of 45 wines, `[45, 13]`: 15 of each grower.

    Wine data of the UCI repository by Aeberhard and Forina, CC BY 4.0.
    """
    return load(_bundled("wine"))["example_inputs"]


def wine_columns() -> list[str]:
    """Return the names of the measurements of wines, with their units where they are known."""
    return _metadata("wine", "columns")


def heartbeat_series() -> Tensor:
    """Return made-up electrocardiograms, `[2, 2, 300]`, 100 steps a second: one with an early beat, one without."""
    return load(_bundled("heartbeats"))["example_inputs"]


def _trained(model: nn.Module, name: str) -> nn.Module:
    tensors = load(_bundled(name))
    model.load_state_dict({key: value for key, value in tensors.items() if key != "example_inputs"})
    return model.eval()


def _metadata(name: str, key: str) -> list[str]:
    with resources.as_file(_resource(name)) as path, safe_open(path, "pt") as file:
        return file.metadata()[key].split("\n")


def _bundled(name: str) -> bytes:
    return _resource(name).read_bytes()


def _resource(name: str) -> Traversable:
    return resources.files("whence.models") / "weights" / f"{name}.safetensors"
