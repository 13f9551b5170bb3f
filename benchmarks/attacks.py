"""PGD and DeepFool on the bundled digit networks beside foolbox, in one process.

    python benchmarks/attacks.py ../shared/data   # prints the table and writes benchmarks/results/attacks.md

Equal settings: PGD of 40 steps without random start, DeepFool of at most 50 steps and 10 candidates. Best of several rounds,
both in turn within a round. PGD does the same passes in both; foolbox's backward computes gradients of the weights as well.
"""

import sys
from pathlib import Path

import foolbox
import numpy as np
import torch
from torch import Tensor, nn

import peers
import whence
from whence.models.digits import digits, robust_digits
from whence.robustness.attacked_batch import predicted

ROUNDS, SAMPLES, FOR_DEEPFOOL = 3, 200, 50


def rows_of(name: str, model: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> list[str]:
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    pgd, size = foolbox.attacks.LinfPGD(steps=40, abs_stepsize=epsilon / 16, random_start=False), epsilon / 16
    fool, few = foolbox.attacks.L2DeepFoolAttack(), slice(0, FOR_DEEPFOOL)
    comparisons = {
        f"PGD-40, ε = {epsilon}": {
            "whence": lambda: whence.attacks.PGD(epsilon, 40, size, random_start=False)(model, x, y),
            "whence, stop_early": lambda: whence.attacks.PGD(epsilon, 40, size, random_start=False, stop_early=True)(
                model, x, y
            ),
            "foolbox": lambda: pgd(theirs, x, y, epsilons=epsilon)[1],
        },
        "DeepFool": {
            "whence": lambda: whence.attacks.DeepFool()(model, x[few], y[few]),
            "foolbox": lambda: fool(theirs, x[few], y[few], epsilons=None)[1],
        },
    }
    rows = []
    for attack, ways in comparisons.items():
        times = peers.seconds(ways, ROUNDS)
        for way, time in times.items():
            twins = ways[way]()
            right = (predicted(model, twins) == y[: len(twins)]).double().mean().item()
            far = (twins - x[: len(twins)]).flatten(1).norm(dim=1).median().item()
            rows.append(f"| {name} | {attack} | {way} | {time:.2f} | {times['foolbox'] / time:.2f} | {right:.1%} | {far:.3f} |")
    return rows


def main(data: Path) -> None:
    test = np.load(data / "mnist_test.npz")
    x = torch.as_tensor(test["images"][:SAMPLES, None] / 255.0).float()
    y = torch.as_tensor(test["labels"][:SAMPLES]).long()
    rows = rows_of("standard", digits(), x, y, 0.1) + rows_of("robust", robust_digits(), x, y, 0.25)
    peers.write(
        "attacks",
        f"# Attacks\n\n{peers.versions('foolbox')}; bundled digit networks, {SAMPLES} test digits "
        f"({FOR_DEEPFOOL} for DeepFool).\n",
        [
            "| network | attack | way | seconds | speed, foolbox = 1 | accuracy left, at most | median ℓ2 distance |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"))
