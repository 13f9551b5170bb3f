"""Train the expert and the decoder that travel with the package, on MNIST's training set.

    python scripts/train_digit_experts.py ../shared/data

Seed 0; about five minutes on two cores. Weights are stored in half precision, less than 1 MB each.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from train_digits import WEIGHTS, read_mnist
from whence.prototypes.autoencoders import VAE
from whence.prototypes.priors import GaussianRBM


def told(name: str):
    return lambda done, total: print(f"{name}: epoch {done} of {total}", flush=True)


def expert(images: Tensor) -> GaussianRBM:
    return GaussianRBM((1, 28, 28), hidden=400, variance=0.1).fit(images, epochs=40, lr=0.02, progress=told("expert"))


def decoder(images: Tensor) -> VAE:
    return VAE((1, 28, 28), code_size=16, hidden=300).fit(images, epochs=40, progress=told("decoder"))


def halve(path: Path) -> None:
    """In half precision."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        described = file.metadata()
    kept = {name: t.half() for name, t in load_file(path).items()}
    save_file(kept, path, described)
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


def main(folder: Path) -> None:
    images, _ = read_mnist(folder, "train")
    images = images.float() / 255
    halve(decoder(images).save(WEIGHTS / "digits_decoder.safetensors"))
    halve(expert(images).save(WEIGHTS / "digits_expert.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
