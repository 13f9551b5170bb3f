"""What looking inside costs beside plain ways back, and how well relevance patching predicts the truth.

python benchmarks/inside.py ../shared/data   # prints the tables and writes benchmarks/results/inside.md
"""

import gc
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import networks
import peers

peers.declare_torchvision_operators()
sys.path.remove(str(Path(__file__).parent))  # it has a transformers.py of its own

import torchvision  # noqa: E402
import transformers  # noqa: E402

import whence  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.story_model import story_model, story_tokenizer  # noqa: E402

ROUNDS, CHANNELS = 3, 32
NAMES, WORDS = range(1, 33), range(33, 64)  # tokens of the made language
LLAMA = {"residual": "model.layers.*", "attention": "model.layers.*.self_attn", "MLP": "model.layers.*.mlp"}
GPT2 = {"residual": "transformer.h.*", "attention": "transformer.h.*.attn", "MLP": "transformer.h.*.mlp"}
TEXTS = [
    ("{a} and {b} went to the park. {b} gave a ball to", "{b} and {a} went to the park. {a} gave a ball to"),
    ("One day, {a} and {b} saw a dog. {b} was sad. {b} ran to", "One day, {b} and {a} saw a dog. {a} was sad. {a} ran to"),
    ("{a} had a toy. {b} liked it. So {b} said to", "{b} had a toy. {a} liked it. So {a} said to"),
    ("The sun was hot. {a} and {b} were sad. {b} hugged", "The sun was hot. {b} and {a} were sad. {a} hugged"),
]  # fmt: skip


def cost_of_channels() -> list[str]:
    """Heatmaps of channels beside as many plain ways back."""
    rows = [f"| network, layer | way | seconds | {CHANNELS} plain ways back = 1 | MiB |", "|---|---|---|---|---|"]
    for name, layer in (("vgg16", "features.28"), ("resnet50", "layer3.5.conv3")):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name).eval()
        x = torch.rand(1, 3, 224, 224)

        def plain(model: nn.Module = model, x: Tensor = x) -> None:
            given = x.clone().requires_grad_()
            logit = model(given)[0, 3]
            for _ in range(CHANNELS):
                torch.autograd.grad(logit, given, retain_graph=True)

        def through(count: int, model: nn.Module = model, x: Tensor = x, layer: str = layer) -> None:
            conditions = [{layer: c} for c in range(count)]
            for _ in whence.explain_targets(model, x, [3], through=conditions):
                pass

        ways: dict[str, Callable[[], object]] = {"plain": plain, "channels": lambda through=through: through(CHANNELS)}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        times = peers.seconds(ways, ROUNDS)
        memory = {}
        for way, run in (ways | {"8 channels": lambda through=through: through(8)}).items():
            gc.collect()
            memory[way] = peers.peak_mebibytes(run)
        rows += [
            f"| {name}, {layer} | {way} | {t:.2f} | {t / times['plain']:.2f} | {memory[way]:.0f} |" for way, t in times.items()
        ]
        rows.append(f"| | 8 channels | | | {memory['8 channels']:.0f} |")
    return rows


def cost_of_patching(data: Path) -> list[str]:
    """All components by relevance beside the same by the gradient."""
    rows = ["| network | way | seconds | gradient = 1 |", "|---|---|---|---|"]
    config = transformers.LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8
    )
    torch.manual_seed(0)
    for name, model, length in (
        ("stories260k (dim 64)", story_model(data), 24),
        ("Llama, dim 512, 8 layers", transformers.LlamaForCausalLM(config).eval(), 128),
    ):
        clean, corrupted = torch.randint(3, 500, (2, 1, length))
        target = whence.Logit(5, rather_than=6)

        def run(by: str, model: nn.Module = model, a: Tensor = clean, b: Tensor = corrupted, target=target) -> None:
            whence.patching(model, a, b, target, list(LLAMA.values()), estimator=by, progress=False)

        def gradient(model: nn.Module = model, ids: Tensor = clean) -> None:
            vectors = model.get_input_embeddings()(ids).detach().requires_grad_()
            logits = model(inputs_embeds=vectors).logits[0, -1]
            torch.autograd.grad(logits[5] - logits[6], vectors)

        ways: dict[str, Callable[[], object]] = {"gradient at the input, one forward pass": gradient}
        ways |= {f"patching by {by}": lambda by=by, run=run: run(by) for by in ("gradient", "relevance")}
        times = peers.seconds(ways, ROUNDS + 2)
        first = times["gradient at the input, one forward pass"]
        rows += [f"| {name} | {way} | {t:.3f} | {t / first:.2f} |" for way, t in times.items()]
    return rows


def correlations(data: Path) -> list[str]:
    rows = ["| network, task | components | RelP | AttnLRP rules | gradient |", "|---|---|---|---|---|"]
    tokenizer, model = story_tokenizer(data), story_model(data)
    for kind, layers in LLAMA.items():
        found = []
        for clean, corrupted in TEXTS:
            for a, b in permutations(("Lily", "Tim", "mom"), 2):  # names of one token
                ids = [tokenizer(text.format(a=a, b=b), return_tensors="pt").input_ids for text in (clean, corrupted)]
                token = {name: tokenizer(f"the {name}", add_special_tokens=False).input_ids[-1] for name in (a, b)}
                found.append(effects(model, *ids, whence.Logit(token[a], rather_than=token[b]), layers))
        rows.append(f"| stories260k, names | {kind} | {' | '.join(f'{r:.3f}' for r in correlated(found))} |")
    for task, made in (("names", names), ("induction", induction)):
        for size in (2, 4, 8):
            model = trained(task, made, size)
            clean, corrupted, target = made(16, evaluating=True)
            for kind, layers in GPT2.items():
                found = [effects(model, clean, corrupted, target, layers)]
                row = " | ".join(f"{r:.3f}" for r in correlated(found))
                rows.append(f"| GPT-2 of {size} layers, {task} | {kind} | {row} |")
    return rows


def effects(model: nn.Module, clean: Tensor, corrupted: Tensor, target: whence.Logit, layers: str) -> Tensor:
    """By RelP, by AttnLRP's rules, by the gradient, and the truth, in rows."""
    found = whence.patching(
        model, clean, corrupted, target, [layers], estimator=["relevance", "gradient", "exact"], progress=False
    )
    other = whence.patching(model, clean, corrupted, target, [layers], method=whence.LRP(), progress=False)
    return torch.stack([found.flat("relevance"), other.flat("relevance"), found.flat("gradient"), found.flat("exact")])


def correlated(found: list[Tensor]) -> list[float]:
    return torch.corrcoef(torch.cat(found, 1))[-1, :-1].tolist()


def right_reason(data: Path) -> list[str]:
    """A network for digits of which all threes carry a grey patch in training: with relevance on the patch in the loss."""
    x, y = networks.mnist(data, "train", 6000)
    test_x, test_y = networks.mnist(data, "test", 2000)
    decoyed = x.clone()
    decoyed[y == 3, :, 1:5, 1:5] = 0.6
    marked = test_x.clone()
    marked[:, :, 1:5, 1:5] = 0.6
    rows = ["| loss | clean test digits | clean threes | other digits with the patch |", "|---|---|---|---|"]
    for penalty in (0.0, 1.0):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10),
        ).eval()  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), 0.002)
        for _ in range(4):
            for batch in torch.randperm(len(x)).split(60):
                loss = F.cross_entropy(model(decoyed[batch]), y[batch])
                if penalty:
                    given = decoyed[batch].requires_grad_()
                    with whence.relevance_rules(model, {nn.Conv2d: whence.Gamma(0.25)}, differentiable=True):
                        logits = model(given)
                    (g,) = torch.autograd.grad(logits.gather(1, y[batch, None]).sum(), given, create_graph=True)
                    loss = loss + penalty * (given * g)[:, :, 1:5, 1:5].sum((1, 2, 3)).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

        def right(x: Tensor, y: Tensor, model: nn.Module = model) -> str:
            with torch.no_grad():
                return f"{float((model(x).argmax(1) == y).float().mean()):.1%}"

        threes = test_y == 3
        name = "cross-entropy" if not penalty else "and the squared relevance of the patch"
        figures = [right(test_x, test_y), right(test_x[threes], test_y[threes]), right(marked[~threes], test_y[~threes])]
        rows.append(f"| {name} | {' | '.join(figures)} |")
    return rows


def names(count: int, evaluating: bool = False) -> tuple[Tensor, Tensor, whence.Logit] | Tensor:
    """A and B … A gave it to B: texts that end in the name that was heard once. Corrupted: the names exchanged."""
    a, b = torch.rand(count, len(NAMES)).argsort(1)[:, :2].T + NAMES[0]
    if not evaluating:  # either is heard first
        first = torch.rand(count) < 0.5
        a, b = torch.where(first, a, b), torch.where(first, b, a)
    words = torch.randint(WORDS[0], WORDS[-1], (count, 8))
    once, twice = (a, b) if torch.rand(()) < 0.5 else (b, a)
    texts = torch.cat([words[:, :2], a[:, None], words[:, 2:3], b[:, None], words[:, 3:5], twice[:, None], words[:, 5:8]], 1)
    if not evaluating:
        return torch.cat([texts, once[:, None]], 1)
    exchanged = torch.where(texts == a[:, None], b[:, None], torch.where(texts == b[:, None], a[:, None], texts))
    return texts, exchanged, whence.Logit(once, rather_than=twice)


def induction(count: int, evaluating: bool = False) -> tuple[Tensor, Tensor, whence.Logit] | Tensor:
    """Random tokens twice over: each is told by what followed it the first time. Corrupted: one of them is another."""
    half = torch.rand(count, len(WORDS)).argsort(1)[:, :8] + WORDS[0]
    texts = torch.cat([half, half], 1)
    if not evaluating:
        return texts
    place, clean = 4, texts[:, : 8 + 4]  # ends in the fourth token, which the fifth follows
    corrupted, other = clean.clone(), torch.randint(NAMES[0], NAMES[-1], (count,))
    corrupted[:, place] = other
    return clean, corrupted, whence.Logit(half[:, place], rather_than=other)


def trained(task: str, made: Callable[..., Tensor], layers: int) -> nn.Module:
    """GPT-2 in small, trained on the task for some minutes."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=128, n_layer=layers, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    kept = networks.KEPT / f"gpt2-{task}-{layers}.pt"
    if kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    for step in range(3000):
        texts = made(64)
        logits = model(texts[:, :-1]).logits
        told = slice(-1, None) if task == "names" else slice(8, None)
        loss = F.cross_entropy(logits[:, told].flatten(0, 1), texts[:, 1:][:, told].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if float(loss) < 0.005 and step > 300:
            break
    print(task, layers, "layers: loss", float(loss), "after", step, "steps", flush=True)
    networks.KEPT.mkdir(exist_ok=True)
    torch.save(model.state_dict(), kept)
    return model.eval()


def main(data: Path) -> None:
    torch.set_num_threads(2)
    peers.write(
        "inside",
        f"# Inside\n\n{peers.versions('transformers', 'torchvision')}.\n\nHeatmaps of {CHANNELS} channels of a layer, beside "
        f"one forward pass and {CHANNELS} plain gradients; random weights (speed does not depend on them).\n",
        cost_of_channels(),
        ["Relevance patching of all residual streams, attention and MLP outputs, beside attribution patching.", ""],
        cost_of_patching(data),
        ["Pearson's correlation with exact activation patching, over all layers and tokens.", ""],
        correlations(data),
        ["Right for the right reason: 6,000 digits, four epochs; in training all threes carry a grey patch.", ""],
        right_reason(data),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
