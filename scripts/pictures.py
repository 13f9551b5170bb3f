"""Pictures of the docs.

python scripts/pictures.py ../shared/data            # all of them, into docs/images
python scripts/pictures.py ../shared/data concepts   # one
"""

import sys
from pathlib import Path
from typing import Any

import skimage
import torch

import whence

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from stories import story_model, story_tokenizer

import conftest  # noqa: F401  # which declares what a CUDA build of torchvision asks of CPU torch
from whence.evaluation.metrics.robustness import translation_figure
from whence.models.digits import digit_samples, digits
from whence.models.registry import load_model
from whence.models.tiny_networks import tiny_network
from whence.plotting.image_grid import ImageTile, image_table

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def methods(data: Path) -> None:
    """One photo by twelve methods."""
    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    x = loaded.preprocessing.read(Path(skimage.__file__).parent / "data" / "chelsea.png")
    cells = whence.patches(x, 16)
    ways = {
        "LRP": whence.LRP(),
        "LRP, z⁺": whence.LRP(whence.presets.epsilon_plus_flat()),
        "LRP, α2β1": whence.LRP(whence.presets.epsilon_alpha2_beta1()),
        "gradient × input": whence.GradientTimesInput(),
        "integrated gradients": whence.IntegratedGradients(),
        "sensitivity": whence.Sensitivity(),
        "SmoothGrad": whence.SmoothGrad(n_samples=20),
        "guided backprop": whence.GuidedBackprop(),
        "GradCAM": whence.GradCAM(),
        "occlusion": whence.Occlusion((3, 32, 32), strides=16),
        "RISE": whence.RISE(n_samples=1000),
        "Shapley": whence.Shapley(feature_mask=cells, budget=1500),
    }
    whence.compare(loaded.model, x, ways, 281, class_names=loaded.class_names).save(IMAGES / "methods.jpg")


def photos(data: Path) -> None:
    """Two photos, their relevance, and both over each other."""
    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    names = ("coffee.png", "chelsea.png")
    x = torch.cat([loaded.preprocessing.read(Path(skimage.__file__).parent / "data" / name) for name in names])
    whence.explain(loaded.model, x, class_names=loaded.class_names).save(IMAGES / "photos.jpg")


def concepts(data: Path) -> None:
    """What carried a photo's class in the last layer of SqueezeNet, with scikit-image's pictures as references."""
    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    photos = (
        "chelsea",
        "coffee",
        "astronaut",
        "rocket",
        "camera",
        "coins",
        "moon",
        "hubble_deep_field",
        "ihc",
        "brick",
        "grass",
    )
    paths = [path for name in photos for path in (Path(skimage.__file__).parent / "data").glob(f"{name}.*")]
    pictures = torch.cat([loaded.preprocessing.read(path) for path in paths])
    references = torch.cat([pictures, pictures[:4].flip(3)])
    found = whence.concepts(
        loaded.model, pictures[:1], reference_inputs=references, class_names=loaded.class_names,
        prototypes={"image": whence.images.Fourier(*loaded.preprocessing.bounds), "steps": 128},
    )  # fmt: skip
    found.save(IMAGES / "concepts.jpg")
    layers = ["features.7", "features.9", "features.12"]
    whence.attribution_graph(loaded.model, pictures[:1], layers, class_names=loaded.class_names).save(IMAGES / "graph.png")


def similarity(data: Path) -> None:
    """A photo and its mirrored, moved twin, as the middle of SqueezeNet compares them."""
    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")

    class Embedder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features = loaded.model.features[:10]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.features(x).amax((2, 3))

    x = loaded.preprocessing.read(Path(skimage.__file__).parent / "data" / "chelsea.png")
    twin = torch.roll(x.flip(3), 20, 2)
    rules = whence.LRP({torch.nn.Conv2d: whence.Gamma(0.1)})
    found = whence.explain_similarity(Embedder().eval(), x, twin, patch=16, n_projections=64, method=rules)
    found.save(IMAGES / "similarity.png")


def ranking(data: Path) -> None:
    x, y = digit_samples()
    translation_figure(digits(), x[3:4], ["lrp", "gradient_times_input", "sensitivity"]).savefig(IMAGES / "translation.png")
    whence.tune(digits(), (x, y), bounds=(0.0, 1.0)).save(IMAGES / "tuning.png")


def flow(data: Path) -> None:
    """Relevance on every edge of the maximum network of the course."""
    x = torch.tensor([[3.0, 1.0]])
    method = whence.LRP({torch.nn.Linear: whence.AlphaBeta(1, 0)})
    whence.flow(tiny_network("max, symmetric"), x, method=method).save(IMAGES / "flow.png")


def by_rules(data: Path) -> None:
    """Three digits by α and β, beside simple Taylor and the default."""
    x, _ = digit_samples()
    ways: dict[str, Any] = {"simple Taylor": whence.SimpleTaylor("origin")}
    for alpha in (1, 2, 3):
        rules = {(torch.nn.Conv2d, torch.nn.Linear): whence.AlphaBeta(alpha, alpha - 1)}
        ways[f"α = {alpha}, β = {alpha - 1}"] = whence.LRP(rules)
    ways["LRP by default"] = "lrp"
    whence.compare(digits(), x[[3, 7, 24]], ways).save(IMAGES / "digits_by_rules.png")


def channels(data: Path) -> None:
    """Eight channels each of three layers of SqueezeNet."""
    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    low, high = loaded.preprocessing.bounds
    lines = {}
    for layer in ("features.3", "features.7", "features.12"):
        found = whence.prototype(
            loaded.model, f"{layer}:0-7", shape=(3, 128, 128), image=whence.images.Fourier(low, high), n_steps=512
        )
        lines[layer] = [ImageTile(x, f"channel {c}", (low, high)) for c, x in enumerate(found.images)]
    image_table(lines).savefig(IMAGES / "channels.jpg", dpi=150)


def attacks(data: Path) -> None:
    """A digit and its twin; robust and non-robust features."""
    x, y = digit_samples()
    whence.explain_attack(digits(), x[7:8], y[7:8], whence.attacks.PGD(0.15)).save(IMAGES / "attack.png")
    whence.experiments.robust_features_experiment().save(IMAGES / "robust_features.png")


def story(data: Path) -> None:
    """Why her rather than his, by a real small Llama."""
    model, tokenizer = story_model(data), story_tokenizer(data)
    inputs = dict(tokenizer("Lily went to the park. Tim went to the park. Lily saw", return_tensors="pt"))
    her, his = tokenizer.convert_tokens_to_ids(["▁her", "▁his"])
    e = whence.explain(model, {"input_ids": inputs["input_ids"]}, whence.Logit(her, rather_than=his))
    e.with_tokens(tokenizer).save(IMAGES / "her.png")


PICTURES = {
    "story": story,
    "by_rules": by_rules,
    "channels": channels,
    "attacks": attacks,
    "flow": flow,
    "ranking": ranking,
    "methods": methods,
    "photos": photos,
    "concepts": concepts,
    "similarity": similarity,
}


def main(data: Path, names: list[str]) -> None:
    for name in names or PICTURES:
        PICTURES[name](data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
