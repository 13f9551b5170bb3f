"""The page of `whence serve`: what is asked is answered, who may not ask is refused, what is no picture does no harm."""

import base64
import io
import os
import random
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import whence
from whence.models.digits import digit_samples, digits

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

from whence.errors import InputError  # noqa: E402
from whence.frontends.web import handlers  # noqa: E402
from whence.frontends.web.images import decode_base64, open_image  # noqa: E402
from whence.frontends.web.middleware import SecurityMiddleware  # noqa: E402
from whence.frontends.web.schemas import ChannelRequest, ExplainRequest, RuleSettings  # noqa: E402
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


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def serving(folder, *options):
    port = free_port()
    command = [sys.executable, "-c", "import whence_command; whence_command.main()", "serve", "--port", str(port), *options]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
                break
            except httpx.TransportError:
                assert server.poll() is None, (folder / "log").read_text()
        yield port, (folder / "log")
    finally:
        server.terminate()
        server.wait(60)


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


def picture(colour, size=(20, 20), kind="PNG"):
    written = io.BytesIO()
    Image.new("RGB", size, colour).save(written, kind)
    return base64.b64encode(written.getvalue()).decode()


def numbers(packed):
    return torch.from_numpy(np.frombuffer(base64.b64decode(packed["data"]), "<f4").copy()).view(packed["shape"])


# answers


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
    assert "bundled for digits alone" in wrong.json()["error"]


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
    assert "no network" in server.post("/api/steps", json={"way": "max", "inputs": [3, 1]}).json()["error"]


def test_reports_are_pages_that_run_nothing(server):
    asked = {"model": "digits", "methods": ["lrp", "random"], "metrics": ["sparseness"], "count": 5}
    address = server.post("/api/evaluation", json=asked).json()["address"]
    page = server.get(f"/{address}")
    assert "Which explanation can be trusted?" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "sandbox" in page.headers["content-security-policy"]
    assert "<script" not in page.text
    assert server.get("/api/reports/none").status_code == 404
    wrong = server.post("/api/evaluation", json=asked | {"methods": ["lrpp"]})
    assert "no method 'lrpp'" in wrong.json()["error"]
    without = server.post("/api/evaluation", json=asked | {"model": "tiny.py:net"})
    assert "start the server with it: whence serve --model tiny.py:net --data FOLDER" in without.json()["error"]
    audit = server.post("/api/audit", json={"store": "/etc"})
    assert "no store '/etc' was named at the start" in audit.json()["error"]


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("npz", b"PK"), ("html", b"<!doctype html>")])
def test_downloads(server, kind, begins):
    found = server.post("/api/download", json={"model": "digits", "drawing": drawing(), "format": kind})
    assert found.content.lower().startswith(begins.lower())
    assert found.headers["content-disposition"] == "attachment"


def test_texts_token_by_token(data, monkeypatch):
    from stories import story_model, story_tokenizer
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


# who may ask


def test_other_names_origins_and_kinds_are_refused(server):
    asked = {"model": "digits", "drawing": drawing()}
    port = server.base_url.port
    for headers, status in [
        ({"host": "evil.example"}, 421),
        ({"host": f"evil.example:{port}"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": f"http://127.0.0.1:{port + 1}"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
    ]:
        assert server.post("/api/explain", json=asked, headers=headers).status_code == status, headers
    assert server.post("/api/explain", json=asked, headers={"origin": f"http://127.0.0.1:{port}"}).status_code == 200
    page = server.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


def test_nothing_but_the_page_and_the_models_given_is_there(server):
    for path in (
        "/docs",
        "/openapi.json",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/api/secret",
        "/main.js/../../app.py",
    ):
        assert server.get(path).status_code in (404, 405), path
    for name in ("robust", "tiny.py:other", "hf:anything", "../tiny.py:net", "os.py:system"):
        found = server.post("/api/explain", json={"model": name, "drawing": drawing()})
        assert found.status_code == 422
        assert "was started here" in found.json()["error"]
    web = Path(handlers.__file__).parent
    for file in (*(web / "static").iterdir(), *(web / "templates").iterdir()):  # no asset of another host
        assert not re.search(r"(src|href|from|import)[=( ]*[\"']https?://", file.read_text()), file


def test_links_may_be_followed_and_other_cookies_do_no_harm(server):
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert server.get("/", headers=followed).status_code == 200
    assert server.get("/api/models", headers=followed).status_code == 403
    guard = SecurityMiddleware(None, frozenset({"localhost:1"}), "secret")
    assert not guard._knows_token({"cookie": "a/b=1; whence_token=other"})


def test_a_model_is_served_once(tmp_path):
    command = [sys.executable, "-c", "import whence_command; whence_command.main()", "serve", *["--model", "digits"] * 2]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2
    assert "given twice" in refused.stderr


def test_addresses_are_known_where_a_token_is_asked_for():
    hosts = frozenset({"localhost:1"})
    for name, known in (("192.168.1.5:8000", True), ("[fe80::1]:8000", True), ("evil.example:8000", False), ("", False)):
        assert SecurityMiddleware(None, hosts, "secret")._is_own(name) is known
        assert not SecurityMiddleware(None, hosts)._is_own(name)


def test_large_bodies_and_strange_questions_are_refused(server):
    assert (
        server.post("/api/explain", content=b"x" * (14 * 2**20), headers={"content-type": "application/json"}).status_code
        == 413
    )

    def endless():
        for _ in range(15):
            yield b"x" * 2**20

    try:
        status = server.post("/api/explain", content=endless(), headers={"content-type": "application/json"}).status_code
    except httpx.TransportError:  # cut off while it was sending
        status = 413
    assert status in (400, 413)
    for asked in (
        {"model": "digits"}, {"model": "digits", "drawing": "??"}, {"model": "digits", "drawing": "eA=="},
        {"model": "digits", "drawing": drawing(), "target": 11}, {"model": "digits", "drawing": drawing(), "target": "eleven"},
        {"model": "digits", "drawing": drawing(), "method": "magic"}, {"model": "digits", "drawing": drawing(), "extra": 1},
        {"model": "digits", "drawing": drawing(), "target": 3, "rather_than": 3}, {"model": "digits", "text": "seven"},
        {"model": "digits", "drawing": drawing(), "settings": {"gamma": -1}},
        {"model": "digits", "picture": picture("red")[:40]},
        {"model": "digits", "drawing": drawing(), "settings": {"rule": "alpha_beta", "alpha": 1e9}}, [], 7,
    ):  # fmt: skip
        found = server.post("/api/explain", json=asked)
        assert found.status_code == 422, asked
        assert len(found.text) < 600
        assert "Traceback" not in found.text


def test_a_token_is_asked_for_where_others_may_come(tmp_path):
    with serving(tmp_path, "--host", "0.0.0.0") as (port, log):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert client.get("/").status_code == 401
            assert client.get("/?token=guess").status_code == 401
            token = re.search(r"token=([\w-]+)", log.read_text())[1]
            arrived = client.get("/", params={"token": token}, follow_redirects=True)
            assert arrived.status_code == 200
            assert "token" not in str(arrived.url)
            assert client.get("/api/models").status_code == 200
        bearer = httpx.get(f"http://127.0.0.1:{port}/api/models", headers={"authorization": f"Bearer {token}"}, timeout=60)
        assert bearer.status_code == 200


def test_a_crash_or_a_question_without_end_leaves_the_rest_running(server):
    for colour, message in (("white", "the process that computed this ended"), ("black", "took longer than 8 s")):
        found = server.post("/api/explain", json={"model": "tiny.py:net", "picture": picture(colour)})
        assert found.status_code == 422
        assert message in found.json()["error"]
        assert server.post("/api/explain", json={"model": "digits", "drawing": drawing()}).status_code == 200
    found = server.post("/api/explain", json={"model": "tiny.py:net", "picture": picture((90, 120, 60)), "target": "bee"})
    assert found.json()["target"]["name"] == "bee"


# what is no picture


def bomb():
    """A PNG of 60,000 × 60,000 white pixels in a few kilobytes."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(b"\0" * 2_000_000, 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def fuzzed(count):
    """Pictures cut short, changed, of other kinds, with scripts and paths."""
    rng = random.Random(0)
    good = [base64.b64decode(picture("red", (9, 7), kind)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    others = [
        b"", b"\0" * 100, b"GIF89a", bomb(), b"%PDF-1.7", b"../../etc/passwd", b"<html><script>alert(1)</script>",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", b"PK\x03\x04" + b"\0" * 60,
        b"\x89PNG\r\n\x1a\n", b"II*\0" + b"\xff" * 80,
        b"P6 99999999 99999999 255\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
    ]  # fmt: skip
    for number in range(count):
        data = bytearray(rng.choice(good if number % 4 else others))
        for _ in range(rng.randrange(1, 9) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield bytes(data[: rng.randrange(len(data) + 1)]) if rng.random() < 0.4 else bytes(data)


@pytest.mark.parametrize("count", [2000, pytest.param(10000, marks=pytest.mark.slow)])
def test_what_is_no_picture_does_no_harm(count, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused, messages = 0, set()
    for data in fuzzed(count):
        try:
            open_image(data)
        except InputError as error:
            refused += 1
            messages.add(str(error))
    assert refused > count / 4
    assert max(map(len, messages)) < 400
    assert os.listdir(tmp_path) == []


def test_pictures_are_bounded_in_bytes_pixels_and_kinds():
    with pytest.raises(InputError, match="send one of at most 8 MiB"):
        open_image(b"\0" * (9 * 2**20))
    with pytest.raises(InputError, match=r"no picture that can be read|pixels; send a smaller one"):
        open_image(bomb())
    with pytest.raises(InputError, match="no picture that can be read"):
        open_image(base64.b64decode(picture("red", kind="TIFF")))
    with pytest.raises(InputError, match="did not arrive whole"):
        decode_base64("%%%")


def test_rules_of_the_page_are_those_of_the_library():
    assert RuleSettings().rule == "default"
    with pytest.raises(ValueError, match="less than or equal to 100"):
        RuleSettings(gamma=1e9)
    assert ChannelRequest(model="digits", layer="0").channel is None
