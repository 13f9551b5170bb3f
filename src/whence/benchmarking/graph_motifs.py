"""BA-2motifs (Luo et al. 2020): random graphs to which a house or a cycle of five nodes is attached, which decides the class.

The input is the adjacency matrix, and the edges of the motif are the evidence.
"""

import torch
from torch import Tensor, nn

from whence.benchmarking.ground_truth_metrics import EdgeAUC
from whence.benchmarking.ground_truth_task import BenchSettings, GroundTruthTask, TaskFactory, correct_samples
from whence.benchmarking.small_networks import train

SUITE = "BA-2motifs"
BASE, MOTIF, N_TRAIN = 20, 5, 3000
REQUIRED, ATTEMPTS = 0.95, 3  # accuracy; trainings from other seeds
CYCLE = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0))
HOUSE = (*CYCLE, (1, 4))


def graphs(count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return adjacency matrices `[N, V, V]`, classes `[N]` (1: a house) and the edges of the motifs `[N, V, V]`."""
    size = BASE + MOTIF
    y = torch.randint(2, (count,), generator=random)
    adjacency, motif = torch.zeros(count, size, size), torch.zeros(count, size, size, dtype=torch.bool)
    draws = torch.rand(count, size, generator=random)
    for n, kind in enumerate(y.tolist()):
        ends = [0]  # each node as often as it has edges: preferential attachment (Barabási and Albert 1999)
        for new in range(1, BASE):
            old = ends[int(draws[n, new] * len(ends))]
            adjacency[n, new, old] = 1
            ends += [new, old]
        for a, b in HOUSE if kind else CYCLE:
            motif[n, BASE + a, BASE + b] = True
        adjacency[n, BASE, int(draws[n, 0] * BASE)] = 1
    motif = motif | motif.transpose(1, 2)
    return ((adjacency + adjacency.transpose(1, 2) + motif) > 0).float(), y, motif


class GraphNetwork(nn.Module):
    """Three rounds of messages h ← MLP(A h + h), from one constant feature per node, and the sum over all nodes."""

    def __init__(self, width: int = 20):
        super().__init__()
        self.rounds = nn.ModuleList([
            nn.Sequential(nn.Linear(1 if not i else width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
            for i in range(3)
        ])  # fmt: skip
        self.read = nn.Linear(width, 2)

    def forward(self, adjacency: Tensor) -> Tensor:
        h = adjacency.new_ones(*adjacency.shape[:2], 1)
        for messages in self.rounds:
            h = messages(adjacency @ h + h)
        return self.read(h.mean(1))


def task(settings: BenchSettings) -> GroundTruthTask:
    """Generate graphs, and train a graph network on them."""
    x, y, motif = graphs(N_TRAIN + settings.n_test(500), settings.generator(SUITE))
    for seed in range(settings.seed, settings.seed + ATTEMPTS):  # one training in five ends at chance
        model = train(GraphNetwork, x[:N_TRAIN], y[:N_TRAIN], settings.cache_dir, seed=seed, epochs=40, rate=5e-3)
        accuracy, right = correct_samples(model, x[N_TRAIN:], y[N_TRAIN:], settings.n_samples)
        if accuracy >= REQUIRED:
            break
    rows = N_TRAIN + right
    return GroundTruthTask(
        SUITE, "graph network", model, x[rows], y[rows], motif[rows], (EdgeAUC(),), x[:100], accuracy, REQUIRED, kind="graph"
    )


TASKS: dict[str, TaskFactory] = {"graph network": task}
