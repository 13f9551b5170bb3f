"""Long texts and models larger than memory: time and peak memory beside the plain gradient, each in a process of its own.

python benchmarks/long_texts.py   # prints the tables and writes benchmarks/results/long_texts.md

1. A Llama of 48 million weights, 128 to 4096 tokens: gradient × input by autograd alone, LRP, and LRP with checkpointed layers.
2. A Llama of 2 GB in float32, in memory and with `load_model(…, offload=True)` in a process whose data segment is limited to
   700 MB (RLIMIT_DATA). glibc before 2.38 does not reuse freed aligned memory well: MALLOC_MMAP_THRESHOLD_ is set for both.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.pop(0)  # a file beside this one is called as the library transformers

import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]
import peers

peers.declare_torchvision_operators()

LIMIT = 700 << 20  # bytes
LENGTHS = (128, 512, 1024, 2048, 4096)
OFFLOADED_LENGTHS = (128, 512)
WAYS = ("gradient", "LRP", "LRP, checkpointed")


def llama(layers: int, width: int):
    """Return a Llama with random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8000, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=8192,
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def memory() -> float:
    """Return the peak of the memory of this process so far, in MiB."""
    status = Path("/proc/self/status").read_text()  # getrusage counts the process that started this one
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def gradient(model, ids: torch.Tensor) -> torch.Tensor:
    """Return gradient × input of the last token's likeliest logit, by autograd alone."""
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False, logits_to_keep=1).logits
    return (torch.autograd.grad(logits[0, -1].max(), embedded)[0] * embedded).sum(-1)


def explain(way: str, count: int, folder: str) -> None:
    """Print the time and memory of one explanation, and write its relevance."""
    import whence

    torch.set_num_threads(1)
    if way == "offloaded":
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
        model = whence.load_model(f"hf:{folder}", offload=True).model
    elif way == "in memory":
        model = whence.load_model(f"hf:{folder}").model
    else:
        model = llama(12, 512)
    ids = torch.randint(0, 8000, (1, count), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "use_cache": False, "logits_to_keep": 1}
    before, began = memory(), time.perf_counter()
    with whence.checkpointed(model, "model.layers.*") if "checkpointed" in way else nullcontext():
        if way == "gradient":
            gradient(model, ids)
        else:
            relevance = whence.explain(model, inputs, progress=False).relevance["input_ids"]
            torch.save(relevance, Path(folder, f"{way} {count}.pt"))
    print(time.perf_counter() - began, memory(), memory() - before)


def measured(way: str, count: int, folder: str) -> list[float]:
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "262144"} if way in ("in memory", "offloaded") else {})
    command = [sys.executable, "-W", "ignore", __file__, way, str(count), folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [float(value) for value in done.stdout.split()[-3:]]


def long_text_row(count: int, folder: str) -> str:
    found = [measured(way, count, folder) for way in WAYS]
    (seconds, _, used), *others = found
    cells = [f"{seconds:.2f} s, {used:.0f} MiB", *(f"{s / seconds:.2f} ×, {m / used:.2f} ×" for s, _, m in others)]
    print(line := f"| {count} | {' | '.join(cells)} |", flush=True)
    return line


def offloaded_row(count: int, folder: str) -> str:
    plain, limited = (measured(way, count, folder) for way in ("in memory", "offloaded"))
    one, other = (torch.load(Path(folder, f"{way} {count}.pt")) for way in ("in memory", "offloaded"))
    apart = float((one - other).abs().max() / one.abs().max())
    cells = [f"{plain[0]:.1f} s, {plain[1]:.0f} MiB", f"{limited[0]:.1f} s, {limited[1]:.0f} MiB"]
    cells += [f"{limited[0] / plain[0]:.2f} ×", f"{apart:.0e}"]
    print(line := f"| {count} | {' | '.join(cells)} |", flush=True)
    return line


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = ["| tokens | gradient | LRP | LRP, checkpointed |", "|---|---|---|---|"]
        rows += [long_text_row(count, folder) for count in LENGTHS]
        llama(38, 1024).save_pretrained(folder, max_shard_size="500MB")
        from support.story_model import story_tokenizer

        story_tokenizer(Path(__file__).parents[2] / "shared" / "data").save_pretrained(folder)
        large = ["", "## A Llama of 2 GB", "", "| tokens | in memory | from disk, at most 700 MB | time | difference |"]
        large += ["|---|---|---|---|---|", *(offloaded_row(count, folder) for count in OFFLOADED_LENGTHS)]
    title = f"# Long texts and large models\n\n{peers.versions('transformers', 'accelerate')}; one thread in each process.\n"
    peers.write("long_texts", title, [*rows, *large])


if __name__ == "__main__":
    explain(sys.argv[1], int(sys.argv[2]), sys.argv[3]) if len(sys.argv) > 1 else main()
