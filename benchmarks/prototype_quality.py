"""Prototypes of digits by ℓ2, expert and decoder: what a picture shows, in numbers (exercise J).

    python benchmarks/prototype_quality.py ../shared/data     # writes results/prototype_quality.md, two pictures to docs/images

The bundled digit network is explained, ten classes by ten seeds. Beside real test digits and the class means:
nearest-neighbour correlation with digits of the same class, the mean probability that three other networks give the class,
the Fréchet distance to real digits in features of one of them, the share of mid-grey pixels, the network's own logit, and how
many of ten their nearest real digits read right.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import peers
import whence
from whence.models.digits import digit_decoder, digit_expert, digits
from whence.prototypes.prototypes import compare_priors

SEEDS, STEPS = 10, 300
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
IMAGES = Path(__file__).parents[1] / "docs/images"


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    data = np.load(folder / f"mnist_{split}.npz")
    return torch.tensor(data["images"][:, None]).float() / 255, torch.tensor(data["labels"].astype(np.int64))


def other_networks() -> dict[str, nn.Sequential]:
    torch.manual_seed(1)
    return {
        "mlp": nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10)),
        "cnn": nn.Sequential(
            nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        ),
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
    }  # fmt: skip


def train(model: nn.Sequential, images: Tensor, labels: Tensor) -> nn.Sequential:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(2):
        for batch in torch.randperm(len(images)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def centred(t: Tensor) -> Tensor:
    flat = t.flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


class Measures:
    def __init__(self, folder: Path):
        images, labels = read(folder, "train")
        self.real, self.real_labels = read(folder, "test")
        self.networks = {name: train(model, images, labels) for name, model in other_networks().items()}
        self.means = torch.stack([images[labels == c].mean(0) for c in range(10)])
        self.codes = torch.stack([digit_decoder().encode(images[labels == c]).mean(0) for c in range(10)]).detach()
        self.features = self.networks["cnn"][:-1]
        self.reference = self._moments(self.real)

    @torch.no_grad()
    def row(self, x: Tensor, classes: Tensor) -> list[float]:
        transfer = torch.stack([model(x).softmax(1)[torch.arange(len(x)), classes] for model in self.networks.values()])
        own = digits()(x)[torch.arange(len(x)), classes]
        mid_grey = ((x > 0.15) & (x < 0.85)).float().mean()
        figures = [self._nearest(x, classes), transfer.mean(), self._frechet(x), mid_grey, own.mean(), self._read(x, classes)]
        return [float(figure) for figure in figures]

    def _read(self, x: Tensor, classes: Tensor) -> Tensor:
        """How many of ten the nearest real digit, of any class, is of the right one."""
        likeness = centred(x) @ centred(self.real).T
        likeness[likeness > 0.9999] = -1  # a real digit is its own nearest neighbour
        return 10 * (self.real_labels[likeness.argmax(1)] == classes).float().mean()

    def _nearest(self, x: Tensor, classes: Tensor) -> Tensor:
        best = [centred(x[classes == c]) @ centred(self.real[self.real_labels == c]).T for c in range(10)]
        # a real digit is its own nearest neighbour: the second counts
        return torch.cat([(b - 2 * (b > 0.9999).float()).amax(1) for b in best]).mean()

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x).double()
        return features.mean(0), torch.cov(features.T)

    def _frechet(self, x: Tensor) -> Tensor:
        (m1, c1), (m2, c2) = self._moments(x), self.reference
        values = torch.linalg.eigvals(c1 @ c2).real.clamp(min=0)
        return (m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * values.sqrt().sum()


def prototypes(prior: object, strength: float = 1.0, of: Callable[[int], object] = int) -> whence.results.Prototypes:
    """Ten classes, ten seeds of each."""
    concepts = [of(c) for c in range(10)] * SEEDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return whence.prototype(digits(), concepts, prior=prior, strength=strength, shape=(1, 28, 28), n_steps=STEPS)  # type: ignore[arg-type]


def main(folder: Path) -> None:
    torch.manual_seed(0)
    measures = Measures(folder)
    classes, log_p = torch.arange(10).repeat(SEEDS), whence.objectives.LogProbability
    decoder, expert, codes = digit_decoder(), digit_expert(), measures.codes.repeat(SEEDS, 1)
    ways = {
        "no prior, 300 steps": lambda: prototypes(None),
        "ℓ2, λ = 0.03": lambda: prototypes(whence.priors.L2(0.03)),
        "ℓ2, λ = 0.3": lambda: prototypes(whence.priors.L2(0.3)),
        "ℓ2, λ = 3": lambda: prototypes(whence.priors.L2(3.0)),
        "ℓ2, λ = 0.03, log p": lambda: prototypes(whence.priors.L2(0.03), of=log_p),
        "expert, strength 0.3": lambda: prototypes(expert, 0.3),
        "expert, strength 0.1, log p": lambda: prototypes(expert, 0.1, log_p),
        "decoder, λ = 0.1": lambda: prototypes(whence.priors.CodeSpace(decoder, 0.1)),
        "decoder, λ = 0.3": lambda: prototypes(whence.priors.CodeSpace(decoder, 0.3)),
        "decoder, λ = ½, log p": lambda: prototypes(whence.priors.CodeSpace(decoder, 0.5), of=log_p),
        "decoder, λ = 0.3 to the class code": lambda: prototypes(whence.priors.CodeSpace(decoder, 0.3, codes)),
    }
    found = {name: way() for name, way in ways.items()}
    rows = {name: measures.row(p.images, classes) for name, p in found.items()}
    real = torch.cat([measures.real[measures.real_labels == c][:SEEDS] for c in range(10)])
    rows["*real test digits*"] = measures.row(real, torch.arange(10).repeat_interleave(SEEDS))
    rows["*class means*"] = measures.row(measures.means.repeat(SEEDS, 1, 1, 1), classes)
    head = "| prior | nearest neighbour | transfer p | Fréchet | mid-grey | own logit | recognised, of 10 |"
    table = [head, "|---|---|---|---|---|---|---|"]
    table += [
        f"| {name} | {n:.2f} | {t:.2f} | {f:.0f} | {g:.2f} | {o:.1f} | {r:.1f} |" for name, (n, t, f, g, o, r) in rows.items()
    ]
    trade = {s: prototypes(expert, s) for s in STRENGTHS}
    figures = {s: measures.row(p.images, classes) for s, p in trade.items()}
    second = [
        "| strength of the expert | nearest neighbour | transfer p | Fréchet | mid-grey | own logit | recognised, of 10 |",
        "|---|---|---|---|---|---|---|",
    ]
    second += [
        f"| {s:g} | {n:.2f} | {t:.2f} | {f:.0f} | {g:.2f} | {o:.1f} | {r:.1f} |" for s, (n, t, f, g, o, r) in figures.items()
    ]
    peers.write(
        "prototype_quality", f"# Prototypes of digits\n\n{peers.versions()}; {SEEDS} seeds of each class.\n", table, second
    )
    shown = {"ℓ2, λ = 0.3": "ℓ2", "expert, strength 0.3": "expert", "decoder, λ = 0.1": "decoder"}
    compare_priors({label: _bounded(found[name][:10]) for name, label in shown.items()}).savefig(IMAGES / "ten_digits.png")
    compare_priors({f"{s:g}": _bounded(p[:10]) for s, p in trade.items()}).savefig(IMAGES / "expert_strengths.png")


def _bounded(p: whence.results.Prototypes) -> whence.results.Prototypes:
    return replace(p, bounds=(0.0, 1.0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
