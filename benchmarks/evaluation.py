"""Region flipping beside Quantus, in one process: the digit network, 32 images, two methods.

    python benchmarks/evaluation.py   # prints the table and writes benchmarks/results/evaluation.md

Quantus gives the curve of the most relevant first, whence that and the curve of the least relevant first.
"""

import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import peers
import whence
from whence.models.digits import digit_samples, digits

STEPS, ROUNDS = 28, 3
METHODS = ("lrp", "gradient_times_input")


class Counting(nn.Module):
    """Counts the samples it is asked for."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.samples = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        return self.model(x)


def main() -> None:
    warnings.simplefilter("ignore")
    peers.declare_torchvision_operators()
    import quantus

    model = Counting(digits()).eval()
    x, y = (part[:32] for part in digit_samples())
    heatmaps = {name: whence.explain(model, x, y, method=name).relevance for name in METHODS}
    given: dict[str, Any] = {name: (lambda model, x, target, r=r: r) for name, r in heatmaps.items()}
    flipping = whence.metrics.RegionFlipping(whence.metrics.Removal(regions="pixels", imputer=0.0), STEPS)

    def by_quantus(pixels_a_step: int) -> None:
        metric = quantus.PixelFlipping(features_in_step=pixels_a_step, perturb_baseline="black", disable_warnings=True)
        for r in heatmaps.values():
            metric(model=model, x_batch=x.numpy(), y_batch=y.numpy(), a_batch=r.numpy(), device="cpu", batch_size=64)

    def by_whence(metric: Any) -> None:
        whence.evaluate(model, (x, y), given, [metric], target="label", progress=False)

    ways = {
        f"Quantus, {STEPS} steps, one order": lambda: by_quantus(784 // STEPS),
        f"whence, {STEPS} steps, both orders": lambda: by_whence(whence.metrics.SRG(flipping)),
        "Quantus as it comes (a pixel a step), one order": lambda: by_quantus(1),
        "whence as it comes, both orders": lambda: by_whence("srg"),
    }
    rows = []
    times = peers.seconds(ways, ROUNDS)
    for name, way in ways.items():
        model.samples = 0
        way()
        rows.append(f"| {name} | {times[name]:.2f} | {model.samples / len(x) / len(METHODS):.0f} |")
    start = time.perf_counter()
    tuned = whence.tune(digits(), digit_samples(), bounds=(0.0, 1.0), progress=False)
    seconds = time.perf_counter() - start
    heading = (
        f"# Evaluation\n\n{peers.versions('quantus')}; 32 digits, {len(METHODS)} methods.\n\nThe network computes one digit in "
        f"{_of_one(model, x):.2f} ms at best; at equal steps, Quantus and whence mostly wait for it.\n"
    )
    peers.write(
        "evaluation",
        heading,
        ["| way | seconds | images computed by the network for each | ", "|---|---|---|", *rows],
        [f"`whence.tune` of {len(tuned.table)} rule sets on the 50 bundled digits: {seconds:.1f} s."],
    )


@torch.no_grad()
def _of_one(model: nn.Module, x: Tensor) -> float:
    many = torch.cat([x] * 40)
    best = min(_seconds(model, part) for part in (many.split(64),) * 3)
    return best / len(many) * 1000


def _seconds(model: nn.Module, parts: Any) -> float:
    start = time.perf_counter()
    for part in parts:
        model(part)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
