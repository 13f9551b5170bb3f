"""The front door: what is exported, what importing drags in, what an explanation offers."""

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import whence
from whence.core import public_names

HEAVY = ("torchvision", "transformers", "timm", "matplotlib", "sklearn", "ray", "PIL", "zennit", "typer", "rich", "jinja2")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_drags_in_nothing_heavy():
    assert run(f"import sys, whence; print([m for m in ('torch', *{HEAVY}) if m in sys.modules])") == "[]\n"
    already = run(f"import sys, torch; print([m for m in {HEAVY} if m in sys.modules])")
    used = run(f"import sys, whence; whence.explain, whence.Shapley; print([m for m in {HEAVY} if m in sys.modules])")
    assert used == already


def test_the_test_above_can_fail():
    assert "matplotlib" in run(f"import sys, whence.plotting.stacked_panels; print([m for m in {HEAVY} if m in sys.modules])")


FRONT = """
attack attack_explanation attribution_graph audit bench channel_relevance check_exported checkpointed compare concepts cure
evaluate explain explain_attack explain_dataset explain_detections explain_generation explain_similarity explain_targets
export flow load load_model neuralize open_store palette patches patching prototype prove relevance_rules reliability
shapley_values sources subgraph_relevance subspaces superpixels token_passages top_samples tune walks Explainer Explanation
LoadedModel Preprocessing SeriesReader TableReader
Deconvnet ExpectedGradients FeatureAblation GradCAM GradientTimesInput GuidedBackprop
IntegratedGradients LRP LayerCAM GradCAMPlusPlus HiResCAM XGradCAM EigenCAM ScoreCAM AblationCAM FullGrad Occlusion RISE
Sensitivity Shapley SimpleTaylor SmoothGrad AlphaBeta Constant Epsilon Flat Gamma Gradient Identity RisingGamma WSquare ZBox
ZPlus Logit Span Region Detection Directions Features Heads Nodes Places adapters attacks callbacks conditions errors
experiments
images imputers layers metrics objectives plots presets priors results roots
"""
NAMESPACES = [space for space in (getattr(whence, name) for name in whence.__all__) if isinstance(space, ModuleType)]
PUBLIC = {f"{space.__name__}.{name}": getattr(space, name) for space in (whence, *NAMESPACES) for name in space.__all__}


def test_the_front_offers_what_the_contract_names():
    assert set(whence.__all__) == set(FRONT.split())
    assert dir(whence) == sorted([*FRONT.split(), "__version__"])
    into: dict = {}
    exec("from whence import *", into)
    assert set(into) - {"__builtins__"} == set(FRONT.split())


def test_namespaces_are_modules_that_can_be_imported():
    import whence.exporting.program as program
    import whence.metrics as metrics

    assert metrics.SRG is whence.metrics.SRG
    assert program.export is whence.export


def test_no_public_name_is_also_a_module():
    source = Path(whence.__file__).parent
    modules = {path.stem for path in source.glob("*.py")} | {path.name for path in source.iterdir() if path.is_dir()}
    functions = {name for name in whence.__all__ if not isinstance(getattr(whence, name), ModuleType)}
    assert not functions & modules


def test_a_name_that_moved_says_where_it_is():
    for module, name, hint in [
        (whence, "L2", "use whence.priors.L2"),
        (whence, "explian", "did you mean 'explain'"),
        (whence, "Flow", "use whence.results.RelevanceFlow"),
        (whence, "Saliency", "use whence.Sensitivity"),
        (whence, "UnknownFunctionError", "use whence.errors.UnknownFunctionError"),
        (whence.metrics, "srg", "did you mean 'SRG'"),
        (whence.metrics, "PGD", "use whence.attacks.PGD"),
        (whence.roots, "explain", "use whence.explain"),
    ]:
        with pytest.raises(AttributeError, match=hint):
            getattr(module, name)
        if hint.startswith("use "):
            assert eval(hint[4:])


def test_what_is_renamed_or_equivalent_exists():
    for name in (*public_names.RENAMED, *public_names.EQUIVALENTS):
        assert eval(public_names.equivalent(name))


def test_names_that_moved_are_not_imported_silently():
    with pytest.raises(ImportError):
        exec("from whence import PGD")


def test_class_names_are_unique():
    names = Counter(
        node.name
        for path in Path(whence.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in names.items() if count > 1]


def test_docstrings_begin_with_a_verb_or_a_noun():
    odd = []
    for path in Path(whence.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) else None
            if re.match(r"(Of|Those|These|The same|What|That which|As)\b", doc or ""):
                odd.append(f"{path.name}: {(doc or '').splitlines()[0]}")
    assert not odd, "\n".join(odd)


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if inspect.isroutine(thing) or inspect.isclass(thing)])
def test_public_docstrings_have_an_example_and_parameters(name):
    thing, doc = PUBLIC[name], inspect.getdoc(PUBLIC[name])
    assert doc, name
    is_protocol = getattr(thing, "_is_protocol", False) or inspect.isabstract(thing)
    exempt = (
        name.split(".")[-1] in ("Identity", "Constant", "Gradient")
        or name.startswith(("whence.results.", "whence.errors."))
        or is_protocol
    )
    assert exempt or ">>>" in doc or name.startswith("whence.metrics."), f"{name} has no example"
    if inspect.isroutine(thing) and list(inspect.signature(thing).parameters):
        parameters = [p for p in inspect.signature(thing).parameters if p not in ("args", "kwargs", "settings")]
        assert "Args:" in doc, f"{name} lists no parameters"
        listed = doc.split("Args:")[1]
        assert not [p for p in parameters if not re.search(rf"\b{p}\b", listed)], f"{name} does not list all parameters"


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: whence.explain(net(), torch.rand(1, 3, 8, 8), targt=1), "target"),
        (lambda: whence.Gamma(gama=1), "gamma"),
        (lambda: whence.attacks.PGD(0.1, n_step=3), "n_steps"),
        (lambda: whence.metrics.SRG(fliping=None), "flipping"),
        (lambda: whence.prototype(net(), 0, stepss=3), "n_steps"),
        (lambda: whence.LRP(rule={}), "rules"),
        (lambda: whence.tune(net(), None, metrik="srg"), "metric"),
    ],
)
def test_an_unknown_keyword_is_one_error_everywhere(call, argument):
    with pytest.raises(whence.errors.UnknownArgumentError, match=f"did you mean .*'{argument}'") as raised:
        call()
    assert isinstance(raised.value, TypeError)


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
    shown = explanation._repr_mimebundle_()["text/html"]  # in a notebook: the figure, then the account, folded
    assert shown.index("data:image/png;base64,") < shown.index("<details>") < shown.index("<td>")


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
    e = whence.explain(lambda x: x.flatten(1), torch.rand(1, 2, 2, 3, 4, 5), 0)
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
