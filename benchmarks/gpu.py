"""On an accelerator: rules beside the plain gradient and zennit, channels, patching, and whether relevance is that of the CPU.

python benchmarks/gpu.py   # needs CUDA; prints the tables and writes benchmarks/results/gpu.md (or into $OUT)
"""

import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = str(Path(__file__).parent)
sys.path = [path for path in sys.path if path != HERE]  # it has a transformers.py of its own

import torchvision  # noqa: E402
import transformers  # noqa: E402
from zennit import composites  # noqa: E402
from zennit.torchvision import ResNetCanonizer, VGGCanonizer  # noqa: E402

import whence  # noqa: E402

ROUNDS, BATCH, CHANNELS = 5, 32, 32
LOW, HIGH = -2.2, 2.7
DEVICE = "cuda"
HEAD = ["| network | way | ms | gradient = 1 | peak memory, gradient = 1 |", "|---|---|---|---|---|"]
NUMBERS = torch.arange(BATCH, device=DEVICE)


def compared(name: str, ways: dict[str, Callable[[], object]]) -> list[str]:
    """Best of several rounds, all ways in turn; a row each, beside the first."""
    times, memory = dict.fromkeys(ways, float("inf")), {}
    for way in ways.values():
        way()
    for label, way in ways.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        torch.cuda.synchronize()
        memory[label] = torch.cuda.max_memory_allocated() - before
    for _ in range(ROUNDS):
        for label, way in ways.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            torch.cuda.synchronize()
            times[label] = min(times[label], time.perf_counter() - start)
    first = next(iter(ways))
    return [
        f"| {name} | {way} | {1000 * t:.1f} | {t / times[first]:.2f} | {_shared(memory, way, first)} |"
        for way, t in times.items()
    ]


def _shared(memory: dict[str, int], way: str, first: str) -> str:
    """A recorded run holds its memory from call to call, where no peak is seen."""
    return "kept" if "replayed" in way else f"{memory[way] / memory[first]:.2f}"


def gradient(model: nn.Module, x: Tensor, numbers: Tensor = NUMBERS) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x)[torch.arange(len(x)), numbers].sum(), x)
    return x.detach() * g


def by_zennit(model: nn.Module, x: Tensor, composite: str, canonizer: type | None, *bounds: float) -> Tensor:
    box = {name: torch.full((1, 3, 1, 1), b, device=DEVICE) for name, b in zip(("low", "high"), bounds, strict=False)}
    x = x.clone().requires_grad_()
    with getattr(composites, composite)(canonizers=[canonizer()] if canonizer else [], **box).context(model) as hooked:
        output = hooked(x)
        wanted = torch.eye(output.shape[1], device=DEVICE)[NUMBERS] * output.detach()
        (relevance,) = torch.autograd.grad(output, x, wanted)
    return relevance


def picture(name: str, canonizer: type | None) -> list[str]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval().requires_grad_(False).to(DEVICE)
    x = torch.randn(BATCH, 3, 224, 224, device=DEVICE)
    prepared, replayed = whence.Explainer(model), whence.Explainer(model, capture=True)
    alone, number = x[:1], NUMBERS[:1]
    ways: dict[str, Callable[[], object]] = {
        "gradient × input": lambda: gradient(model, x),
        "whence, default": lambda: whence.explain(model, x, NUMBERS),
        "whence, default, prepared": lambda: prepared(x, NUMBERS),
        "whence, default, replayed": lambda: replayed(x, NUMBERS),
    }
    if canonizer:
        box, plus = whence.LRP(whence.presets.epsilon_gamma_box(LOW, HIGH)), whence.LRP(whence.presets.epsilon_plus())
        ways |= {
            "whence, z^B · γ · ε": lambda: whence.explain(model, x, NUMBERS, method=box),
            "whence, z⁺ · ε": lambda: whence.explain(model, x, NUMBERS, method=plus),
            "zennit, z^B · γ · ε": lambda: by_zennit(model, x, "EpsilonGammaBox", canonizer, LOW, HIGH),
            "zennit, z⁺ · ε": lambda: by_zennit(model, x, "EpsilonPlus", canonizer),
        }
    one: dict[str, Callable[[], object]] = {
        "gradient × input": lambda: gradient(model, alone, number),
        "whence, default": lambda: whence.explain(model, alone, number),
        "whence, default, replayed": lambda: replayed(alone, number),
    }
    return [*compared(name, ways), *compared(f"{name}, one picture", one)]


def text(dtype: torch.dtype) -> list[str]:
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=16, num_attention_heads=32
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False).to(DEVICE, dtype)
    ids, other = torch.randint(3, 32000, (2, 1, 512), device=DEVICE)
    target, prepared = whence.Logit(5, rather_than=6), whence.Explainer(model)
    replayed = whence.Explainer(model, capture=True)

    def plain() -> None:
        vectors = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=vectors, use_cache=False).logits[0, -1]
        torch.autograd.grad(logits[5] - logits[6], vectors)

    clean, corrupted = ({"input_ids": given, "use_cache": False} for given in (ids, other))
    layers = ["model.layers.*", "model.layers.*.self_attn", "model.layers.*.mlp"]
    ways: dict[str, Callable[[], object]] = {
        "gradient": plain,
        "AttnLRP": lambda: whence.explain(model, clean, target),
        "AttnLRP, prepared": lambda: prepared(clean, target),
        "AttnLRP, replayed": lambda: replayed(clean, target),
        "relevance patching": lambda: whence.patching(model, clean, corrupted, target, layers),
    }
    return compared(f"Llama, 16 layers of 2048, 512 tokens, {str(dtype).removeprefix('torch.')}", ways)


def channels(name: str, layer: str) -> list[str]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval().requires_grad_(False).to(DEVICE)
    x = torch.randn(1, 3, 224, 224, device=DEVICE)

    def plain() -> None:
        given = x.clone().requires_grad_()
        logit = model(given)[0, 3]
        for _ in range(CHANNELS):
            torch.autograd.grad(logit, given, retain_graph=True)

    def through() -> None:
        for _ in whence.explain_targets(model, x, [3], through=[{layer: c} for c in range(CHANNELS)]):
            pass

    return compared(f"{name}, {layer}", {f"{CHANNELS} gradients": plain, f"{CHANNELS} channels": through})


def agreement() -> list[str]:
    rows = ["| network | relevance here, CPU's in float64 = 1 | conservation error, float32 |", "|---|---|---|"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in ("resnet18", "vit_b_32", "convnext_tiny", "mobilenet_v3_small"):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name).eval()
        nn.init.normal_(next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)).weight)  # not 0
        x = torch.randn(2, 3, 224, 224)
        truth = whence.explain(model.double(), x.double(), 3).relevance
        e = whence.explain(model.float().to(DEVICE), x.to(DEVICE), 3)
        here, there = (nn.functional.normalize(r.cpu().double().flatten(1), eps=0) for r in (e.relevance, truth))
        cosine = (here * there).sum(1).min()
        rows.append(f"| {name} | cosine {float(cosine):.8f} | {float(e.conservation.error.max()):.0e} |")
    return rows


def main() -> None:
    device = torch.cuda.get_device_name()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "transformers", "zennit"))
    parts = [
        f"# On {device}\n\n{packages}; pictures: batch {BATCH} at 224², float32. Best of {ROUNDS}. "
        "Replayed: Explainer(…, capture=True), one launch.\n"
    ]
    measured = [
        *(
            lambda n=n, c=c: picture(n, c)
            for n, c in (("vgg16", VGGCanonizer), ("resnet50", ResNetCanonizer), ("vit_b_16", None))
        ),
        *(lambda dtype=dtype: text(dtype) for dtype in (torch.float32, torch.bfloat16)),
        *(
            lambda n=n, layer=layer: channels(n, layer)
            for n, layer in (("vgg16", "features.28"), ("resnet50", "layer3.5.conv3"))
        ),
    ]
    rows = list(HEAD)
    for make in measured:
        rows += (found := make())
        print(*found, sep="\n", flush=True)
    parts += ["\n".join(rows) + "\n", "\n".join(agreement()) + "\n"]
    print(parts[-1], flush=True)
    folder = Path(os.environ.get("OUT", Path(__file__).parent / "results"))
    (folder / "gpu.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
