"""The pictures of docs/which_method.md and docs/methods.md.

python scripts/pictures.py ../shared/data   # writes docs/images/methods.jpg, translation.png and tuning.png
"""

import sys
from pathlib import Path

import skimage
import torch

import whence
from whence.evaluation.continuity import translation
from whence.models.digits import digit_samples, digits
from whence.models.registry import load_model

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
        "RISE": whence.RISE(n_masks=1000),
        "Shapley": whence.Shapley(feature_mask=cells, budget=1500),
    }
    whence.compare(loaded.model, x, ways, 281, class_names=loaded.classes).save(IMAGES / "methods.jpg")


def photos(data: Path) -> None:
    """Two photos, their relevance, and both over each other."""
    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    names = ("coffee.png", "chelsea.png")
    x = torch.cat([loaded.preprocessing.read(Path(skimage.__file__).parent / "data" / name) for name in names])
    whence.explain(loaded.model, x, class_names=loaded.classes).save(IMAGES / "photos.jpg")


def main(data: Path) -> None:
    x, y = digit_samples()
    translation(digits(), x[3:4], ["lrp", "gradient_times_input", "sensitivity"]).savefig(IMAGES / "translation.png")
    whence.tune(digits(), (x, y), bounds=(0.0, 1.0)).save(IMAGES / "tuning.png")
    methods(data)
    photos(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
