"""What several targets of one input cost by one forward pass, together and one after the other.

python benchmarks/many_targets.py ../shared/data   # prints the table and writes benchmarks/results/many_targets.md

CPU seconds of the process on one thread, as ratios to as many plain gradients × input (parameters frozen).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import peers
import whence
from default_speed import cpu_seconds
from overhead import gradient_of_picture, gradient_of_text, picture_networks
from support.story_model import story_model
from whence.methods import backward_passes

PICTURES = {"resnet50": 32, "shufflenet_v2_x1_0": 64, "resnet18": 224, "vit_b_16": 224}
HEAD = ["| explanations | gradient, ms | one after the other | together |", "|---|---|---|---|"]


def row(name: str, model: nn.Module, x: Any, targets: list, gradient: Callable, through: list | None = None) -> str:
    explainer = whence.Explainer(model)
    gradient()
    one, count = cpu_seconds(gradient), len(targets) * len(through or [0])
    limit, ratios = backward_passes.CHUNK_VALUES, []
    for values in (0, limit):
        backward_passes.CHUNK_VALUES = values
        ratios.append(cpu_seconds(lambda: explainer.targets(x, targets, through=through)) / one / count)
    print(line := f"| {name} | {one * 1e3:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)
    return line


def main(data: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, ids = story_model(data), torch.randint(3, 500, (1, 64))
    tokens = [whence.Logit(int(ids[0, t]), position=t) for t in range(64)]
    rows = [row("64 tokens, Llama of stories", model, ids, tokens, lambda: gradient_of_text(model, ids))]
    for name, model, x in picture_networks(PICTURES):

        def gradient(model: nn.Module = model, x: torch.Tensor = x) -> object:
            return gradient_of_picture(model, x)

        rows.append(row(f"10 classes, {name}", model, x, list(range(10)), gradient))
        if name.startswith("resnet18"):
            channels = [{"layer3": c} for c in range(32)]
            rows.append(row(f"32 channels of layer3, {name}", model, x, [3], gradient, channels))
    title = f"# Several targets of one input\n\n{peers.versions('transformers', 'torchvision')}; 1 thread.\n"
    peers.write("many_targets", title, [*HEAD, *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
