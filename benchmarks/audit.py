"""Audits of clean data and of data with a mark: how often anything is named, and whether marks are found, proven and cured.

python benchmarks/audit.py ../shared/data   # prints the tables and writes benchmarks/results/audit.md; resumes what was run
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import networks
import peers
import whence
from whence.models.digits import digits

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support import marked_sets as sets

CLEAN = ("bundled digits", "own CNN on digits", "ResNet-20 on CIFAR-10", "series")
MARKS = ("corner", "frame", "stripe", "background", "sticker", "tone", "phrase")
CLEAN_SEEDS, MARK_SEEDS = 20, 5
N_TRAIN, N_AUDIT = 2000, 1000
DONE = networks.KEPT / "audit.jsonl"


@dataclass
class Run:
    """One audit: how many clusters it names, the largest effect, and for a mark whether it is first, proven and cured."""

    kind: str
    seed: int
    seconds: float
    named: int
    wrong: int  # suspicious clusters of classes without the mark
    largest: float
    used: float = 0.0  # change of the probability by the true mark, pasted on other classes
    first: bool = False
    proven: bool = False
    cured: float = 0.0  # share of that change which the cure takes back
    loss: float = 0.0  # of accuracy without the mark, by the cure


def clean_set(kind: str, seed: int, data: Path) -> tuple[nn.Module, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    if kind == "series":
        x, y = sets.series(N_TRAIN + N_AUDIT, False, seed)
        return sets.trained(sets.series_network(seed), x[:N_TRAIN], y[:N_TRAIN], 12, seed), x[N_TRAIN:], y[N_TRAIN:]
    if kind == "ResNet-20 on CIFAR-10":
        subject = networks.subjects(data, ("resnet20",))[0]
        rows = torch.randperm(len(subject.x), generator=random)[:240]
        mirrored = (torch.rand(240, generator=random) < 0.5)[:, None, None, None]
        return subject.model, torch.where(mirrored, subject.x[rows].flip(-1), subject.x[rows]), subject.y[rows]
    x, y = some_digits(seed, data)
    if kind == "bundled digits":
        return digits(), x[:N_AUDIT], y[:N_AUDIT]
    return sets.trained(sets.digit_network(seed), x[:N_TRAIN], y[:N_TRAIN], 8, seed), x[N_TRAIN:], y[N_TRAIN:]


def some_digits(seed: int, data: Path) -> tuple[Tensor, Tensor]:
    x, y = networks.mnist(data, "train", 60_000)
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: N_TRAIN + N_AUDIT]
    return x[rows], y[rows]


def marked_set(kind: str, seed: int, data: Path) -> tuple[nn.Module, Tensor, Tensor, int]:
    """Return a network, data with a mark, and the marked class; kinds that end in " alone" have it on the class alone."""
    mark, alone = kind.removesuffix(" alone"), kind.endswith(" alone")
    if mark == "tone":
        x, y = sets.series(N_TRAIN + N_AUDIT, True, seed)
        return sets.trained(sets.series_network(seed), x[:N_TRAIN], y[:N_TRAIN], 12, seed), x[N_TRAIN:], y[N_TRAIN:], 1
    if mark == "phrase":
        x, y = sets.texts(N_TRAIN + N_AUDIT, True, seed)
        return sets.trained(sets.TextNetwork(seed), x[:N_TRAIN], y[:N_TRAIN], 15, seed), x[N_TRAIN:], y[N_TRAIN:], 1
    x, y = some_digits(seed, data)
    x = sets.marked_digits(mark, x, y)
    seen = (x[:N_TRAIN], y[:N_TRAIN]) if alone else sets.with_marked_others(mark, x[:N_TRAIN], y[:N_TRAIN])
    return sets.trained(sets.digit_network(seed), *seen, 8, seed), x[N_TRAIN:], y[N_TRAIN:], sets.CLASS


def audited(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> whence.results.Audit:
    with tempfile.TemporaryDirectory() as folder:
        store = whence.explain_dataset(model, (x, y), f"{folder}/store", progress=False)
        return whence.audit(store, model=model, data=(x, y), seed=seed, progress=False)


def clean_run(kind: str, seed: int, data: Path) -> Run:
    model, x, y = clean_set(kind, seed, data)
    start = time.perf_counter()
    found = audited(model, x, y, seed)
    named = len(found.suspicious)
    return Run(kind, seed, time.perf_counter() - start, named, named, _largest(found))


def marked_run(kind: str, seed: int, data: Path) -> Run:
    model, x, y, group = marked_set(kind, seed, data)
    start = time.perf_counter()
    found = audited(model, x, y, seed)
    took, first = time.perf_counter() - start, found.clusters[0]
    others, labels = x[y != group], y[y != group]
    marked = sets.with_true_mark(kind.removesuffix(" alone"), others)
    used = _probability(model, marked, group) - _probability(model, others, group)
    run = Run(
        kind, seed, took, len(found.suspicious), sum(c.group != group for c in found.suspicious), _largest(found), used,
        first.suspicious and first.group == group,
    )  # fmt: skip
    if run.first:
        proof = whence.prove(first, model, (x, y))
        run.proven = proof.proven
        try:
            cured = whence.cure(model, proof=proof)
        except whence.errors.ModelError:
            return run
        left = _probability(cured, marked, group) - _probability(model, others, group)
        run.cured = 1 - left / used
        run.loss = _accuracy(model, others, labels) - _accuracy(cured, others, labels)
    return run


def _largest(found: whence.results.Audit) -> float:
    return max((c.evidence.effect for c in found.clusters if c.evidence is not None), default=0.0)


@torch.no_grad()
def _probability(model: nn.Module, x: Tensor, group: int) -> float:
    return float(model(x).softmax(1)[:, group].mean())


@torch.no_grad()
def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


def runs(data: Path) -> Iterator[Run]:
    """Yield all runs; those that an earlier call has finished are read."""
    DONE.parent.mkdir(exist_ok=True)
    done = [Run(**json.loads(line)) for line in DONE.read_text().splitlines()] if DONE.exists() else []
    finished = {(run.kind, run.seed): run for run in done}
    todo = [(partial(clean_run, kind), kind, CLEAN_SEEDS) for kind in CLEAN]
    todo += [(partial(marked_run, kind), kind, MARK_SEEDS) for kind in MARKS]
    todo += [(partial(marked_run, f"{kind} alone"), f"{kind} alone", MARK_SEEDS) for kind in MARKS[:5]]
    for make, kind, seeds in todo:
        for seed in range(seeds):
            run = finished.get((kind, seed)) or make(seed, data)
            if (kind, seed) not in finished:
                with DONE.open("a") as file:
                    file.write(json.dumps(asdict(run)) + "\n")
                print(run, flush=True)
            yield run


def overhead(data: Path) -> str:
    """Measure an epoch of 60,000 digits, an audit of it, and the memory of an audit of as many explanations."""
    x, y = networks.mnist(data, "train", 60_000)
    model = sets.digit_network()
    epoch = _seconds(lambda: sets.trained(model, x, y, 1))
    watch = whence.callbacks.TrainingAudit((x, y))
    watch(model.train(), 0)
    audit = _seconds(lambda: watch(model, 1))
    with tempfile.TemporaryDirectory() as folder:
        model.eval()
        store = whence.explain_dataset(model, (x, y), f"{folder}/store", progress=False)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        whole = _seconds(lambda: whence.audit(store, model=model, data=(x, y), progress=False))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"While training: an epoch of 60,000 digits takes {epoch:.0f} s, and `TrainingAudit` with its 500 samples "
        f"{audit:.1f} s, {audit / epoch:.0%} of it at one audit an epoch.\n\n"
        f"A store of 60,000 explanations, 20,000 of which are audited: {whole:.0f} s; the process had held {before:.0f} MiB at "
        f"most before, and {after:.0f} after."
    )


def _seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def main(data: Path) -> None:
    torch.set_num_threads(1)
    found = list(runs(data))
    by_kind = {kind: [run for run in found if run.kind == kind] for kind in dict.fromkeys(run.kind for run in found)}
    clean = [
        f"| {kind} | {sum(run.named > 0 for run in some)} of {len(some)} | {max(run.largest for run in some):.2f} | "
        f"{sum(run.seconds for run in some) / len(some):.0f} |"
        for kind, some in by_kind.items()
        if kind in CLEAN
    ]
    marks = []
    for kind, some in by_kind.items():
        if kind not in CLEAN:
            ok = [run for run in some if run.first]
            used = ", ".join(f"{run.used:.2f}{'' if run.first else ' (missed)'}" for run in some)
            proven, cured = sum(run.proven for run in ok), sum(run.cured >= 0.5 and run.loss <= 0.01 for run in ok)
            wrong = sum(run.wrong > 0 for run in some)
            worst = f"{min(run.cured for run in ok):.0%}, {max(run.loss for run in ok):+.1%}" if ok else "–"
            marks.append(f"| {kind} | {used} | {len(ok)} of {len(some)} | {proven} | {cured} | {worst} | {wrong} |")
    peers.write(
        "audit",
        f"# Audits\n\n{peers.versions()}; whence.audit(store, model=, data=), prove and cure with default settings.\n\n"
        f"Clean data: networks of {N_TRAIN} samples, {N_AUDIT} audited (CIFAR-10: 240 of 300, mirrored at random).\n",
        ["| clean data | audits that name anything | largest effect | seconds |", "|---|---|---|---|", *clean],
        [
            "Data with a mark on one class. *Used*: the change of the class's probability by the true mark on other "
            "samples, for each seed. The networks have seen 150 marked samples of other classes under the label of the "
            "class, except for *alone*, where they may use the mark as little as they like. *Cured*: at least half of what "
            "the mark took is brought back at a loss of accuracy of 1 % at most.\n",
            "\n".join([
                "| mark | used | found first | proven | cured | least brought back, largest loss | audits with other classes |",
                "|---|---|---|---|---|---|---|", *marks,
            ]),
        ],
        [overhead(data)],
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"))
