"""The front door: what is exported, what importing drags in, what an explanation offers."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import whence

HEAVY = ("torchvision", "transformers", "timm", "matplotlib", "sklearn", "ray", "PIL", "zennit", "typer", "rich", "jinja2")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_drags_in_nothing_heavy():
    already = run(f"import sys, torch; print([m for m in {HEAVY} if m in sys.modules])")
    after = run(f"import sys, whence; print([m for m in {HEAVY} if m in sys.modules])")
    assert after == already


def test_the_test_above_can_fail():
    assert "matplotlib" in run(f"import sys, whence.plotting.panels; print([m for m in {HEAVY} if m in sys.modules])")


def test_the_front_exports_what_the_contract_names():
    names = {"explain", "explain_targets", "Explainer", "relevance_rules", "presets", "errors", "Explanation",
             "Conservation", "Composite", "LRP", "GradientTimesInput", "Sensitivity", "Epsilon", "Gamma", "AlphaBeta",
             "ZPlus", "ZBox", "WSquare", "Flat", "Identity", "Constant", "Gradient", "input_layer", "Logit", "Span",
             "Generation", "explain_generation", "load", "checkpointed", "IntegratedGradients", "ExpectedGradients",
             "SmoothGrad", "GuidedBackprop", "Deconvnet", "GradCAM", "LayerCAM", "SimpleTaylor", "NearestRoot", "RootTowards",
             "RootOnManifold", "Occlusion", "FeatureAblation", "RISE", "Shapley", "ShapleyValues", "shapley_values",
             "patches", "prototype", "Prototypes", "L2", "GaussianExpert", "GaussianRBM", "CodeSpace", "VAE",
             "AdversarialAutoencoder", "Pixels", "Fourier", "MACO", "CPPN", "Jiggle", "Channel", "Neuron", "Direction",
             "Layer", "Caricature", "Inversion", "LogProbability", "top_samples", "TopSamples", "spatial_atlas",
             "layer_shapes", "neuralize", "Neuralized", "SupportSets", "Distance", "Mahalanobis", "SoftMin", "SoftMax",
             "Contrast", "fgsm", "pgd", "FGSM", "PGD", "MIFGSM", "DeepFool", "Box", "attack", "Attacked", "explain_attack",
             "AttackExplained", "attack_explanation", "ExplanationAttacked", "RobustFeatures", "RobustFeaturesExperiment",
             "robust_features_experiment", "FeatureScores", "feature_scores", "evaluate", "Evaluation", "compare", "Comparison",
             "tune", "Tuning", "superpixels", "metrics", "imputers", "RisingGamma", "explain_dataset", "open_store", "Store",
             "audit", "Audit", "prove", "Proof", "cure", "Cured", "Places", "Heads", "Nodes", "Directions", "Features",
             "channel_relevance", "concepts", "Concepts", "attribution_graph", "AttributionGraph", "patching", "Patching",
             "export", "check_exported", "flow", "Flow", "palette",
             "explain_similarity", "Similarity", "walks", "Walks", "subgraph_relevance", "subspaces", "Subspaces",
             "Preprocessing", "LoadedModel", "load_model"}  # fmt: skip
    public = {n for n in vars(whence) if not n.startswith("_")}
    modules = {
        "activations",
        "patches",
        "explainer",
        "explanation",
        "inputs",
        "targets",
        "lrp",
        "methods",
        "models",
        "show",
        "cli",
        "generation",
        "checkpoint",
        "progress",
        "prototypes",
        "robustness",
        "nests",
        "evaluation",
        "datasets",
        "fingerprints",
        "words",
        "cluster",
        "conditions",
        "inside",
        "rows",
        "salvage",
        "captures",
        "web",
        "sizes",
        "written",
        "advice",
        "recorded",
        "weights",
    }
    assert names <= public
    assert public - names <= modules


def test_every_public_name_has_a_docstring_with_an_example():
    for name, thing in vars(whence).items():
        if isinstance(thing, type) and thing.__module__.startswith("whence"):
            assert thing.__doc__, name
            if name not in ("Identity", "Constant", "Gradient"):
                assert ">>>" in thing.__doc__, name


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


@pytest.fixture
def explanation():
    return whence.explain(net(), torch.rand(2, 3, 8, 8), layers=["0"])


def test_numbers_survive_saving(explanation, tmp_path):
    npz = np.load(explanation.save(tmp_path / "e.npz"))
    tensors = load_file(explanation.save(tmp_path / "e.safetensors"))
    for saved in (npz, tensors):
        of_layers = {"absorbed_by.0", "absorbed_by.3", "layers.0"}
        named = {"relevance", "inputs", "output", "target", "relevance_sum", "absorbed"} | of_layers
        assert set(saved) - {"about"} == named
        assert np.array_equal(np.asarray(saved["relevance"]), explanation.relevance.numpy())


def test_pictures_and_pages_are_written(explanation, tmp_path):
    from PIL import Image

    for suffix in (".png", ".jpg", ".pdf", ".svg", ".html"):
        assert explanation.save(tmp_path / f"heat{suffix}").stat().st_size > 1000
    with Image.open(tmp_path / "heat.png") as picture:
        assert picture.width > 800
    page = (tmp_path / "heat.html").read_text()
    assert "data:image/png;base64," in page
    assert "<code>0</code>" in page  # the layer that absorbed
    assert explanation._repr_png_().startswith(b"\x89PNG")


def test_relevance_is_red_and_counter_relevance_blue():
    from whence.plotting import heatmaps
    from whence.plotting.palettes import current_palette

    e = whence.explain(lambda x: x.flatten(1), torch.tensor([[[[2.0, 0.0]]]]), lambda y: y[:, 0] - y[:, 1])
    heat = heatmaps.sum_channels(torch.tensor([[[2.0, -2.0, 0.0]]]))
    from matplotlib import colormaps

    limit = heatmaps.color_limit(heat)
    red, blue, white = colormaps[current_palette().map](((heat[0] / limit + 1) / 2).numpy())[:, :3]
    assert red[0] > 0.4
    assert red[2] < 0.1
    assert blue[2] > 0.2
    assert blue[0] < 0.1
    assert white.min() > 0.98
    assert e.figure().axes


@pytest.mark.parametrize("shape", [(2, 5), (1, 4, 9), (3, 1, 6, 6), (1, 5, 7, 7)])
def test_every_common_shape_is_drawn(shape, tmp_path):
    e = whence.explain(lambda x: x.flatten(1), torch.rand(shape), 0)
    e.save(tmp_path / "e.png")
    e.save(tmp_path / "e.html")


def test_what_cannot_be_drawn_says_so(tmp_path):
    e = whence.explain(lambda x: x.flatten(1), torch.rand(1, 2, 3, 4, 5), 0)
    with pytest.raises(whence.errors.WhenceError, match="cannot draw"):
        e.save(tmp_path / "e.png")


def test_samples_of_an_explanation(explanation):
    assert len(explanation) == 2
    second = explanation[1]
    assert torch.equal(second.relevance, explanation.relevance[1:])
    assert torch.equal(second.layers["0"], explanation.layers["0"][1:])
    assert torch.equal(explanation[-1].output, explanation.output[1:])
    assert len(explanation[0:2]) == 2
    assert len(explanation[np.int64(1)]) == 1
    assert len(list(explanation)) == 2
    with pytest.raises(IndexError):
        explanation[2]


def test_the_representation_is_readable(explanation):
    text = repr(explanation)
    assert "[2, 3, 8, 8] by LRP" in text
    assert "output" in text
    assert "= relevance" in text
    assert repr(whence.presets.epsilon_gamma(gamma=0.5)) == "presets.epsilon_gamma(gamma=0.5)"
    assert repr({"a": whence.Flat()} | whence.presets.cp_lrp()) == "{'a': Flat()} | presets.cp_lrp()"


def test_versions_agree():
    import tomllib
    from pathlib import Path

    root = Path(__file__).parents[2]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert whence.__version__ == version
    assert f"## {version}" in (root / "CHANGELOG.md").read_text()
