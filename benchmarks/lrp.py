"""LRP on VGG-16 and ResNet-50 at 224², batch 4, beside the plain gradient × input and zennit, in one process.

    python benchmarks/lrp.py            # prints the table and writes benchmarks/results/lrp.md

Ratios to the plain gradient × input (parameters frozen, its cheapest form). zennit runs the same composites with its own
canonizers. Best of several rounds, all ways in turn within a round; peak memory is the allocator's, above model and input.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import peers
import whence
from whence import LRP, Epsilon, presets

ROUNDS = 4
BATCH, SIDE = 4, 224
LOW, HIGH = -2.2, 2.7
TARGET = torch.tensor([1, 2, 3, 4])


def network(name: str) -> nn.Module:
    peers.declare_torchvision_operators()
    import torchvision

    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None).eval().requires_grad_(False)


def gradient_times_input(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    output = model(x)
    (g,) = torch.autograd.grad(output[torch.arange(BATCH), TARGET].sum(), x)
    return x.detach() * g


def by_whence(model: nn.Module, x: Tensor, rules: object) -> Tensor:
    return whence.explain(model, x, TARGET, method=LRP(rules)).relevance  # type: ignore[arg-type]


def by_zennit(model: nn.Module, x: Tensor, composite: str, *bounds: float) -> Tensor:
    from zennit import composites
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer

    canonizer = VGGCanonizer if type(model).__name__ == "VGG" else ResNetCanonizer
    box = {name: torch.full((1, 3, 1, 1), bound) for name, bound in zip(("low", "high"), bounds, strict=False)}
    x = x.clone().requires_grad_()
    with getattr(composites, composite)(canonizers=[canonizer()], **box).context(model) as hooked:
        output = hooked(x)
        (relevance,) = torch.autograd.grad(output, x, torch.eye(output.shape[1])[TARGET] * output.detach())
    return relevance


def ways(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    linear = (nn.Conv2d, nn.Linear)
    return {
        "gradient × input": lambda: gradient_times_input(model, x),
        "whence Epsilon": lambda: by_whence(model, x, {linear: Epsilon()}),
        "whence epsilon_plus": lambda: by_whence(model, x, presets.epsilon_plus()),
        "whence epsilon_gamma": lambda: by_whence(model, x, presets.epsilon_gamma()),
        "whence epsilon_gamma_box": lambda: by_whence(model, x, presets.epsilon_gamma_box(LOW, HIGH)),
        "zennit EpsilonPlus": lambda: by_zennit(model, x, "EpsilonPlus"),
        "zennit EpsilonGammaBox": lambda: by_zennit(model, x, "EpsilonGammaBox", LOW, HIGH),
    }


def measure(name: str) -> list[str]:
    model, x = network(name), torch.randn(BATCH, 3, SIDE, SIDE)
    return peers.compared(name, ways(model, x), ROUNDS)


def main() -> None:
    rows = [row for name in ("vgg16", "resnet50") for row in measure(name)]
    text = (
        "\n".join([f"# LRP\n\n{peers.versions('torchvision', 'zennit')}; batch {BATCH} at {SIDE}².\n", *peers.HEAD, *rows])
        + "\n"
    )
    print(text)
    peers.RESULTS.mkdir(exist_ok=True)
    (peers.RESULTS / "lrp.md").write_text(text)


if __name__ == "__main__":
    main()
