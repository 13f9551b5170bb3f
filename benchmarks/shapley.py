"""Shapley values: error at a budget beside shapiq's and captum's estimators, and the time of exact values beside captum's.

    python benchmarks/shapley.py        # prints the tables and writes benchmarks/results/shapley.md

Two games of 12 players (shared/notes/peers-and-shapley.md): A, a ReLU network, and B, sixty conjunctions of up to four players.
Figures are medians over twelve seeds of ‖φ̂ − φ‖² / ‖φ‖² against the table of all 2^12 coalitions.
"""

import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import nn

import peers
import whence

N, SEEDS, BUDGETS = 12, range(12), (60, 120, 240, 600, 1200)
Game = Callable[[np.ndarray], np.ndarray]


def game_a(seed: int) -> Game:
    random = np.random.default_rng(seed)
    w1, b1 = 2 * random.standard_normal((N, 32)) / np.sqrt(N), 0.5 * random.standard_normal(32)
    w2, w3 = 2 * random.standard_normal((32, 16)) / np.sqrt(32), random.standard_normal(16) / 4
    x = random.standard_normal(N)
    return lambda members: np.maximum(np.maximum((members * x) @ w1 + b1, 0) @ w2, 0) @ w3


def game_b(seed: int) -> Game:
    random, terms = np.random.default_rng(seed), []
    for _ in range(60):
        order = int(random.integers(1, 5))
        terms.append((random.choice(N, order, replace=False), random.standard_normal()))
    x = random.uniform(0.4, 1.5, N)
    return lambda members: sum(c * ((members * x)[:, players] > 0.3).all(1) for players, c in terms)


def of_tensors(game: Game) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda members: torch.from_numpy(np.asarray(game(members.numpy().astype(float)), dtype=float))


def exact(game: Game) -> np.ndarray:
    return whence.shapley_values(of_tensors(game), N, estimator="exact").values.numpy()


def by_whence(estimator: str | None) -> Callable[[Game, int, int], np.ndarray]:
    def estimate(game: Game, budget: int, seed: int) -> np.ndarray:
        found = whence.shapley_values(of_tensors(game), N, estimator=estimator, budget=budget, seed=seed)  # type: ignore[arg-type]
        assert found.evaluations <= budget
        return found.values.numpy()

    return estimate


def by_shapiq(name: str, **settings: object) -> Callable[[Game, int, int], np.ndarray]:
    def estimate(game: Game, budget: int, seed: int) -> np.ndarray:
        from shapiq import approximator

        in_rows = lambda members: game(np.atleast_2d(members).astype(float))  # noqa: E731
        found = getattr(approximator, name)(n=N, random_state=seed, **settings).approximate(budget, in_rows)
        return np.array([found[(i,)] for i in range(N)])

    return estimate


def by_captum(name: str) -> Callable[[Game, int, int], np.ndarray]:
    def estimate(game: Game, budget: int, seed: int) -> np.ndarray:
        from captum import attr

        torch.manual_seed(seed)
        np.random.seed(seed)
        samples = budget if name == "KernelShap" else max(1, (budget - 1) // N)
        found = getattr(attr, name)(of_tensors(game)).attribute(torch.ones(1, N, dtype=torch.float64), n_samples=samples)
        return found[0].detach().numpy()

    return estimate


WAYS = {
    "whence (default)": by_whence(None),
    "whence, permutation": by_whence("permutation"),
    "shapiq KernelSHAP, paired": by_shapiq("KernelSHAP", pairing_trick=True),
    "shapiq kADD-SHAP, order 2": by_shapiq("kADDSHAP", max_order=2),
    "shapiq KernelSHAP": by_shapiq("KernelSHAP"),
    "shapiq PermutationSamplingSV": by_shapiq("PermutationSamplingSV"),
    "shapiq SVARM": by_shapiq("SVARM"),
    "shapiq UnbiasedKernelSHAP": by_shapiq("UnbiasedKernelSHAP"),
    "captum KernelShap": by_captum("KernelShap"),
    "captum ShapleyValueSampling": by_captum("ShapleyValueSampling"),
}


def errors(make: Callable[[int], Game]) -> dict[str, list[float]]:
    games = [make(seed) for seed in SEEDS]
    truths = [exact(game) for game in games]

    def error(way: Callable[[Game, int, int], np.ndarray], budget: int) -> float:
        found = [way(game, budget, seed) for seed, game in zip(SEEDS, games, strict=True)]
        return median(((f - t) ** 2).sum() / (t**2).sum() for f, t in zip(found, truths, strict=True))

    return {name: [error(way, budget) for budget in BUDGETS] for name, way in WAYS.items()}


def table(name: str, make: Callable[[int], Game]) -> list[str]:
    found = errors(make)
    best = [min(column) for column in zip(*found.values(), strict=True)]
    rows = [
        f"| {way} | " + " | ".join(f"**{e:.1e}**" if e == b else f"{e:.1e}" for e, b in zip(row, best, strict=True)) + " |"
        for way, row in found.items()
    ]
    head = f"| game {name}, evaluations | " + " | ".join(map(str, BUDGETS)) + " |"
    return [head, "|---" * (len(BUDGETS) + 1) + "|", *rows]


def network(players: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(players, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).eval()


def times() -> list[str]:
    from captum.attr import ShapleyValues

    large, small = network(16), network(8)
    x16, x8 = torch.randn(1, 16), torch.randn(1, 8)
    exact16 = whence.Shapley(estimator="exact")
    ways = {
        "whence, n = 16: 2^16 coalitions": lambda: whence.explain(large, x16, 0, method=exact16),
        "whence, n = 8": lambda: whence.explain(small, x8, 0, method=exact16),
        "captum ShapleyValues, n = 8: 8! orders, perturbations_per_eval=1": lambda: ShapleyValues(small).attribute(
            x8, target=0
        ),
        "captum ShapleyValues, n = 8, perturbations_per_eval=256": lambda: ShapleyValues(small).attribute(
            x8, target=0, perturbations_per_eval=256
        ),
    }
    torch.testing.assert_close(
        whence.explain(small, x8, 0, method=exact16).relevance,
        ShapleyValues(small).attribute(x8, target=0),
        rtol=1e-3,
        atol=1e-5,
    )
    found = peers.seconds(ways, 1)
    first = next(iter(found.values()))
    rows = [f"| {name} | {seconds / first:.2f} | {seconds:.3f} |" for name, seconds in found.items()]
    return ["| exact values, a network of 64 units | time / ours at n = 16 | seconds |", "|---|---|---|", *rows]


def main() -> None:
    warnings.filterwarnings("ignore")
    heading = f"# Shapley values\n\n{peers.versions('captum', 'shapiq')}.\n"
    peers.write("shapley", heading, table("A", game_a), table("B", game_b), times())


if __name__ == "__main__":
    main()
