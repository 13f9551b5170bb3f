"""What `whence.Explainer(model)` costs by default, replayed and compiled, beside the plain gradient, captum and zennit.

python benchmarks/default_speed.py ../shared/data   # prints the table and writes benchmarks/results/default_speed.md

CPU seconds of the process, so that a busy machine does not tell; ratios to the plain gradient × input (parameters frozen, its
cheapest form). The second call is computed without a graph. `capture="auto"` captures one after `PAYS_AFTER` explanations of
the same shapes; here after two, so that the benchmark ends. "Pays after" is the time of the capture over the time that one
replay saves. Compiled is `capture="compile"`, on one thread.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import peers
from overhead import gradient_of_picture, gradient_of_text, llama, picture_networks

sys.path.append(str(Path(__file__).parents[1] / "tests"))
peers.declare_torchvision_operators()

from captum.attr import InputXGradient  # noqa: E402
from zennit.attribution import Gradient  # noqa: E402
from zennit.composites import EpsilonPlus  # noqa: E402

import whence  # noqa: E402
from support.story_model import story_model  # noqa: E402
from whence.graphs import automatic_replay  # noqa: E402

ROUNDS = 7
PICTURES = {
    "resnet50": 32, "shufflenet_v2_x1_0": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 224, "efficientnet_b0": 224,
    "squeezenet1_1": 224, "resnet18": 224, "densenet121": 224, "vgg11": 64, "vit_b_16": 224,
}  # fmt: skip
HEAD = [
    "| network | threads | gradient, ms | second call | replayed | pays after | compiled | compilation, s "
    "| captum, InputXGradient | zennit, EpsilonPlus |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def cpu_seconds(way: Callable[[], object]) -> float:
    """Return the least CPU seconds of a call."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        way()
        best = min(best, time.process_time() - start)
    return best


def row(name: str, model: nn.Module, given: object, gradient: Callable, others: list[Callable | None]) -> str:
    automatic_replay.PAYS_AFTER = sys.maxsize
    plain = whence.Explainer(model)
    gradient(), plain(given)
    base, second = cpu_seconds(gradient), cpu_seconds(lambda: plain(given))
    automatic_replay.PAYS_AFTER = 2
    replaying = whence.Explainer(model, capture="auto")
    replaying(given)
    start = time.process_time()
    replaying(given)  # captures the graph
    capture = time.process_time() - start - second
    has_graph = any(graph is not None for graph in replaying._automatic._captures.values())
    replayed = cpu_seconds(lambda: replaying(given))
    pays = f"{capture / (second - replayed):.0f}" if has_graph else "no graph: it is not faster"
    compiled, compilation = compiled_seconds(model, given) if torch.get_num_threads() == 1 else (float("nan"), float("nan"))
    of_peers = []
    for way in others:
        try:
            of_peers.append("" if way is None else f"{(way(), cpu_seconds(way))[1] / base:.2f}")
        except Exception as error:
            of_peers.append(type(error).__name__)
    by_compiler = [f"{compiled / base:.2f}", f"{compilation:.0f}"] if compiled == compiled else ["", ""]
    ratios = " | ".join([f"{second / base:.2f}", f"{replayed / base:.2f}", pays, *by_compiler, *of_peers])
    print(line := f"| {name} | {torch.get_num_threads()} | {base * 1e3:.1f} | {ratios} |", flush=True)
    return line


def compiled_seconds(model: nn.Module, given: object) -> tuple[float, float]:
    """Return the CPU seconds of a compiled explanation, and the seconds that its compilation takes."""
    explainer = whence.Explainer(model, capture="compile")
    start = time.perf_counter()
    explainer(given)
    compilation = time.perf_counter() - start
    return cpu_seconds(lambda: explainer(given)), compilation


def by_zennit(model: nn.Module, x: Tensor, target: int) -> Tensor:
    with Gradient(model=model, composite=EpsilonPlus()) as attributor:
        return attributor(x, torch.eye(1000)[[target]])[1]


def of_pictures() -> list[str]:
    rows = []
    for name, model, x in picture_networks(PICTURES):
        captum = InputXGradient(model)
        others = [
            lambda captum=captum, x=x: captum.attribute(x.clone(), target=3),
            lambda model=model, x=x: by_zennit(model, x, 3),
        ]
        rows.append(row(name, model, x, lambda model=model, x=x: gradient_of_picture(model, x), others))
    return rows


def main(data: Path) -> None:
    torch.set_num_threads(1)
    ids = torch.randint(0, 60, (1, 8))
    texts = {"Llama, 32 × 32, 8 tokens": llama(), "Llama of stories, 5 layers": story_model(data)}
    rows = [
        row(name, model, {"input_ids": ids}, lambda model=model: gradient_of_text(model, ids), [None, None])
        for name, model in texts.items()
    ]
    rows += of_pictures()
    torch.set_num_threads(2)
    two = llama()
    rows.append(row("Llama, 32 × 32, 8 tokens", two, {"input_ids": ids}, lambda: gradient_of_text(two, ids), [None, None]))
    peers.write(
        "default_speed",
        f"# The default, call by call\n\n{peers.versions('transformers', 'torchvision', 'captum', 'zennit')}; one sample each; "
        "CPU seconds of the process.\n",
        [*HEAD, *rows],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
