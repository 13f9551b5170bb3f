"""Drawn figures: pictures of a body with a head, a tail and a mark on it, of which any part can be left out.

They serve two suites. *Drawn parts* follows FunnyBirds (Hesse et al. 2023): the output without a part is measured on a picture
drawn without it, which looks like those that the network was trained on. *Mosaics* follows DiFull (Rao et al. 2022): four
pictures beside each other, and a network in which the class of one cannot depend on the others.
"""

import torch
from torch import Tensor, nn

from whence.benchmarking.ground_truth_metrics import PartCorrelation
from whence.benchmarking.ground_truth_task import BenchSettings, GroundTruthTask, TaskFactory, correct_samples
from whence.benchmarking.small_networks import train
from whence.evaluation.metrics.localization import RelevanceMass

PARTS, MOSAICS = "drawn parts", "mosaics"
SIDE, N_TRAIN = 32, 12_000
PART_NAMES = ("head", "tail", "mark", "foot")
# the variants of head, tail, mark and foot of each class; any two classes differ in at least two parts
CLASSES = torch.tensor([
    [0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 2, 0], [0, 1, 2, 1], [1, 2, 0, 1], [2, 0, 1, 1], [0, 2, 1, 2], [1, 0, 2, 2],
])  # fmt: skip
COLORS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.3], [0.2, 0.3, 0.9]])
GROUND = 0.1  # of noise


def figures(y: Tensor, random: torch.Generator, shown: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw a figure of each class `[N]`; the variants of its parts say what it is, its place and size vary.

    Args:
        y: Classes, `[N]`.
        random: Random generator; the same state draws the same figures.
        shown: Which parts to draw, `[N, P]`; all by default.

    Returns:
        The pictures `[N, 3, 32, 32]` in [0, 1], and the part at each pixel, `[N, 32, 32]`, −1 for none.
    """
    n = len(y)
    shown = torch.ones(n, len(PART_NAMES), dtype=torch.bool) if shown is None else shown
    background = torch.rand(n, 3, 1, 1, generator=random) * 0.4 + 0.3
    x = background + GROUND * torch.randn(n, 3, SIDE, SIDE, generator=random)
    center = 13 + 6 * torch.rand(n, 2, 1, 1, generator=random)
    rows, columns = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)), indexing="ij")
    u, v = rows - center[:, 0], columns - center[:, 1]
    body = (u / 6) ** 2 + (v / 8) ** 2 < 1
    x = torch.where(body[:, None], 0.75 + 0 * x, x)
    parts = torch.full((n, SIDE, SIDE), -1)
    variants = CLASSES[y]
    for part, draw in enumerate((_heads, _tails, _marks, _feet)):
        masks = torch.stack(draw(u, v), 1)  # [N, variants, H, W]
        mask = masks[torch.arange(n), variants[:, part]] & shown[:, part, None, None]
        color = COLORS[(variants[:, part] + part) % len(COLORS)][:, :, None, None]
        x = torch.where(mask[:, None], color, x)
        parts = torch.where(mask, part, parts)
    return x.clamp(0, 1), parts


def _heads(u: Tensor, v: Tensor) -> list[Tensor]:
    u, v = u + 5, v + 9
    return [u**2 + v**2 < 12, torch.maximum(u.abs(), v.abs()) < 3.2, u.abs() + v.abs() < 4.5]


def _tails(u: Tensor, v: Tensor) -> list[Tensor]:
    v = v - 10
    return [(u.abs() < 1.5) & (v.abs() < 4), (u.abs() < v + 3) & (v < 3), (u.abs() < 5) & (v.abs() < 1.6)]


def _marks(u: Tensor, v: Tensor) -> list[Tensor]:
    v = v - 1
    return [u**2 + v**2 < 7, (u.abs() < 1.2) & (v.abs() < 4), (u.abs() < 4) & (v.abs() < 1.2)]


def _feet(u: Tensor, v: Tensor) -> list[Tensor]:
    u = u - 8
    return [
        (u.abs() < 3) & (v.abs() < 1.4),
        (u.abs() < 3) & ((v - 3).abs() < 1.2) | (u.abs() < 3) & ((v + 3).abs() < 1.2),
        ((u - 1).abs() < 1.5) & (v.abs() < 4.5),
    ]


def picture_network(classes: int = len(CLASSES)) -> nn.Module:
    """Return a small convolutional network with batch norm."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if after > before else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * (SIDE // 8) ** 2, 64), nn.ReLU(), nn.Linear(64, classes))


class OneCellPerClass(nn.Module):
    """A network on each cell of a 2 × 2 mosaic, apart: output 8 · cell + class sees that cell alone."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        half = [slice(0, SIDE), slice(SIDE, 2 * SIDE)]
        return torch.cat([self.network(x[..., rows, columns]) for rows in half for columns in half], 1)


def train_on_figures(settings: BenchSettings) -> nn.Module:
    """Train the network on figures, of which half lack some parts, as the pictures of the measurement do."""
    random = settings.generator("drawn figures")
    y = torch.randint(len(CLASSES), (N_TRAIN,), generator=random)
    complete = torch.rand(N_TRAIN, 1, generator=random) < 0.5
    shown = complete | (torch.rand(N_TRAIN, len(PART_NAMES), generator=random) < 0.7)
    x, _ = figures(y, random, shown)
    return train(picture_network, x, y, settings.cache_dir, seed=settings.seed, epochs=6)


def parts_task(settings: BenchSettings) -> GroundTruthTask:
    """Measure how much of the output each part carries, on pictures drawn without it."""
    model, random = train_on_figures(settings), settings.generator(PARTS)
    y = torch.randint(len(CLASSES), (settings.n_test(200),), generator=random)
    state = random.get_state()
    x, parts = figures(y, random)
    accuracy, rows = correct_samples(model, x, y, settings.n_samples)
    drops = []
    with torch.no_grad():
        whole = model(x).gather(1, y[:, None])
        for part in range(len(PART_NAMES)):
            shown = (torch.arange(len(PART_NAMES)) != part).expand(len(y), -1)
            without, _ = figures(y, random.set_state(state), shown)
            drops.append(whole - model(without).gather(1, y[:, None]))
    metric = PartCorrelation(parts[rows], torch.cat(drops, 1)[rows])
    background = _background(settings)
    return GroundTruthTask(PARTS, "CNN", model, x[rows], y[rows], parts[rows] >= 0, (metric,), background, accuracy, 0.9)


def mosaic_task(settings: BenchSettings) -> GroundTruthTask:
    """Put four figures beside each other, and explain the class of one."""
    model, random = OneCellPerClass(train_on_figures(settings)).eval(), settings.generator(MOSAICS)
    count = 2 * settings.n_samples
    y = torch.randint(len(CLASSES), (4 * count,), generator=random)
    cells = figures(y, random)[0].unflatten(0, (count, 4))
    x = torch.cat([torch.cat([cells[:, 0], cells[:, 1]], 3), torch.cat([cells[:, 2], cells[:, 3]], 3)], 2)
    cell = torch.randint(4, (count,), generator=random)
    own = y.view(count, 4).gather(1, cell[:, None])[:, 0]
    with torch.no_grad():
        rows = model(x).unflatten(1, (4, -1))[torch.arange(count), cell]
    right = rows.argmax(1) == own
    chosen = right.nonzero()[: settings.n_samples, 0]
    mask = torch.eye(4, dtype=torch.bool)[cell].view(count, 2, 2).repeat_interleave(SIDE, 1).repeat_interleave(SIDE, 2)
    target = len(CLASSES) * cell + own
    single = _background(settings)
    background = torch.cat([torch.cat([single, single], 3)] * 2, 2)
    return GroundTruthTask(
        MOSAICS, "one cell per class", model, x[chosen], target[chosen], mask[chosen], (RelevanceMass(),), background,
        float(right.double().mean()), 0.9,
    )  # fmt: skip


def _background(settings: BenchSettings) -> Tensor:
    random = settings.generator("background of figures")
    return figures(torch.randint(len(CLASSES), (100,), generator=random), random)[0]


TASKS: dict[str, TaskFactory] = {PARTS: parts_task, MOSAICS: mosaic_task}
