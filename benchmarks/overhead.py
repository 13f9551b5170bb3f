"""What an explanation costs where tensors are small and functions many, on one thread: beside the plain gradient and LXT.

    python benchmarks/overhead.py       # prints the tables and writes benchmarks/results/overhead.md

Cold is `whence.explain`, prepared a `whence.Explainer` that has explained before. Ratios to the plain gradient × input
(parameters frozen, its cheapest form). LXT patches classes for the whole process and cannot undo it, so it runs last; its ratio
is to the plain gradient timed just before the patches.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping

sys.path.pop(0)  # a file beside this one is called as the library transformers
os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
import torch
from torch import Tensor, nn

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
import peers

peers.declare_torchvision_operators()

import transformers  # noqa: E402

import whence  # noqa: E402

ROUNDS = 15
HEAD = ["| network | functions | gradient, ms | explain, cold | prepared |", "|---|---|---|---|---|"]
PICTURES = {"resnet50": 32, "shufflenet_v2_x1_0": 64, "mobilenet_v2": 64, "vgg11": 64, "vit_b_16": 224}
TARGETS = list(range(10))


class Counter(torch.overrides.TorchFunctionMode):
    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def llama(layers: int = 32, width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=width, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, use_cache=False
    )
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def gradient_of_text(model: nn.Module, ids: Tensor) -> Tensor:
    e = model.get_input_embeddings()(ids).detach().requires_grad_()
    (g,) = torch.autograd.grad(model(inputs_embeds=e).logits[:, -1].max(-1).values.sum(), e)
    return (e.detach() * g).sum(-1)


def gradient_of_picture(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x).max(-1).values.sum(), x)
    return x.detach() * g


def functions_in(run: Callable[[], object]) -> int:
    with Counter() as counter, torch.no_grad():
        run()
    return counter.count


def row(name: str, functions: int, gradient: Callable, model: nn.Module, given: object) -> str:
    explainer = whence.Explainer(model)
    ways = {
        "gradient": gradient,
        "cold": lambda: whence.explain(model, given),
        "prepared": lambda: explainer(given),
    }
    for way in ways.values():
        way()
    times = peers.seconds(ways, ROUNDS)
    cold, prepared = (f"{times[way] / times['gradient']:.2f}" for way in ("cold", "prepared"))
    return f"| {name} | {functions} | {times['gradient'] * 1e3:.1f} | {cold} | {prepared} |"


def of_text() -> str:
    model, ids = llama(), torch.randint(0, 60, (1, 8))
    functions = functions_in(lambda: model(input_ids=ids))
    return row("Llama, 32 × 32, 8 tokens", functions, lambda: gradient_of_text(model, ids), model, {"input_ids": ids})


def picture_networks(sides: Mapping[str, int]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield torchvision's networks of these names, each with a label and a picture of this side."""
    from torchvision.models import get_model

    for name, side in sides.items():
        torch.manual_seed(0)
        model, x = get_model(name, weights=None).eval().requires_grad_(False), torch.randn(1, 3, side, side)
        if name.startswith("vit"):
            nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision's is zero
        yield f"{name}, {side}²", model, x


def of_pictures() -> list[str]:
    rows = []
    for name, model, x in picture_networks(PICTURES):
        functions = functions_in(lambda model=model, x=x: model(x))
        rows.append(row(name, functions, lambda model=model, x=x: gradient_of_picture(model, x), model, x))
    return rows


def of_targets() -> list[str]:
    """Ten targets of one input, as many times one; the plain gradient beside it."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    model, x = get_model("vgg16", weights=None).eval().requires_grad_(False), torch.randn(1, 3, 224, 224)
    explainer = whence.Explainer(model)

    def gradients(targets: list[int]) -> None:
        given = x.clone().requires_grad_()
        outputs = model(given)
        for target in targets:
            torch.autograd.grad(outputs[:, target].sum(), given, retain_graph=True)

    ways: dict[str, Callable[[list[int]], object]] = {
        "plain gradient": gradients,
        "explain_targets": lambda targets: list(whence.explain_targets(model, x, targets)),
        "Explainer.targets": lambda targets: list(explainer.targets(x, targets)),
    }
    rows = ["| VGG-16, 224² | one target, ms | ten targets / one |", "|---|---|---|"]
    for name, way in ways.items():
        way(TARGETS[:1])
        times = peers.seconds({"one": lambda way=way: way(TARGETS[:1]), "ten": lambda way=way: way(TARGETS)}, 4)
        rows.append(f"| {name} | {times['one'] * 1e3:.0f} | {times['ten'] / times['one']:.2f} |")
    return rows


def by_lxt() -> str:
    from transformers.models.llama import modeling_llama

    for gone in ("find_pruneable_heads_and_indices", "prune_linear_layer"):  # LXT 2.1 imports them; transformers 5 has none
        if not hasattr(transformers.pytorch_utils, gone):
            setattr(transformers.pytorch_utils, gone, None)
    from lxt.efficient import monkey_patch

    class Interfaces(dict):
        def get_interface(self, name: str, default: Callable) -> Callable:
            return self.get(name, default)

    model, ids = llama(), torch.randint(0, 60, (1, 8))
    run = {"gradient": lambda: gradient_of_text(model, ids)}
    run["gradient"]()
    before = peers.seconds(run, ROUNDS)["gradient"]
    monkey_patch(modeling_llama)
    modeling_llama.ALL_ATTENTION_FUNCTIONS = Interfaces(modeling_llama.ALL_ATTENTION_FUNCTIONS)
    run["gradient"]()
    after = peers.seconds(run, ROUNDS)["gradient"]
    return f"| Llama by LXT | | {before * 1e3:.1f} | {after / before:.2f} | |"


def main() -> None:
    torch.set_num_threads(1)
    rows = [of_text(), *of_pictures(), by_lxt()]
    peers.write(
        "overhead",
        f"# Overhead\n\n{peers.versions('transformers', 'torchvision', 'lxt')}; one sample each.\n",
        [*HEAD, *rows],
        of_targets(),
    )


if __name__ == "__main__":
    main()
