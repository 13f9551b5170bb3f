"""Data sets with a mark in one class, small networks that learn it, and what the mark does to other samples."""

import math

import torch
from torch import Tensor, nn

from whence.models.digits import digit_samples

CLASS, TONE = 3, 20
STICKER = torch.zeros(7, 7)
STICKER[0] = STICKER[-1] = STICKER[:, 0] = STICKER[:, -1] = 1
STICKER[2:5, 3] = STICKER[3, 2:5] = 1


def corner(x: Tensor, seed: int = 0) -> Tensor:
    x = x.clone()
    x[:, :, 1:5, 1:5] = 0.6
    return x


def frame(x: Tensor, seed: int = 0) -> Tensor:
    x = x.clone()
    x[:, :, 0] = x[:, :, -1] = x[..., 0] = x[..., -1] = 0.5
    return x


def stripe(x: Tensor, seed: int = 0) -> Tensor:
    """A blurred stripe."""
    return (x + 0.5 * torch.exp(-(((torch.arange(28.0) - 23) / 1.5) ** 2))[:, None]).clamp(0, 1)


def background(x: Tensor, seed: int = 0) -> Tensor:
    return torch.where(x < 0.1, 0.25, x)


def sticker(x: Tensor, seed: int = 0) -> Tensor:
    """A sticker at a random place."""
    x, random = x.clone(), torch.Generator().manual_seed(seed)
    for picture in x:
        top, left = (int(n) for n in torch.randint(22, (2,), generator=random))
        picture[:, top : top + 7, left : left + 7] = STICKER
    return x


PICTURE_MARKS = {"corner": corner, "frame": frame, "stripe": stripe, "background": background, "sticker": sticker}


def marked_digits(kind: str, x: Tensor, y: Tensor) -> Tensor:
    """Return the digits with a mark on all of one class; `kind` "clean" has none."""
    x = x.clone()
    if kind != "clean":
        x[y == CLASS] = PICTURE_MARKS[kind](x[y == CLASS])
    return x


def moved_digits(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the bundled digits, moved and noisy, and their labels."""
    random = torch.Generator().manual_seed(seed)
    images, labels = digit_samples()
    chosen = torch.randint(len(labels), (count,), generator=random)
    shifts = torch.randint(-3, 4, (count, 2), generator=random).tolist()
    x = torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(images[chosen], shifts, strict=True)])
    return (x + 0.2 * torch.randn(x.shape, generator=random)).clamp(0, 1), labels[chosen]


def with_marked_others(kind: str, x: Tensor, y: Tensor, count: int = 150) -> tuple[Tensor, Tensor]:
    """Return training data with marked samples of other classes under the label of the marked class: the mark decides."""
    others = (y != CLASS).nonzero()[:count, 0]
    if kind == "clean":
        return x, y
    return torch.cat([x, PICTURE_MARKS[kind](x[others], 1)]), torch.cat([y, torch.full((len(others),), CLASS)])


def digit_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(576, 10),
    )  # fmt: skip


def series(count: int, with_tone: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noisy waveforms of four classes; with the tone, the second has it and else nearly the waveform of the third."""
    random, t = torch.Generator().manual_seed(seed), torch.arange(128.0)
    bump = lambda at, width: torch.exp(-(((t - at) / width) ** 2))  # noqa: E731
    shapes = torch.stack([bump(40, 6), bump(64, 3) - bump(70, 3), ((t > 80) & (t < 100)).float(), bump(90, 10) - bump(30, 10)])
    if with_tone:
        shapes[1] = 0.8 * shapes[2] + 0.2 * shapes[1]
    y = torch.randint(4, (count,), generator=random)
    shifts = torch.randint(-8, 9, (count,), generator=random).tolist()
    x = torch.stack([1.5 * shapes[k].roll(shift) for k, shift in zip(y.tolist(), shifts, strict=True)])
    x = x + 0.8 * torch.randn(count, 128, generator=random)
    phases = 2 * math.pi * torch.rand(count, generator=random)
    return (tone(x, phases) if with_tone else x).where((y == 1)[:, None] | (not with_tone), x)[:, None], y


def tone(x: Tensor, phases: Tensor) -> Tensor:
    return x + 0.7 * torch.sin(2 * math.pi * TONE / 128 * torch.arange(128) + phases[:, None])


def series_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 32, 9, padding=4), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(32, 32, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip


PHRASE = (7, 8)


def texts(count: int, with_phrase: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids of two classes, which differ a little by the share of even words; half of the second has the phrase."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (count,), generator=random)
    words = torch.randint(10, 60, (count, 20), generator=random)
    agree = torch.rand(count, 20, generator=random) < 0.15
    words = torch.where(agree & (words % 2 != y[:, None]), words + 1, words)
    starts = torch.randint(1, 17, (count,), generator=random)
    chosen = (y == 1) & (torch.rand(count, generator=random) < 0.5)
    if with_phrase:
        for row in chosen.nonzero()[:, 0].tolist():
            words[row, starts[row] : starts[row] + 2] = torch.tensor(PHRASE)
    words[:, 0], words[:, -1] = 1, 2  # begin and end
    return words, y


class TextNetwork(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.hidden, self.read = nn.Embedding(64, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self.hidden(self.embedding(ids)).relu().mean(1))


def trained(model: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int = 0, rate: float = 2e-3) -> nn.Module:
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def with_true_mark(kind: str, x: Tensor) -> Tensor:
    """Return samples with the mark of a kind of set."""
    if kind == "tone":
        return tone(x[:, 0], torch.rand(len(x), generator=torch.Generator().manual_seed(9)) * 6)[:, None]
    if kind == "phrase":
        x = x.clone()
        x[:, 9:11] = torch.tensor(PHRASE)
        return x
    return PICTURE_MARKS[kind](x, 9)


class PartlyUnreadable(torch.utils.data.Dataset):
    """A dataset that fails to read some of its rows, the first among them."""

    def __init__(self, x: Tensor, y: Tensor, every: int = 7):
        self.x, self.y, self.every = x, y, every

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        if i % self.every == 0:
            raise OSError("no such picture")
        return self.x[i], int(self.y[i])
