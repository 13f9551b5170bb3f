"""The code and the command that the page shows compute what is on the page."""

import base64
import json
import shlex

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import whence
from whence.core.trees import named_leaves
from whence.models.digits import digit_samples
from whence.models.example_networks import heartbeat_series, review_texts, wine_rows

pytest.importorskip("fastapi")
from whence.frontends.cli import app
from whence.frontends.web import code_snippets, handlers
from whence.frontends.web.schemas import CodeRequest
from whence.frontends.web.served_models import DEFAULT_MODELS, ServerConfig, models


@pytest.fixture(autouse=True)
def served(monkeypatch):
    monkeypatch.setattr(models, "served", ServerConfig())


def drawing(i):
    return base64.b64encode((digit_samples()[0][i] * 255).round().byte().numpy().tobytes()).decode()


CSV = {
    "wine": lambda: models["wine"].table.write(wine_rows()[:3]),
    "heartbeats": lambda: models["heartbeats"].series.write(heartbeat_series()[:1]),
}
QUESTIONS = {
    "drawing": {"model": "digits", "drawing": drawing(3)},
    "drawing rather than": {"model": "digits", "drawing": drawing(3), "target": 3, "rather_than": 8},
    "sample by occlusion": {"model": "digits", "drawing": drawing(4), "sample": 4, "method": "occlusion"},
    "deep taylor": {"model": "digits", "drawing": drawing(4), "sample": 4, "method": "deep_taylor"},
    "rules by hand": {"model": "digits", "drawing": drawing(3), "settings": {"rule": "gamma", "gamma": 0.5}},
    "text": {"model": "reviews", "text": review_texts()[1]},
    "text by integrated gradients": {"model": "reviews", "text": review_texts()[1], "method": "integrated_gradients"},
    "row": {"model": "wine", "table": CSV["wine"], "row": 2},
    "series": {"model": "heartbeats", "series": CSV["heartbeats"], "target": "regular"},
}


def question(name):
    return CodeRequest(**{key: value() if callable(value) else value for key, value in QUESTIONS[name].items()})


def relevance_of(asked):
    found = handlers.explain_handler(asked)
    if "features" in found:
        return np.array([feature["relevance"] for feature in found["features"]])
    return np.frombuffer(base64.b64decode(found["relevance"]["data"]), "<f4")


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_code_and_the_command_explain_what_the_page_explains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = question(name)
    if asked.table is not None:
        (tmp_path / "rows.csv").write_text(asked.table)
    if asked.series is not None:
        (tmp_path / "series.csv").write_text(asked.series)
    found, expected = code_snippets.code_handler(asked), relevance_of(asked)
    scope = {}
    exec(found["python"], scope)
    (shares,) = named_leaves(scope["e"].relevance).values()
    np.testing.assert_allclose(shares.flatten().numpy(), expected, rtol=1e-3, atol=1e-5)
    assert (tmp_path / "heat.png").is_file()
    if name == "rules by hand":
        assert found["command"] is None
        assert "no option on the command line" in found["hint"]
        return
    if name.startswith("drawing"):  # the command reads a file of the drawing
        assert "save the input as digit.png" in found["hint"]
        from PIL import Image

        Image.fromarray((digit_samples()[0][3, 0] * 255).round().byte().numpy()).save("digit.png")
    words = shlex.split(found["command"])
    assert words[:2] == ["whence", "explain"]
    words[words.index("heat.png")] = "heat.npz"
    ran = CliRunner().invoke(app, [*words[1:], "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.output.splitlines()[-1])["model"] == asked.model
    saved = next(array for key, array in np.load("heat.npz").items() if key.startswith("relevance"))
    np.testing.assert_allclose(saved.flatten(), expected, rtol=1e-3, atol=1e-5)


def test_targets_of_pictures():
    assert code_snippets._target_code(whence.Detection(2, score=0.05)) == "whence.Detection(2, score=0.05)"
    assert code_snippets._target_code(whence.Region(1, box=(1, 2, 3, 4))) == "whence.Region(1, box=(1, 2, 3, 4))"
    assert code_snippets._target_code(whence.Region(None, point=(1, 2))) == "whence.Region(None, point=(1, 2))"


def test_every_kind_of_input_has_an_example():
    from whence.frontends.web.example_inputs import examples_handler

    found = examples_handler(None)
    assert [one["model"] for one in found] == list(DEFAULT_MODELS)
    for one in found:
        answer = handlers.explain_handler(CodeRequest(model=one["model"], **one["input"]))
        loaded = models[one["model"]]
        x = loaded.examples()[one["sample"]]
        with torch.no_grad():
            predicted = int(loaded.model(**x).argmax() if isinstance(x, dict) else loaded.model(x).argmax())
        assert answer["target"]["index"] == predicted  # the example is the sample that its code names
