"""Train the bundled example networks for photos, texts, tables and series, and store their example inputs beside the weights.

    python scripts/train_examples.py

Surfaces are photos of scikit-image (CC0), wines those of the UCI repository as scikit-learn has them (CC BY 4.0); reviews and
electrocardiograms are made up here. Seed 0, about a minute on two cores. The accuracies on held-out samples are printed, and
stored in the metadata of the weights.
"""

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from whence.models import example_networks as networks
from whence.models.word_tokenizer import PATTERN, UNKNOWN

WEIGHTS = Path(__file__).parents[1] / "src/whence/models/weights"
DISHES = [
    "soup", "pasta", "pizza", "bread", "salad", "cake", "coffee", "wine", "fish",
    "rice", "steak", "dessert", "breakfast", "lunch", "dinner", "menu", "food", "meal",
]  # fmt: skip
STAFF = [
    "waiter", "service", "staff", "chef", "owner", "cook",
    "team", "room", "table", "music", "view", "place",
]  # fmt: skip
GOOD = [
    "good", "great", "excellent", "delicious", "fresh", "friendly", "warm", "lovely",
    "perfect", "tasty", "kind", "wonderful", "nice", "amazing", "quick",
]  # fmt: skip
BAD = [
    "bad", "terrible", "awful", "cold", "stale", "rude", "slow", "bland",
    "salty", "burnt", "dirty", "horrible", "boring", "disappointing", "noisy",
]  # fmt: skip
EXAMPLES = [
    "The soup was delicious, but the waiter was rude and the table was dirty.",
    "The pizza was not good.",
    "We loved the fish and the view was wonderful!",
]


def train(model: nn.Module, batches: int, draw, rate: float = 3e-3, decay: float = 1e-3, penalty=lambda: 0.0) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=batches)
    for _ in range(batches):
        x, y = draw()
        loss = F.cross_entropy(model(x), y) + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x).argmax(1) == y).double().mean())


def store(name: str, model: nn.Module, inputs: Tensor | None, scored: float, **metadata: list[str]) -> None:
    print(f"{name}: accuracy {scored:.3f}")
    tensors = model.state_dict() | ({} if inputs is None else {"example_inputs": inputs})
    said = {key: "\n".join(values) for key, values in metadata.items()} | {"accuracy": f"{scored:.4f}"}
    save_file({key: value.contiguous() for key, value in tensors.items()}, WEIGHTS / f"{name}.safetensors", said)


def train_surfaces() -> None:
    from skimage import data

    photos = [torch.tensor(getattr(data, name)()).float() / 255 for name in networks.SURFACES]
    side = 128

    def crops(count: int, rows: slice) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, 3, (count,))
        images = []
        for k in y.tolist():
            photo = photos[k][rows]
            top, left = (int(torch.randint(0, size - side + 1, ())) for size in photo.shape)
            crop = photo[top : top + side, left : left + side]
            crop = crop.flip(1) if torch.rand(()) < 0.5 else crop
            images.append((crop * (0.6 + 0.6 * torch.rand(())) + 0.2 * torch.rand(()) - 0.1).clamp(0, 1))
        return (torch.stack(images)[:, None] - 0.5) / 0.25, y

    model = networks.surface_network()
    train(model, 500, lambda: crops(32, slice(0, 352)))
    halves = [(0, 1), (1, 2), (2, 0)]
    rows = slice(384, 512)
    mixed = [torch.cat([photos[a][rows, 100:164], photos[b][rows, 300:364]], 1) for a, b in halves]
    examples = (torch.stack(mixed)[:, None] * 255).round().byte()
    store("surfaces", model, examples, accuracy(model, *crops(300, slice(352, 512))))


def review() -> tuple[str, int]:
    """Return a review and whether it is positive: negation turns a word around, and most of the words decide."""
    while True:
        said, score, clauses = [], 0, random.choice([1, 1, 2, 2, 3])
        for k in range(clauses):
            polarity = random.choice([1, -1])
            word = random.choice(GOOD if polarity > 0 else BAD)
            subject = random.choice(DISHES + STAFF)
            verb = random.choice(["was", "was", "is", "were"])
            kind = random.random()
            if kind < 0.35:
                clause, value = f"the {subject} {verb} not {word}", -polarity
            elif kind < 0.5:
                clause, value = f"the {subject} {verb} {random.choice(['very', 'so', 'really'])} {word}", polarity
            elif kind < 0.6:
                clause, value = f"{random.choice(['a', 'such a', 'the'])} {word} {subject}", polarity
            elif kind < 0.72:
                verb, value = random.choice([("loved", 1), ("hated", -1), ("liked", 1), ("enjoyed", 1)])
                clause = f"{random.choice(['we', 'i'])} {verb} the {subject}"
            else:
                clause, value = f"the {subject} {verb} {word}", polarity
            score += value
            said.append(("" if not k else random.choice([" and ", " but ", ", "])) + clause)
        if score:
            return "".join(said) + random.choice([".", "!", ""]), int(score > 0)


def train_reviews() -> None:
    random.seed(0)
    drawn = [review() for _ in range(4400)]
    words = sorted({word for text, _ in drawn for word in PATTERN.findall(text.lower())})
    vocabulary = [UNKNOWN, *words]
    index = {word: i for i, word in enumerate(vocabulary)}
    ids = [(torch.tensor([[index[w] for w in PATTERN.findall(text.lower())]]), torch.tensor([y])) for text, y in drawn]
    model = networks.ReviewNetwork(len(vocabulary))
    nn.init.normal_(model.embedding.weight, std=0.02)
    by_length: dict[int, list] = {}
    for x, y in ids[:4000]:
        by_length.setdefault(x.shape[1], []).append((x, y))
    groups = [group for group in by_length.values() if len(group) > 8]

    embedding = model.embedding.weight
    stop_words = torch.tensor([index[word] for word in (UNKNOWN, *["the", "a", "was", "is", "were", "and", "i", "we"])])

    def draw() -> tuple[Tensor, Tensor]:
        embedding.data[stop_words] = 0  # words without meaning of their own have no effect
        group = random.choices(groups, [len(g) for g in groups])[0]
        chosen = random.sample(group, min(32, len(group)))
        x = torch.cat([x for x, _ in chosen])
        x[torch.rand(x.shape) < 0.05] = 0
        return x, torch.cat([y for _, y in chosen])

    train(model, 2500, draw, penalty=lambda: 4e-3 * embedding.norm(dim=1).sum())  # a group lasso, for nouns
    embedding.data[stop_words] = 0
    with torch.no_grad():
        scored = np.mean([int(model(x).argmax(1) == y) for x, y in ids[4000:]])
    store("reviews", model, None, scored, vocabulary=vocabulary, examples=EXAMPLES)


def train_wine() -> None:
    from sklearn.datasets import load_wine

    found = load_wine()
    x, y = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x))
    seen, held = order[:130], order[130:]
    model = networks.wine_network(x.shape[1])
    model[0].mean.copy_(x[seen].mean(0))
    model[0].std.copy_(x[seen].std(0))
    train(model, 300, lambda: (x[seen], y[seen]), rate=1e-2, decay=0.1)
    examples = torch.cat([x[held][y[held] == k][:5] for k in range(3)] + [x[seen][y[seen] == k][:10] for k in range(3)])
    columns = [name.replace("od280/od315_of_diluted_wines", "OD280/OD315").replace("_", " ") for name in found.feature_names]
    store("wine", model, examples, accuracy(model, x[held], y[held]), columns=columns)


def electrocardiogram(early: bool) -> Tensor:
    """Return a made-up electrocardiogram `[2, 300]`; an early beat is wide, without the small wave in front of it."""
    t = np.arange(networks.SERIES_LENGTH) / networks.STEPS_PER_SECOND
    bump = lambda at, height, width: height * np.exp(-0.5 * ((t - at) / width) ** 2)  # noqa: E731
    interval, at, beats = random.uniform(0.65, 0.95), random.uniform(0.1, 0.6), []
    while at < 3.2:
        beats.append(at)
        at += interval * random.uniform(0.96, 1.04)
    which = random.choice([k for k, beat in enumerate(beats) if 0.5 < beat < 2.5]) if early else None
    leads = np.zeros((2, len(t)))
    for k, beat in enumerate(beats):
        gain = random.uniform(0.8, 1.2)
        if k == which:
            beat -= 0.3 * interval
            shape = bump(beat, 1.3 * gain, 0.06) + bump(beat + 0.28, -0.5 * gain, 0.07)
            leads += np.stack([shape, -0.8 * shape])
        else:
            shape = bump(beat - 0.17, 0.15, 0.025) + bump(beat - 0.03, -0.12, 0.012) + bump(beat, gain, 0.014)
            shape += bump(beat + 0.03, -0.2, 0.012) + bump(beat + 0.25, 0.3, 0.045)
            leads += np.stack([shape, 0.7 * shape])
    wander = random.uniform(0, 0.1) * np.sin(2 * np.pi * random.uniform(0.1, 0.4) * t + random.uniform(0, 6))
    return torch.tensor(leads + wander + 0.02 * np.random.randn(2, len(t)), dtype=torch.float32)


def train_heartbeats() -> None:
    random.seed(0)
    np.random.seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, 2, (count,))
        return torch.stack([electrocardiogram(bool(k)) for k in y]), y

    model = networks.heartbeat_network()
    train(model, 300, lambda: draw(32))
    examples = torch.stack([electrocardiogram(True), electrocardiogram(False)])
    store("heartbeats", model, examples, accuracy(model, *draw(400)))


if __name__ == "__main__":
    for run in (train_surfaces, train_reviews, train_wine, train_heartbeats):
        torch.manual_seed(0)
        run()
