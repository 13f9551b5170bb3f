"""Occlusion of SqueezeNet at 224² beside captum's at its best `perturbations_per_eval`, in one process.

    python benchmarks/perturbation.py   # prints the table and writes benchmarks/results/perturbation.md

Windows of 3×32×32 by strides of 16, one picture, random weights; best of several rounds, all ways in turn within a round.
"""

import torch
from torch import nn

import peers
import whence

ROUNDS = 3
WINDOW, STRIDES = (3, 32, 32), (3, 16, 16)
AT_ONCE = (1, 4, 8, 16, 32, 64, 169)


def network() -> nn.Module:
    peers.declare_torchvision_operators()
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.squeezenet1_0(weights=None).eval().requires_grad_(False)


def main() -> None:
    from captum.attr import Occlusion

    model, x = network(), torch.randn(1, 3, 224, 224)

    def by_captum(at_once: int) -> torch.Tensor:
        return Occlusion(model).attribute(x, WINDOW, STRIDES, target=3, perturbations_per_eval=at_once)

    def by_whence() -> torch.Tensor:
        return whence.explain(model, x, 3, method=whence.Occlusion(WINDOW, STRIDES)).relevance

    torch.testing.assert_close(by_whence(), by_captum(16), rtol=1e-3, atol=1e-6)
    ways = {"whence, batch size chosen by itself": by_whence}
    ways |= {f"captum, perturbations_per_eval={n}": (lambda n=n: by_captum(n)) for n in AT_ONCE}
    times = peers.seconds(ways, ROUNDS)
    best = min(seconds for name, seconds in times.items() if name.startswith("captum"))
    rows = [f"| {name} | {best / seconds:.2f} | {seconds:.2f} |" for name, seconds in times.items()]
    peers.write(
        "perturbation",
        f"# Occlusion\n\n{peers.versions('torchvision', 'captum')}; SqueezeNet 1.0, one picture at 224², 169 windows.\n",
        ["| way | speed, captum at its best = 1 | seconds |", "|---|---|---|", *rows],
    )


if __name__ == "__main__":
    main()
