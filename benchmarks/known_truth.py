"""All suites of `whence bench`, with captum, zennit, LXT and shap: how often each method is level with the best.

python benchmarks/known_truth.py   # prints and writes benchmarks/results/known_truth.md, and docs/images/bench.png
"""

import sys
from pathlib import Path

import torch

import peers
import whence

HERE = Path(__file__).parent


def main() -> None:
    sys.path.pop(0)  # shap imports transformers, which a benchmark is named after
    peers.declare_torchvision_operators()
    found = whence.bench(cache_dir=HERE / ".trained" / "bench")
    found.save(HERE.parent / "docs" / "images" / "bench.png")
    shares = ["| method | level with the best |", "|---|---|"]
    shares += [f"| {name} | {share:.0%} |" for name, share in found.ranking]
    heads = ["| task | accuracy | default | best | | random |", "|---|---|---|---|---|---|"]
    cells = []
    for task in found.tasks:
        scores = [f"{task.intervals[name].mean:.3g}" for name in ("lrp", task.best, "random")]
        mark, accuracy = "**" if "lrp" in task.level else "", "–" if task.accuracy is None else f"{task.accuracy:.2f}"
        cells.append(f"| {task.title} | {accuracy} | {mark}{scores[0]}{mark} | {task.best} | {scores[1]} | {scores[2]} |")
    heading = (
        f"# Known truth\n\n{peers.versions('captum', 'zennit', 'lxt', 'shap')}.\n\n{len(found.tasks)} cells of 100 samples. "
        "Bold: the default of whence is not below the best by more than the paired 95 % interval, or by less than "
        "a thousandth of the distance from random to the best. Errors of hand-made networks "
        "and of the LSTM: lower is better.\n"
    )
    left = [f"* {line}" for line in found.remarks]
    peers.write("known_truth", heading, shares, heads + cells, left)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
