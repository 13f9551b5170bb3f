"""Pictures of explanations of every kind of input, to look at.

python scripts/kinds_of_input.py ../shared/data            # all of them, into docs/images/kinds
python scripts/kinds_of_input.py ../shared/data series_last
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import torch
from torch import nn

import whence

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import support.torchvision_operators  # noqa: F401
from support.story_model import story_model, story_tokenizer

KINDS = Path(__file__).parents[1] / "docs" / "images" / "kinds"
PHOTOS = Path(skimage.__file__).parent / "data"


def _photo(data: Path, box: tuple[int, int, int, int]) -> Any:
    """Return the explanation of a part of a photo of a cat, in its own shape."""
    from PIL import Image

    loaded = whence.load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (whence.presets.IMAGENET_MEAN, whence.presets.IMAGENET_STD))
    pixels = np.asarray(Image.open(PHOTOS / "chelsea.png").convert("RGB").crop(box)) / 255
    x = (torch.from_numpy(pixels).float().movedim(2, 0) - mean) / std
    return whence.explain(loaded.model, x[None], 281, class_names=loaded.class_names)


def photo_landscape(data: Path) -> Any:
    return _photo(data, (0, 0, 451, 300))


def photo_portrait(data: Path) -> Any:
    return _photo(data, (120, 0, 310, 300))


def grey_digit(_: Path) -> Any:
    from whence.models.digits import digit_samples, digits

    return whence.explain(digits(), digit_samples()[0][7:9])


def volume(_: Path) -> Any:
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    place = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (16, 48, 40)), indexing="ij"))
    x = torch.exp(-8 * ((place - torch.tensor([0.2, 0.3, -0.2]).view(3, 1, 1, 1)) ** 2).sum(0)) + 0.05 * torch.rand(16, 48, 40)
    return whence.explain(net.eval(), x[None, None], 1, class_names=["healthy", "lesion"])


def _trained(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def _bumps(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return series `[N, 40, 2]`, of which every second has a bump in its first channel."""
    x, y = 0.2 * torch.randn(count, 40, 2), torch.arange(count) % 2
    for i in range(1, count, 2):
        start = int(torch.randint(5, 30, ()))
        x[i, start : start + 6, 0] += torch.hann_window(6)
    return x, y


class Recurrent(nn.Module):
    """An LSTM on series `[N, T, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 24, batch_first=True), nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0].amax(1))


def series_last(_: Path) -> Any:
    import pandas as pd

    x, y = _bumps(300)
    e = whence.explain(
        _trained(Recurrent(), x, y), x[1:2], whence.Logit(1, rather_than=0), feature_names=["flow", "pressure"],
        class_names=["calm", "surge"],
    )  # fmt: skip
    return e.with_time(pd.date_range("2026-03-01", periods=40, freq="D"))


def series_first(_: Path) -> Any:
    x, y = _bumps(300)
    net = nn.Sequential(nn.Conv1d(2, 16, 7), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 2))
    x = x.movedim(2, 1)
    e = whence.explain(_trained(net, x, y), x[1:2], 1, feature_names=["flow", "pressure"], class_names=["calm", "surge"])
    return e.with_time(sampling_rate=10)


def _table(columns: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, columns, generator=generator)
    y = ((2 * x[:, 0] - x[:, 1] + x[:, 2] * x[:, 3]) > 0).long()
    net = _trained(nn.Sequential(nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, 2)), x, y)
    names = ["age", "income", "debt", "tenure", "visits", *(f"measurement_of_sensor_{i}_mean" for i in range(5, columns))]
    method = whence.Shapley(background=x[:50]) if columns <= 5 else whence.LRP()
    return whence.explain(
        net, x[:1], 1, method=method, feature_names=names[:columns], class_names=["no", "yes"], progress=False
    )


def table_5(_: Path) -> Any:
    return _table(5)


def table_60(_: Path) -> Any:
    return _table(60)


def table_600(_: Path) -> Any:
    return _table(600)


def table_rows(_: Path) -> Any:
    """Many rows of a frame with categories, by a pipeline."""
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "age": rng.integers(18, 80, 300), "income": rng.normal(3e4, 8e3, 300).round(), "debt": rng.gamma(2, 4e3, 300).round(),
        "color": rng.choice(["red", "green", "blue"], 300),
    })  # fmt: skip
    y = np.where(frame.age + 20 * (frame.color == "red") - frame.debt / 1e3 > 45, "buys", "leaves")
    columns = make_column_transformer((OneHotEncoder(), ["color"]), remainder="passthrough")
    pipeline = make_pipeline(columns, RandomForestClassifier(50, random_state=0)).fit(frame, y)
    return whence.explain(pipeline, frame[:150], "buys", method=whence.Shapley(background=frame[150:180]), progress=False)


def text_8(data: Path) -> Any:
    model, tokenizer = story_model(data), story_tokenizer(data)
    return whence.explain(model, "Once upon a time there was a dog", tokenizer=tokenizer)


def text_800(data: Path) -> Any:
    model, tokenizer = story_model(data), story_tokenizer(data)
    text = "Lily went to the park with her dog. The dog was brown and it liked to run. They saw a red ball under a tree. " * 12
    return whence.explain(model, text[:1200], tokenizer=tokenizer)


def text_generation(data: Path) -> Any:
    model, tokenizer = story_model(data), story_tokenizer(data)
    return whence.explain_generation(model, "Lily had a red", tokenizer=tokenizer, max_new_tokens=8)


def several_inputs(_: Path) -> Any:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.photo = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.table, self.head = nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, photo: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return self.head(torch.cat([self.photo(photo), self.table(table).relu()], 1))

    pixels = torch.from_numpy(skimage.data.astronaut()[:256:2, :256:2] / 255).float().movedim(2, 0)[None]
    inputs = {"photo": pixels, "table": torch.tensor([[62.0, 1.5, 0.0]])}
    return whence.explain(Both().eval(), inputs, 1, feature_names={"table": ["age", "dose", "smoker"]})


def graph(_: Path) -> Any:
    nodes, features = 12, 6
    generator = torch.Generator().manual_seed(1)
    edges = (torch.rand(nodes, nodes, generator=generator) < 0.25).float()
    edges = ((edges + edges.T + torch.eye(nodes)) > 0).float()
    spread = edges / edges.sum(1, keepdim=True)
    first, second = nn.Linear(features, 8), nn.Linear(8, 2)
    x = torch.randn(nodes, features, generator=generator)
    return whence.explain(lambda x: second(spread @ first(spread @ x).relu()), x, lambda out: out[4, 1][None])


def interactions(_: Path) -> Any:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    names = ["age", "income", "debt", "number of children in the household", "visits", "tenure"]
    method = whence.Shapley(background=x[:20], interactions="sii")
    f = lambda t: (2 * t[:, 0] + t[:, 1] * t[:, 3] - t[:, 4])[:, None]  # noqa: E731
    return whence.explain(f, x[:1], 0, method=method, feature_names=names, class_names=["score"], progress=False)


DRAWN: list[Callable[[Path], Any]] = [
    photo_landscape, photo_portrait, grey_digit, volume, series_last, series_first, table_5, table_60, table_600, table_rows,
    text_8, text_800, text_generation, several_inputs, graph, interactions,
]  # fmt: skip
WITH_PHOTOS = (photo_landscape, photo_portrait, volume, several_inputs)

if __name__ == "__main__":
    KINDS.mkdir(exist_ok=True)
    for kind in DRAWN:
        if len(sys.argv) < 3 or kind.__name__ in sys.argv[2:]:
            torch.manual_seed(0)
            suffix = ".jpg" if kind in WITH_PHOTOS else ".png"
            kind(Path(sys.argv[1])).save(KINDS / f"{kind.__name__}{suffix}")
