"""The page of `whence serve`: what is asked is answered, who may not ask is refused, what is no picture does no harm."""

import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.server import picture, serving
from whence.models.digits import digit_samples

httpx = pytest.importorskip("httpx")


pytest.importorskip("fastapi")
from whence.frontends.web import handlers  # noqa: E402
from whence.frontends.web.middleware import SecurityMiddleware  # noqa: E402

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
        assert "the server has no model" in found.json()["error"]
    web = Path(handlers.__file__).parent
    for file in (f for folder in ("static", "templates") for f in (web / folder).rglob("*.*")):  # no asset of another host
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
    for colour, status, message in (("white", 503, "the worker process died"), ("black", 422, "exceeded 8 s")):
        found = server.post("/api/explain", json={"model": "tiny.py:net", "picture": picture(colour)})
        assert found.status_code == status
        assert message in found.json()["error"]
        assert server.post("/api/explain", json={"model": "digits", "drawing": drawing()}).status_code == 200
    found = server.post("/api/explain", json={"model": "tiny.py:net", "picture": picture((90, 120, 60)), "target": "bee"})
    assert found.json()["target"]["name"] == "bee"
