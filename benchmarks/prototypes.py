"""Time a step of feature visualisation on ResNet-18 at 128², beside lucent, and of 16 targets at once beside 16 runs.

    python benchmarks/prototypes.py     # prints the table and writes benchmarks/results/prototypes.md

lucent itself (0.1.8) cannot be installed beside this torch (kornia ≤ 0.4.1). Its way is run again from its published settings:
an image of Fourier coefficients, small random changes, a full forward pass with hooks on every module, a backward pass that
gives weights their gradients as well, Adam at 0.05. Image and changes are ours in both, so that only the way differs. lucent
enlarges pictures below 224² to that size unless told not to: both are timed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import peers
import whence

STEPS, ROUNDS, SIDE = 100, 2, 128
SHAPE = (3, SIDE, SIDE)


def network() -> nn.Module:
    peers.declare_torchvision_operators()
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


def as_lucent(model: nn.Module, layer: str, channel: int, enlarge: bool = False) -> Tensor:
    image, jiggle = whence.images.Fourier(), whence.images.Jiggle()
    random = [torch.Generator().manual_seed(0)]
    parameters = [p.requires_grad_() for p in image.start(SHAPE, random)]
    optimizer = torch.optim.Adam(parameters, 0.05)
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: seen.__setitem__(name, out))
        for name, module in model.named_modules()
        if name
    ]
    try:
        for _ in range(STEPS):
            optimizer.zero_grad()
            x = jiggle(image.render(parameters, SHAPE), random)
            model(F.interpolate(x, (224, 224), mode="bilinear", align_corners=True) if enlarge else x)
            (-seen[layer][:, channel].mean()).backward()
            optimizer.step()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return image.render(parameters, SHAPE)


def by_whence(model: nn.Module, target: object, steps: int = STEPS) -> Tensor:
    return whence.prototype(model, target, shape=SHAPE, n_steps=steps, progress=False).images


def main() -> None:
    model = network()
    rows = []
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        ways = {
            "as published": lambda layer=layer: as_lucent(model, layer, 3, enlarge=True),
            "at 128²": lambda layer=layer: as_lucent(model, layer, 3),
            "whence": lambda layer=layer: by_whence(model, f"{layer}:3"),
        }
        published, plain, ours = (1000 * seconds / STEPS for seconds in peers.seconds(ways, ROUNDS).values())
        rows.append(f"| {layer} | {published:.0f} | {plain:.0f} | {ours:.0f} | {published / ours:.2f} | {plain / ours:.2f} |")
    second = []
    for layer in ("layer1", "layer4"):
        many = {
            "16 runs": lambda layer=layer: [by_whence(model, f"{layer}:{k}", 64) for k in range(16)],
            "at once": lambda layer=layer: by_whence(model, f"{layer}:0-15", 64),
        }
        runs, at_once = peers.seconds(many, 2).values()
        second.append(f"| {layer} | {runs:.2f} | {at_once:.2f} | {runs / at_once:.2f} |")
    peers.write(
        "prototypes",
        f"# Prototypes\n\n{peers.versions('torchvision')}; ResNet-18 at {SIDE}², random weights, a channel.\n",
        [
            "| layer | lucent's procedure, enlarged to 224², ms a step | at 128² | whence at 128² | ratio | ratio at 128² |",
            "|---|---|---|---|---|---|",
            *rows,
        ],
        ["| 16 channels of, 64 steps | 16 runs, seconds | at once, seconds | ratio |", "|---|---|---|---|", *second],
    )


if __name__ == "__main__":
    main()
