"""Why this box, why this region: LRP beside class activation maps and D-RISE on scenes of drawn shapes.

python benchmarks/detection.py            # trains two networks (minutes), prints the tables, writes results/detection.md

Scenes of 64 × 64 pixels with two or three discs, squares and triangles of random colour, size and place on a cluttered ground.
A detector of eleven convolutions predicts a class and a box for each cell of 8 × 8 pixels; a U-Net gives each pixel a class.
Explained are the best box of each held-out scene, with `whence.Detection()`, and one class where it is predicted, with
`whence.Region(...)`, at default settings. Peers: the class activation maps of pytorch-grad-cam (in its own code, where it is
installed: pip install --no-deps grad-cam ttach opencv-python-headless), given the very logit that is explained, at the last and
at the middle layer of the backbone; D-RISE (Petsiuk et al. 2021) with 1000 masks of 8 × 8 cells.

Energy: the share of positive relevance in the box or region (Wang et al. 2020). Pointing: whether the largest relevance is in
it. Deletion: the area under the curve of the explained score while pixels are replaced by their blurred values, the most
relevant first, as a share of the score of the whole scene; smaller is better. Of a detector the score is the largest IoU with
the explained box × probability of its class (D-RISE's measure of "the same detection"); of a segmenter, the mean probability of
the class in the region. Differences are those of the default from the best peer of each measure, over scenes, with bootstrapped
95 % intervals.
"""

import math
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.pop(0)  # a file beside this one is called as the library transformers

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]
import peers
import support.torchvision_operators  # noqa: F401
import whence

SIDE, CELL, CLASSES = 64, 8, ("disc", "square", "triangle")
STEPS, BATCH, SCENES = 1200, 32, 100
MASKS, MASK_CELLS = 1000, 8
MEASURES = ("energy", "pointing", "deletion")
Map = Callable[[Tensor, Any, Tensor], Tensor]  # (scene [1, 3, H, W], explanation, value) -> [H, W]


def draw_scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scenes `[N, 3, H, W]`, boxes `[N, 3, 4]` (negative for no box), classes `[N, 3]` and maps `[N, H, W]`, 3 for the
    ground."""
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(*size, generator=generator)

    coarse = F.interpolate(uniform(0, 1, count, 3, 6, 6), size=(SIDE, SIDE), mode="bilinear")
    scenes = (coarse + 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)).clamp(0, 1)
    boxes, classes = torch.full((count, 3, 4), -1.0), torch.full((count, 3), 3)
    maps = torch.full((count, SIDE, SIDE), 3)
    for i in range(count):
        for _ in range(4):  # clutter: lines
            angle, offset = float(uniform(0, math.pi, 1)), float(uniform(0, SIDE, 1))
            line = ((columns - offset) * math.cos(angle) + (rows - offset) * math.sin(angle)).abs() < 1
            scenes[i, :, line] = uniform(0, 1, 3, 1)
        for k in range(2 + int(uniform(0, 2, 1))):
            for _ in range(20):
                half = float(uniform(6, 12, 1))
                x, y = (float(value) for value in uniform(half, SIDE - half, 2))
                box = torch.tensor([x - half, y - half, x + half, y + half])
                if not (whole_iou(boxes[i], box) > 0).any():
                    break
            else:
                continue
            kind = int(uniform(0, 3, 1))
            right, down = columns - x, rows - y
            inside = [
                right**2 + down**2 < half**2,
                (right.abs() < 0.9 * half) & (down.abs() < 0.9 * half),
                (down < half) & (down > 2 * right.abs() - half),
            ][kind]
            scenes[i, :, inside] = (uniform(0, 1, 3, 1) + 0.05 * torch.randn(3, int(inside.sum()), generator=generator)).clamp(
                0, 1
            )
            boxes[i, k], classes[i, k] = box, kind
            maps[i][inside] = kind
    return scenes, boxes, classes, maps


def whole_iou(boxes: Tensor, box: Tensor) -> Tensor:
    """Return the intersection over union of boxes `[…, 4]` with a box."""
    low, high = torch.maximum(boxes[..., :2], box[:2]), torch.minimum(boxes[..., 2:], box[2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    return shared / (area + (box[2:] - box[:2]).prod() - shared)


def block(given: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class Detector(nn.Module):
    """A detector in one stage: `[N, 4 + classes, cells]`, centres and sizes in pixels, and probabilities, as of YOLO."""

    def __init__(self):
        super().__init__()
        self.early = nn.Sequential(block(3, 16), block(16, 24, 2), block(24, 24), block(24, 48, 2), block(48, 48))
        self.late = nn.Sequential(block(48, 64, 2), block(64, 64), block(64, 64))
        self.classes = nn.Sequential(block(64, 48), nn.Conv2d(48, 3, 1))
        self.boxes = nn.Sequential(block(64, 48), nn.Conv2d(48, 4, 1))

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.late(self.early(x))
        return self.classes(features).flatten(2), self.boxes(features).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        classes, boxes = self.raw(x)
        return torch.cat([decode(boxes), classes.sigmoid()], 1)


def decode(boxes: Tensor) -> Tensor:
    """Return centres and sizes in pixels of the offsets `[N, 4, cells]`."""
    side = SIDE // CELL
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    cells = torch.stack([columns.flatten(), rows.flatten()]).to(boxes)
    return torch.cat([(cells + 0.5 + boxes[:, :2]) * CELL, boxes[:, 2:].exp() * CELL], 1)


class Segmenter(nn.Module):
    """A small U-Net: `[N, 4, H, W]`."""

    def __init__(self):
        super().__init__()
        self.fine, self.middle, self.coarse = block(3, 12), block(12, 24, 2), nn.Sequential(block(24, 48, 2), block(48, 48))
        self.deep = nn.Sequential(block(48, 48, 2), block(48, 48))
        self.up1, self.up2, self.up3 = block(96, 48), block(72, 24), block(36, 12)
        self.head = nn.Conv2d(12, 4, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        deep = self.up1(torch.cat([self.up(self.deep(coarse)), coarse], 1))
        return self.head(self.up3(torch.cat([self.up(self.up2(torch.cat([self.up(deep), middle], 1))), fine], 1)))


def detection_loss(model: Detector, x: Tensor, boxes: Tensor, classes: Tensor, maps: Tensor) -> Tensor:
    """Return the loss: of the cell in the middle of each object the class and box, of all others that they have none."""
    logits, raw = model.raw(x)
    found = decode(raw)
    wanted, loss = torch.zeros_like(logits), x.new_zeros(())
    sample, k = (classes < 3).nonzero(as_tuple=True)
    box, kind = boxes[sample, k], classes[sample, k]
    centre, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    cell = (centre // CELL).long().clamp(0, SIDE // CELL - 1)
    cell = cell[:, 1] * (SIDE // CELL) + cell[:, 0]
    wanted[sample, kind, cell] = 1
    loss = F.l1_loss(found[sample, :, cell] / CELL, torch.cat([centre, size], 1) / CELL)
    focal = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    weight = (wanted - logits.detach().sigmoid()).abs() ** 2
    return (weight * focal).sum() / len(sample) + loss


def segmentation_loss(model: Segmenter, x: Tensor, boxes: Tensor, classes: Tensor, maps: Tensor) -> Tensor:
    return F.cross_entropy(model(x), maps)


def train(model: nn.Module, loss_of: Callable[..., Tensor]) -> Any:
    generator = torch.Generator().manual_seed(0)
    scenes = draw_scenes(3200, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    for step in range(STEPS):
        chosen = torch.randint(len(scenes[0]), (BATCH,), generator=generator)
        loss = loss_of(model, *(part[chosen] for part in scenes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step}: {loss.item():.3f}", flush=True)
    return model.eval()


def blurred(x: Tensor) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    return gaussian_blur(x, [31, 31], [8.0, 8.0])


def deletion(x: Tensor, heat: Tensor, score: Callable[[Tensor], Tensor]) -> float:
    """Return the area under the curve of the score, over its value for the whole scene."""
    steps = 24
    order = heat.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    removed = rank.view(1, 1, 1, SIDE, SIDE) < (torch.arange(steps + 1) * len(order) / steps).view(-1, 1, 1, 1, 1)
    scores = score(torch.where(removed[:, 0], blurred(x), x))
    return float(torch.trapezoid(scores) / steps / scores[0])


def d_rise(x: Tensor, score: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    """Return Σ masks · the score of the masked scene: masks of cells that are kept with p = ½, enlarged and shifted."""
    grids = (torch.rand(MASKS, 1, MASK_CELLS, MASK_CELLS, generator=generator) < 0.5).float()
    side = SIDE + SIDE // MASK_CELLS
    masks = F.interpolate(grids, size=(side, side), mode="bilinear")
    down, right = torch.randint(side - SIDE + 1, (2, MASKS), generator=generator).tolist()
    masks = torch.stack([mask[:, a : a + SIDE, b : b + SIDE] for mask, a, b in zip(masks, down, right, strict=True)])
    weights = torch.cat([score(x * part) for part in masks.split(100)])
    return (weights.view(-1, 1, 1) * masks[:, 0]).sum(0) / masks[:, 0].sum(0)


def cams(model: nn.Module, layers: dict[str, str]) -> dict[str, Callable[[Tensor, Callable[[Any], Tensor]], Tensor]]:
    """Return the class activation maps of pytorch-grad-cam: functions of a scene and of the explained logit."""
    if not find_spec("pytorch_grad_cam"):
        return {}
    import pytorch_grad_cam as library

    ways = {}
    for name in ("GradCAM", "GradCAMPlusPlus", "HiResCAM", "XGradCAM", "EigenCAM", "EigenGradCAM", "LayerCAM"):
        for place, path in layers.items():
            layer = model.get_submodule(path)

            def way(x: Tensor, logit: Callable[[Any], Tensor], name: str = name, layer: nn.Module = layer) -> Tensor:
                with getattr(library, name)(model=model, target_layers=[layer]) as cam:
                    return torch.from_numpy(cam(input_tensor=x, targets=[logit])[0])

            ways[f"{name}, {place}"] = way
    return ways


def whence_maps(e: whence.Explanation, layers: dict[str, str]) -> dict[str, Tensor]:
    """Return the relevance of pixels, and that of layers, resized."""
    maps = {"whence, default": e.relevance[0].sum(0)}
    for place, name in layers.items():
        coarse = e.layers[name].sum(1, keepdim=True)
        maps[f"whence, relevance at the {place}"] = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear")[0, 0]
    return maps


def measured(x: Tensor, heat: Tensor, inside: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    positive = heat.clamp(min=0)
    energy = float((positive * inside).sum() / positive.sum().clamp(min=1e-12))
    return energy, float(inside.flatten()[heat.argmax()]), deletion(x, heat, score)


def detections(model: Detector, x: Tensor, boxes: Tensor, classes: Tensor) -> dict[str, tuple[float, ...]] | None:
    """Return the measures of all ways for the best box of a scene; None if the box is wrong."""
    layers = {"last layer": "late", "middle layer": "early"}
    e = whence.explain(model, x, whence.Detection(), layers=list(layers.values()))
    box, label = e.target.box[0], int(e.target.labels[0])
    right = (whole_iou(boxes, box) >= 0.5) & (classes == label)
    if not right.any():
        return None
    cell = int(model(x)[0, 4 + label].argmax())  # the best box

    @torch.no_grad()
    def score(changed: Tensor) -> Tensor:
        out = model(changed)
        found = torch.cat([out[:, :2] - out[:, 2:4] / 2, out[:, :2] + out[:, 2:4] / 2], 1).mT
        return (whole_iou(found, box) * out[:, 4 + label]).amax(1)

    def logit(out: Tensor) -> Tensor:
        return out[4 + label, cell].logit()

    inside = e.target.outline(0, SIDE, SIDE)
    maps = whence_maps(e, layers)
    maps |= {name: way(x, logit) for name, way in cams(model, layers).items()}
    maps["D-RISE"] = d_rise(x, score, torch.Generator().manual_seed(0))
    return {name: measured(x, heat, inside, score) for name, heat in maps.items()}


def regions(model: Segmenter, x: Tensor, boxes: Tensor, classes: Tensor) -> dict[str, tuple[float, ...]] | None:
    """Return the measures of all ways for the first object of a scene, where its class is predicted."""
    label = int(classes[0])
    layers = {"deepest layer": "deep", "last layer": "up3"}
    e = whence.explain(model, x, whence.Region(label), layers=list(layers.values()))
    inside = e.target.places[0]

    @torch.no_grad()
    def score(changed: Tensor) -> Tensor:
        return (model(changed).softmax(1)[:, label] * inside).sum((1, 2)) / inside.sum()

    def logit(out: Tensor) -> Tensor:
        return (out[label] * inside).sum() / inside.sum()

    maps = whence_maps(e, layers)
    maps |= {name: way(x, logit) for name, way in cams(model, layers).items()}
    maps["RISE"] = d_rise(x, score, torch.Generator().manual_seed(0))
    return {name: measured(x, heat, inside, score) for name, heat in maps.items()}


def table(title: str, results: list[dict[str, tuple[float, ...]]]) -> list[str]:
    """Return a table of means, and of differences from the best peer of each measure."""
    names = list(results[0])
    values = torch.tensor([[result[name] for name in names] for result in results])  # [scenes, ways, measures]
    means = values.mean(0)
    lines = [f"\n{title} ({len(results)} scenes)\n", f"| way | {' | '.join(MEASURES)} |", "|---|" + "---|" * len(MEASURES)]
    lines += [f"| {name} | {' | '.join(f'{m:.3f}' for m in row)} |" for name, row in zip(names, means.tolist(), strict=True)]
    lines += ["", f"| whence − the best peer | {' | '.join(MEASURES)} |", "|---|" + "---|" * len(MEASURES)]
    first = next(k for k, name in enumerate(names) if not name.startswith("whence"))
    best = [
        first + int((means[first:, k] * (-1 if measure == "deletion" else 1)).argmax()) for k, measure in enumerate(MEASURES)
    ]
    generator, cells = torch.Generator().manual_seed(0), []
    for k, peer in enumerate(best):
        difference = values[:, 0, k] - values[:, peer, k]
        resampled = difference[torch.randint(len(results), (2000, len(results)), generator=generator)].mean(1)
        low, high = resampled.quantile(torch.tensor([0.025, 0.975])).tolist()
        cells.append(f"{difference.mean():+.3f} ({low:+.3f} to {high:+.3f}) from {names[peer]}")
    return [*lines, f"| with a 95 % interval | {' | '.join(cells)} |"]


def main() -> None:
    torch.manual_seed(0)
    scenes = draw_scenes(SCENES, torch.Generator().manual_seed(1))
    lines: list[str] = []
    installed = ["grad-cam"] if find_spec("pytorch_grad_cam") else []
    for title, model, loss, explained in (
        ("Detection: the best box", Detector(), detection_loss, detections),
        ("Segmentation: one class where it is predicted", Segmenter(), segmentation_loss, regions),
    ):
        trained = train(model, loss)
        results = [explained(trained, x[None], boxes, classes) for x, boxes, classes, _ in zip(*scenes, strict=True)]
        lines += table(title, [result for result in results if result is not None])
        print("\n".join(lines), flush=True)
    heading = f"# Why this box, why this region\n\n{peers.versions(*installed)}\n"
    peers.write("detection", heading, lines)


if __name__ == "__main__":
    main()
