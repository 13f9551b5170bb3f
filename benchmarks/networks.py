"""Trained networks and data for benchmarks that ask which explanation is right: real ones, and some trained here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whence.lrp.rules.presets import IMAGENET_MEAN, IMAGENET_STD
from whence.models.digits import digits, robust_digits

KEPT = Path(__file__).parent / ".trained"  # ignored by git


@dataclass(frozen=True)
class Subject:
    """A network and samples it is explained on, and what black and white are to it."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor | None
    bounds: tuple[Tensor | float, Tensor | float] = (0.0, 1.0)


def subjects(data: Path, names: tuple[str, ...] = ()) -> list[Subject]:
    return [make(data) for name, make in SUBJECTS.items() if not names or name in names]


class ResNet20(nn.Module):
    """For CIFAR-10, with option A shortcuts (He et al. 2016)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[Block(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 10)  # a module, as zennit needs

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(self.pool(out).flatten(1))


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.more = (after - before) // 2

    def residual(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def shortcut(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more)) if self.more else x

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class Separable(nn.Module):
    """An inverted residual block of MobileNetV2."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        wide = 4 * before
        self.parts = nn.Sequential(
            nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.adds = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x) if self.adds else self.parts(x)


def mobile() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        Separable(16, 16, 1), Separable(16, 32, 2), Separable(32, 32, 1), Separable(32, 64, 2), Separable(64, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8),
    )  # fmt: skip


def plain(normalised: bool = True) -> nn.Module:
    """A VGG-like network with or without batch norm."""
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 24), (24, 48), (48, 48)):
        layers += [nn.Conv2d(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if normalised else []), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if before == after else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 64, 64), nn.ReLU(), nn.Linear(64, 8))


def lenet() -> nn.Module:
    """LeNet-5 with ReLUs and maximum pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


class VisionTransformer(nn.Module):
    """Patches of four pixels, four blocks, the mean of all tokens."""

    def __init__(self, channels: int = 1, side: int = 28, classes: int = 10, dim: int = 64, depth: int = 4):
        super().__init__()
        self.patches = nn.Conv2d(channels, dim, 4, 4)
        self.places = nn.Parameter(torch.randn(1, (side // 4) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*[
            nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(depth)
        ])  # fmt: skip
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures like CIFAR's, 32×32 in colour: one of eight shapes, in random colour and place, over a random texture."""
    random = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.rand(*size, generator=random)

    y = torch.randint(8, (count,), generator=random)
    ground = F.interpolate(draw(count, 3, 5, 5), (32, 32), mode="bilinear") * 0.7 + 0.3 * draw(count, 3, 32, 32)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    size = 5 + 5 * draw(count, 1, 1)
    u, v = (((t - 10 - 12 * draw(count, 1, 1)) / size) for t in (rows, columns))
    r, a, b = (u**2 + v**2).sqrt(), u.abs(), v.abs()
    kinds = torch.stack([
        r < 1, (r < 1) & (r > 0.55), torch.maximum(a, b) < 0.9, (torch.maximum(a, b) < 1) & (torch.maximum(a, b) > 0.6),
        a + b < 1.1, ((a < 0.3) | (b < 0.3)) & (torch.maximum(a, b) < 1), (u > b * 1.8 - 0.9) & (u < 0.9),
        ((u - v).abs() < 0.4) & (torch.maximum(a, b) < 1),
    ], 1)  # fmt: skip
    inside = kinds[torch.arange(count), y][:, None].float()
    colour = draw(count, 3, 1, 1) * 0.9
    away = (colour - ground.mean((2, 3), keepdim=True)).abs().mean(1, keepdim=True) < 0.25
    colour = torch.where(away, 1 - colour, colour)
    return (inside * colour + (1 - inside) * ground).clamp(0, 1), y


def trained(name: str, make: Callable[[], nn.Module], x: Tensor, y: Tensor, epochs: int, rate: float = 2e-3) -> nn.Module:
    """The network trained, once; kept beside this file."""
    torch.manual_seed(0)
    model, kept = make(), KEPT / f"{name}.pt"
    if kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval().requires_grad_(False)
    steps = epochs * math.ceil(len(x) / 128)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    KEPT.mkdir(exist_ok=True)
    torch.save(model.state_dict(), kept)
    return model.eval().requires_grad_(False)


def mnist(data: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    arrays = np.load(data / f"mnist_{part}.npz")
    images = torch.from_numpy(arrays["images"][:count]).float().div(255)[:, None]
    return images, torch.from_numpy(arrays["labels"][:count]).long()


def photos(size: int = 224) -> Tensor:
    """Crops of photos that come with scikit-image and scikit-learn, `[N, 3, H, W]` in [0, 1]."""
    import skimage
    from PIL import Image
    from sklearn.datasets import load_sample_image

    folder = Path(skimage.__file__).parent / "data"
    names = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg")
    found = [np.asarray(Image.open(folder / name).convert("RGB")) for name in names]
    found += [np.asarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    crops = []
    for picture in found:
        whole = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        for scale in (256, 320):
            ratio = scale / min(whole.shape[2:])
            resized = F.interpolate(whole, scale_factor=ratio, mode="bilinear", antialias=True)
            height, width = resized.shape[2:]
            places = {((height - size) // 2, (width - size) // 2), (0, 0), (height - size, width - size)}
            crops += [resized[0, :, top : top + size, left : left + size] for top, left in sorted(places)]
    return torch.stack(crops)


def _squeezenet(data: Path) -> Subject:
    import peers

    peers.declare_torchvision_operators()
    from whence.models.registry import load_model

    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    return Subject("SqueezeNet", loaded.model, loaded.preprocessing.normalise(photos()), None, loaded.preprocessing.bounds)


def _resnet20(data: Path) -> Subject:
    model = ResNet20()
    arrays = np.load(data / "resnet20_cifar10.npz")
    model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files}, strict=False)
    images = np.load(data / "cifar10_test300.npz")
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    x = (torch.from_numpy(images["images"]).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return Subject(
        "ResNet-20", model.eval(), x, torch.from_numpy(images["labels"]).long(), ((0 - mean) / std, (1 - mean) / std)
    )


def _on_digits(name: str, make: Callable[[Path], nn.Module], count: int = 200) -> Callable[[Path], Subject]:
    return lambda data: Subject(name, make(data), *mnist(data, "test", count))


def _on_shapes(name: str, make: Callable[[], nn.Module], count: int = 100) -> Callable[[Path], Subject]:
    def made(data: Path) -> Subject:
        return Subject(name, trained(name, make, *shapes(12000, 0), 6), *shapes(count, 1))

    return made


def _learned(name: str, make: Callable[[], nn.Module], epochs: int, rate: float = 2e-3) -> Callable[[Path], nn.Module]:
    return lambda data: trained(name, make, *mnist(data, "train", 20000), epochs, rate)


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "digits": _on_digits("digits", lambda data: digits()),
    "digits-robust": _on_digits("digits-robust", lambda data: robust_digits()),
    "lenet": _on_digits("LeNet-5", _learned("lenet", lenet, 4)),
    "resnet20": _resnet20,
    "squeezenet": _squeezenet,
    "plain": _on_shapes("VGG-like, shapes", plain),
    "plain-biased": _on_shapes("VGG-like without batch norm, shapes", partial(plain, normalised=False)),
    "mobile": _on_shapes("MobileNet-like, shapes", mobile),
    "vit": _on_digits("ViT, digits", _learned("vit", VisionTransformer, 8, 1e-3)),
}
