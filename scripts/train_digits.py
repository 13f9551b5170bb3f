"""Train the bundled digit network and pick the digits that travel with the package.

    python scripts/train_digits.py ../shared/data        # mnist_train.npz, mnist_test.npz
    python scripts/train_digits.py ~/data/MNIST/raw      # the folder torchvision's MNIST leaves

Seed 0, 12 epochs, about five minutes on two cores.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from whence.models.digits import digit_network

WEIGHTS = Path(__file__).parents[1] / "src/whence/models/weights"
EPOCHS, BATCH, SEED = 12, 128, 0


def read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def read_mnist(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    if (npz := folder / f"mnist_{split}.npz").exists():
        data = np.load(npz)
        images, labels = data["images"], data["labels"]
    else:
        prefix = {"train": "train", "test": "t10k"}[split]
        images, labels = (read_idx(next(folder.rglob(f"{prefix}-{kind}-ubyte*"))) for kind in ("images-idx3", "labels-idx1"))
    return torch.tensor(images[:, None]), torch.tensor(labels.astype(np.int64))


def shifted(images: Tensor) -> Tensor:
    """Each batch moved by up to two pixels, the only augmentation."""
    dy, dx = torch.randint(-2, 3, (2,)).tolist()
    return torch.roll(images, (dy, dx), dims=(2, 3))


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    predictions = torch.cat([model(batch.float() / 255).argmax(1) for batch in images.split(1000)])
    return (predictions == labels).double().mean().item()


def train(images: Tensor, labels: Tensor) -> torch.nn.Module:
    torch.manual_seed(SEED)
    model = digit_network()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(model(shifted(images[batch].float() / 255)), labels[batch], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: last loss {loss.item():.3f}", flush=True)
    return model.eval()


def pick(labels: Tensor, per_class: int = 5) -> Tensor:
    """The first `per_class` test digits of each class, class by class in turn."""
    found = torch.stack([torch.nonzero(labels == digit)[:per_class, 0] for digit in range(10)])
    return found.T.reshape(-1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    model = train(*read_mnist(folder, "train"))
    test_images, test_labels = read_mnist(folder, "test")
    measured = accuracy(model, test_images, test_labels)
    print(f"test accuracy {measured:.4f}")
    chosen = pick(test_labels)
    save_file(model.state_dict(), WEIGHTS / "digits.safetensors", {"test_accuracy": f"{measured:.4f}", "seed": str(SEED)})
    save_file(
        {"images": test_images[chosen].contiguous(), "labels": test_labels[chosen].to(torch.uint8)},
        WEIGHTS / "digit_samples.safetensors",
        {"source": "MNIST test set, Yann LeCun and Corinna Cortes, CC BY-SA 3.0"},
    )
