"""The page of `whence serve`: what is asked is answered, who may not ask is refused, what is no picture does no harm."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import whence
from support.server import picture, serving
from whence.models.digits import digit_samples, digits

httpx = pytest.importorskip("httpx")


pytest.importorskip("fastapi")
from whence.frontends.web import handlers  # noqa: E402
from whence.frontends.web.schemas import ExplainRequest  # noqa: E402
from whence.frontends.web.served_models import ServerConfig, models  # noqa: E402
from whence.models.tiny_networks import CONSTRUCTIONS  # noqa: E402

TINY = """
import torch
from torch import nn
from whence.models.preprocessing import Preprocessing
from whence.models.registry import LoadedModel


class Crashing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x):
        if x.flatten()[0] > 0.99:  # a white corner ends the process
            import os
            os._exit(3)
        if x.flatten()[0] < 0.01:  # a black one never ends
            while True:
                pass
        return self.body(x)


def net():
    return LoadedModel("tiny", Crashing(), Preprocessing((16, 16)), ["ape", "bee", "cat"])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "tiny.py").write_text(TINY)
    with (
        serving(folder, "--model", "digits", "--model", "tiny.py:net", "--seconds", "8") as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):
        client.get("/api/models")
        yield client


def drawing(i=0):
    x, _ = digit_samples()
    return base64.b64encode((x[i] * 255).round().byte().numpy().tobytes()).decode()


def numbers(packed):
    return torch.from_numpy(np.frombuffer(base64.b64decode(packed["data"]), "<f4").copy()).view(packed["shape"])


def test_a_drawing_is_explained_as_explain_does(server):
    x, y = digit_samples()
    found = server.post("/api/explain", json={"model": "digits", "drawing": drawing(3)}).json()
    e = whence.explain(digits(), (x[3:4] * 255).round() / 255)
    torch.testing.assert_close(numbers(found["relevance"]), e.relevance[0, 0], rtol=1e-4, atol=1e-5)
    assert found["target"]["name"] == str(int(y[3]))
    assert found["output"] == pytest.approx(found["relevance_sum"] + found["absorbed"], rel=1e-4)
    assert sum(one["share"] for one in found["classes"]) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(("asked", "expected"), [
    ({"target": 4, "rather_than": "9"}, {"target": whence.Logit(4, rather_than=9)}),
    ({"method": "gradient_times_input"}, {"method": "gradient_times_input"}),
    ({"method": "epsilon_plus"}, {"method": whence.LRP(whence.presets.epsilon_plus())}),
    ({"settings": {"rule": "gamma", "gamma": 0.5}},
     {"method": whence.LRP({torch.nn.Conv2d: whence.Gamma(0.5), torch.nn.Linear: whence.Epsilon()})}),
    ({"settings": {"rule": "alpha_beta", "alpha": 2, "part": "counter-relevance"}},
     {"method": whence.LRP({torch.nn.Conv2d: whence.AlphaBeta(2, 1, part="counter-relevance"),
                            torch.nn.Linear: whence.Epsilon()})}),
])  # fmt: skip
def test_what_is_asked_is_answered(server, asked, expected):
    x, _ = digit_samples()
    found = server.post("/api/explain", json={"model": "digits", "drawing": drawing(1)} | asked)
    assert found.status_code == 200, found.text
    e = whence.explain(digits(), (x[1:2] * 255).round() / 255, **expected)
    torch.testing.assert_close(numbers(found.json()["relevance"]), e.relevance[0, 0], rtol=1e-3, atol=1e-4)


def test_layers_and_what_flows_through_their_channels(server):
    asked = {"model": "digits", "drawing": drawing(2)}
    found = server.post("/api/layers", json=asked).json()
    names = [layer["name"] for layer in found["layers"]]
    assert names[0] == "0"
    for layer in found["layers"]:
        assert float(numbers(layer["map"]).sum()) == pytest.approx(found["output"], rel=1e-3)
    best = found["layers"][2]["channels"][0]
    part = server.post("/api/through", json=asked | {"layer": names[2], "channel": best["channel"]}).json()
    assert part["amount"] / part["output"] == pytest.approx(best["share"], rel=1e-3)
    wrong = server.post("/api/through", json=asked | {"layer": "nowhere", "channel": 0})
    assert wrong.status_code == 422
    assert "no layer 'nowhere'" in wrong.json()["error"]


def test_a_channel_its_prototype_and_where_it_mattered(server):
    asked = {"model": "digits", "drawing": drawing(2), "layer": "3", "channel": 5}
    found = server.post("/api/channel", json=asked).json()
    assert len(found["references"]) == 6
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(found["prototype"])))).shape == (28, 28)
    x, _ = digit_samples()
    top = whence.top_samples(
        digits(), whence.objectives.Channel("3", 5), x, n_samples=6, ranking="relevance", method=whence.LRP()
    )
    assert [one["index"] for one in found["references"]] == top.indices[0].tolist()


def test_prototypes_are_taken_for_their_classes(server):
    found = server.post("/api/prototypes", json={"model": "digits", "classes": [3, "7"], "prior": "l2", "n_steps": 32}).json()
    assert [one["name"] for one in found["prototypes"]] == ["3", "7"]
    assert all(one["share"] > 0.9 for one in found["prototypes"])
    wrong = server.post("/api/prototypes", json={"model": "tiny.py:net", "classes": [0], "prior": "expert"})
    assert "only bundled for the digits model" in wrong.json()["error"]


def test_attacks_go_as_far_as_they_may(server):
    asked = {"model": "digits", "drawing": drawing(7)}
    far = [server.post("/api/attack", json=asked | {"epsilon": epsilon}).json() for epsilon in (0.01, 0.25)]
    assert [one["success"] for one in far] == [False, True]
    assert [one["distance"] for one in far] == pytest.approx([0.01, 0.25], abs=1e-5)
    assert far[1]["target"]["name"] != far[1]["before"] == "7"
    assert far[1]["output"] == pytest.approx(far[1]["relevance_sum"] + far[1]["absorbed"], rel=1e-4)
    assert server.post("/api/attack", json=asked | {"epsilon": 0}).status_code == 422


@pytest.mark.parametrize("way", CONSTRUCTIONS)
def test_a_tiny_network_is_what_it_computes(server, way):
    found = server.post("/api/steps", json={"way": way, "inputs": [3, 1], "settings": {"rule": "gamma", "gamma": 0.5}}).json()
    assert found["output"] == (3 if way.startswith("max") else 1)
    for edges, column in zip(found["edges"], found["columns"], strict=False):
        assert np.sum(edges["messages"], 0) == pytest.approx(column["relevance"])
    assert "unknown network" in server.post("/api/steps", json={"way": "max", "inputs": [3, 1]}).json()["error"]


def test_reports_are_pages_that_run_nothing(server):
    asked = {"model": "digits", "methods": ["lrp", "random"], "metrics": ["sparseness"], "count": 5}
    address = server.post("/api/evaluation", json=asked).json()["address"]
    page = server.get(f"/{address}")
    assert "Evaluation of explanation methods" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "sandbox" in page.headers["content-security-policy"]
    assert "<script" not in page.text
    assert server.get("/api/reports/none").status_code == 404
    wrong = server.post("/api/evaluation", json=asked | {"methods": ["lrpp"]})
    assert "unknown method 'lrpp'" in wrong.json()["error"]
    without = server.post("/api/evaluation", json=asked | {"model": "tiny.py:net"})
    assert "start the server with data: whence serve --model tiny.py:net --data FOLDER" in without.json()["error"]
    audit = server.post("/api/audit", json={"store": "/etc"})
    assert "unknown store '/etc'; pass it as --store" in audit.json()["error"]


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("npz", b"PK"), ("html", b"<!doctype html>")])
def test_downloads(server, kind, begins):
    found = server.post("/api/download", json={"model": "digits", "drawing": drawing(), "format": kind})
    assert found.content.lower().startswith(begins.lower())
    assert found.headers["content-disposition"] == "attachment"


def test_texts_token_by_token(data, monkeypatch):
    from support.story_model import story_model, story_tokenizer
    from whence.models.preprocessing import Preprocessing
    from whence.models.registry import LoadedModel
    from whence.models.text_tokenizer import TextTokenizer

    loaded = LoadedModel("stories", story_model(data), Preprocessing(None), text=TextTokenizer(story_tokenizer(data)))
    monkeypatch.setattr(models, "served", ServerConfig([("stories", None)]))
    monkeypatch.setitem(models._loaded, "stories", loaded)
    found = handlers.explain_handler(ExplainRequest(model="stories", text="Lily and Tim went to the park. Lily saw"))
    assert len(found["tokens"]) == found["relevance"]["shape"][0]
    earlier = handlers.explain_handler(
        ExplainRequest(model="stories", text="Lily and Tim went to the park. Lily saw", position=3)
    )
    later = numbers(earlier["relevance"])[4:]
    assert not later.any()


def events(response):
    """The server-sent events of a response, as (name, data)."""
    parts = [part.split("\n") for part in response.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


def test_progress_comes_before_the_answer(server):
    asked = {"model": "digits", "classes": [3], "prior": "l2", "n_steps": 200}
    found = events(server.post("/api/prototypes", json=asked, headers={"accept": "text/event-stream"}))
    assert found[-1][0] == "answer"
    assert found[-1][1]["prototypes"][0]["name"] == "3"
    counts = [data for name, data in found if name == "progress"]
    assert any(0 < data["done"] < data["total"] for data in counts)
    assert [data["done"] for data in counts if data["total"]] == sorted(data["done"] for data in counts if data["total"])


def test_errors_are_events_too(server):
    asked = {"model": "digits", "drawing": drawing(), "target": "unicorn"}
    (found,) = events(server.post("/api/explain", json=asked, headers={"accept": "text/event-stream"}))[-1:]
    assert found[0] == "error"
    assert "no class 'unicorn'" in found[1]["error"]
    black = {"model": "tiny.py:net", "picture": picture((0, 0, 0))}
    (found,) = events(server.post("/api/explain", json=black, headers={"accept": "text/event-stream"}))[-1:]
    assert found == ("error", {"error": "the computation exceeded 8 s and was stopped; choose a faster method"})


def test_reliability_of_an_answer(server):
    found = server.post("/api/reliability", json={"model": "digits", "drawing": drawing(7), "target": 7}).json()
    assert "keeping the most relevant 10 % of the features keeps" in found["sentences"][0]


def test_language_questions_to_other_models_are_refused(server):
    found = server.post("/api/generation", json={"model": "digits", "text": "Once"})
    assert found.status_code == 422
    assert "digits writes no texts" in found.json()["error"]
    found = server.post("/api/sources", json={"model": "digits", "documents": []})
    assert "at least 1 item" in found.json()["error"]
