"""Lexical shortcuts (Bastings et al. 2022): two new tokens in generated texts, whose presence or order sets the label."""

from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whence.benchmarking.ground_truth_metrics import TruthPrecision
from whence.benchmarking.ground_truth_task import BenchSettings, GroundTruthTask, TaskFactory, correct_samples
from whence.benchmarking.small_networks import train

SUITE = "lexical shortcuts"
PAD, FIRST, SECOND = 0, 1, 2  # token ids; the words of ordinary texts follow
N_WORDS, LENGTH, N_TRAIN = 200, 20, 8000


def texts(shortcut: str, count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids `[N, T]`, labels `[N]` and masks of the two tokens `[N, T]`.

    Presence: the first token alone means label 0, the second label 1. Order: both are there, and which comes first decides.
    """
    frequency = 1 / torch.arange(1.0, N_WORDS + 1)  # Zipf's law
    ids = 3 + torch.multinomial(frequency, count * LENGTH, replacement=True, generator=random).view(count, LENGTH)
    y = torch.randint(2, (count,), generator=random)
    places = torch.rand(count, LENGTH, generator=random).argsort(1)[:, :2].sort(1).values
    if shortcut == "presence":
        places = places[:, :1]
        tokens = torch.where(y == 0, FIRST, SECOND)[:, None]
    else:
        tokens = torch.where(y[:, None] == 0, torch.tensor([FIRST, SECOND]), torch.tensor([SECOND, FIRST]))
    mask = torch.zeros(count, LENGTH, dtype=torch.bool).scatter_(1, places, True)
    return ids.scatter(1, places, tokens), y, mask


class TransformerBlock(nn.Module):
    """Self-attention and a layer of GELUs, each behind a layer norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.queries_keys_values(self.norm_1(h)).chunk(3, 2)
        )
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.mlp(self.norm_2(h))


class TextClassifier(nn.Module):
    """A transformer of two blocks over token ids, with learned positions, whose mean is read."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=PAD)  # as models of transformers name it
        self.embedding = nn.Embedding(3 + N_WORDS, width)
        self.positions = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.blocks = nn.Sequential(TransformerBlock(width, 2), TransformerBlock(width, 2))
        self.norm, self.read = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.blocks(self.embedding(ids) + self.positions)
        return self.read(self.norm(h).mean(1))


def task(shortcut: str, settings: BenchSettings) -> GroundTruthTask:
    """Generate texts, and train a transformer on them, with some words replaced by padding so that it learns what that is."""
    random = settings.generator(f"{SUITE} {shortcut}")
    ids, y, mask = texts(shortcut, N_TRAIN + settings.n_test(), random)
    dropped = (torch.rand(N_TRAIN, LENGTH, generator=random) < 0.1) & ~mask[:N_TRAIN]
    seen = ids[:N_TRAIN].masked_fill(dropped, PAD)
    model = train(TextClassifier, seen, y[:N_TRAIN], settings.cache_dir, seed=settings.seed, epochs=15, rate=2e-3)
    accuracy, right = correct_samples(model, ids[N_TRAIN:], y[N_TRAIN:], settings.n_samples)
    rows = N_TRAIN + right
    return GroundTruthTask(
        SUITE, shortcut, model, ids[rows], y[rows], mask[rows], (TruthPrecision(),), ids[:100], accuracy, 0.95, "tokens", PAD
    )


TASKS: dict[str, TaskFactory] = {shortcut: partial(task, shortcut) for shortcut in ("presence", "order")}
