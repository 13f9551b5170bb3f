"""What an explanation costs replayed, exported and compiled, beside the eager one and the plain gradient.

python benchmarks/export.py ../shared/data   # prints the table and writes benchmarks/results/export.md
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import peers

peers.declare_torchvision_operators()
sys.path.remove(str(Path(__file__).parent))  # it has a transformers.py of its own

import torchvision  # noqa: E402
import transformers  # noqa: E402

import whence  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.story_model import story_model  # noqa: E402

ROUNDS = 5
GAMMA = whence.LRP({nn.Conv2d: whence.Gamma(0.25)})
BOX = whence.LRP({"features.0": whence.ZBox(-3.0, 3.0), nn.Conv2d: whence.Gamma(0.25)})


class Logits(nn.Module):
    """Of a language model, from ids alone, or from vectors."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits if not x.is_floating_point() else self.model(inputs_embeds=x).logits


def llama(layers: int, width: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return Logits(transformers.LlamaForCausalLM(config))


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """The plain gradient of the same output at the same place: the picture, or the vectors of the ids."""
    given = x if x.is_floating_point() else model.model.get_input_embeddings()(x).detach()

    def run() -> object:
        with torch.enable_grad():
            leaf = given.clone().requires_grad_()
            out = model(leaf)
            out = out[:, -1] if out.dim() == 3 else out
            return torch.autograd.grad(out.gather(1, y[:, None]).sum(), leaf)

    return run


def measured(name: str, model: nn.Module, method: whence.LRP, x: Tensor, folder: Path) -> str:
    model = model.eval().requires_grad_(False)
    y = torch.full((len(x),), 3)
    eager, replayed = (whence.Explainer(model, method, capture=capture) for capture in (False, True))
    start = time.perf_counter()
    replayed(x, y)
    written = time.perf_counter() - start
    file = folder / "explainer.pt2"
    start = time.perf_counter()
    program = whence.export(model, x, method=method, out=file, compiled=True)
    made = time.perf_counter() - start
    exported, compiled = program.module(), torch._inductor.aoti_load_package(str(file))
    with torch.no_grad():
        cost = peers.seconds({
            "gradient": gradient(model, x, y), "eager": lambda: eager(x, y), "replayed": lambda: replayed(x, y),
            "exported": lambda: exported(x, y), "compiled": lambda: compiled(x, y),
        }, ROUNDS + 1)  # fmt: skip  # the first for warming up
        r = eager(x, y).relevance
        off = [float((found["relevance"] - r).abs().max() / r.abs().max()) for found in (exported(x, y), compiled(x, y))]
    base = cost.pop("gradient")
    ratios = " | ".join(f"{seconds / base:.2f}" for seconds in cost.values())
    row = f"| {name} | {base * 1e3:.1f} | {ratios} | {off[0]:.0e} / {off[1]:.0e} | {written:.0f} / {made:.0f} |"
    print(row, flush=True)
    return row


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    data = Path(sys.argv[1])
    picture, text = torch.rand(1, 3, 224, 224), torch.randint(3, 500, (1, 64))
    vit = torchvision.models.vit_b_16()
    nn.init.normal_(vit.heads.head.weight, std=0.02)
    cases = [
        ("Llama of stories (5 layers, 64 wide)", Logits(story_model(data)), whence.LRP(), text),
        ("Llama, 32 layers, 64 wide", llama(32, 64), whence.LRP(), text),
        ("Llama, 8 layers, 512 wide", llama(8, 512), whence.LRP(), text),
        ("ResNet-50, γ", torchvision.models.resnet50(), GAMMA, picture),
        ("VGG-16, z^B and γ", torchvision.models.vgg16(), BOX, picture),
        ("ViT-B/16", vit, whence.LRP(), picture),
    ]
    columns = [
        "network, one sample",
        "gradient, ms",
        "eager",
        "replayed",
        "exported",
        "compiled",
        "off by",
        "s to write / compile",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        lines += [measured(*case, Path(folder)) for case in cases]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    head = (
        "# Explainers replayed, exported and compiled\n\n"
        f"`python benchmarks/export.py ../shared/data`, {versions}; best of {ROUNDS} rounds, in turns, as multiples of\n"
        "the plain gradient of the same output with frozen weights. Eager: `Explainer(model)`; replayed: `Explainer(model,\n"
        "capture=True)`; exported: `whence.export(…).module()`; compiled: the package of AOT Inductor. Off by: the largest\n"
        "difference of relevance from eager, of the largest relevance, exported / compiled. The large networks are untrained:\n"
        "single pixels of the CNNs hinge on values near 0, where eager float32 is itself off from float64 by up to 9e-4.\n\n"
    )
    (Path(__file__).parent / "results" / "export.md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
