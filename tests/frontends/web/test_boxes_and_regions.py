"""The page with a detector and a segmenter: boxes are drawn and chosen by a click, places of a map too."""

import base64
import io
import shutil

import pytest
import torch
from PIL import Image

import whence
from support.server import serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
httpx = pytest.importorskip("httpx")
expect = playwright.expect
CHOSEN = "#classes button[aria-pressed=true]"

MODELS = """
import torch
from torch import nn

import whence

NAMES = ["cat", "dog", "cow"]


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 3, 8, 8)

    def forward(self, x):
        scores = self.body(x).flatten(2)
        rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
        centres = (torch.stack([columns.flatten(), rows.flatten()]) * 8 + 4.0).expand(len(x), -1, -1)
        return torch.cat([centres, torch.full_like(centres, 6.0), (2 * scores).sigmoid()], 1)


def detector():
    return whence.LoadedModel("detector", Detector().eval(), whence.Preprocessing(None), NAMES)


def segmenter():
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    return whence.LoadedModel("segmenter", body.eval(), whence.Preprocessing(None), NAMES)
"""


def photo():
    pixels = torch.randint(0, 256, (32, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(written, "PNG")
    return written.getvalue()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "nets.py").write_text(MODELS)
    with serving(folder, "--model", "nets.py:detector", "--model", "nets.py:segmenter") as (port, _):
        yield port, folder


def asked(port, model, **more):
    question = {"model": f"nets.py:{model}", "picture": base64.b64encode(photo()).decode()} | more
    return httpx.post(f"http://127.0.0.1:{port}/api/explain", json=question, timeout=120)


def explained(folder, model, target):
    loaded = whence.load_model(str(folder / f"nets.py:{model}"))
    (folder / "photo.png").write_bytes(photo())
    return whence.explain(loaded, loaded.preprocessing.read(folder / "photo.png"), target)


def test_boxes_are_answered(port):
    port, folder = port
    found = asked(port, "detector").json()
    assert found["kind"] == "boxes"
    assert [choice["index"] for choice in found["classes"]] == list(range(10))
    assert found["target"]["index"] == 0
    assert found["target"]["name"] == explained(folder, "detector", whence.Detection()).target_names()[0]
    third = asked(port, "detector", target=2).json()
    e = explained(folder, "detector", whence.Detection(2))
    assert third["output"] == pytest.approx(e.output.item(), rel=1e-4)
    assert third["classes"][2]["box"] == pytest.approx(e.target.box[0].tolist())
    refused = asked(port, "detector", rather_than=1)
    assert refused.status_code == 422
    assert "explained alone" in refused.text


def test_regions_are_answered(port):
    port, folder = port
    found = asked(port, "segmenter").json()
    e = explained(folder, "segmenter", whence.Region())
    assert found["kind"] == "map"
    assert found["target"] == {"name": e.target_names()[0], "index": e.target.index.item()}
    assert sum(choice["share"] for choice in found["classes"]) == pytest.approx(1)
    point = asked(port, "segmenter", point=[10, 20]).json()
    at_point = explained(folder, "segmenter", whence.Region(point=(10, 20)))
    assert point["output"] == pytest.approx(at_point.output.item(), rel=1e-4)
    assert point["point"] == [10, 20]


def test_a_click_chooses_a_box_or_a_place(port, tmp_path):
    port, _ = port
    (tmp_path / "photo.png").write_bytes(photo())
    with playwright.sync_playwright() as started:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if chromium is None:
            pytest.skip("no chromium on this machine: apt-get install chromium")
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.select_option("#model", "nets.py:detector")
        page.set_input_files("#file", tmp_path / "photo.png")
        expect(page.locator("#classes button")).to_have_count(10)
        expect(page.locator("#choose")).to_contain_text("Choose a box")
        heat = page.locator("#heat")
        size = heat.bounding_box()
        left, top, right, bottom = asked(port, "detector").json()["classes"][3]["box"]
        middle = {"x": size["width"] * (left + right) / 2 / 48, "y": size["height"] * (top + bottom) / 2 / 32}
        heat.click(position=middle)
        expect(page.locator("#account")).to_contain_text(f"in the box ({left:.0f}, {top:.0f}, {right:.0f}, {bottom:.0f})")
        page.screenshot(path=tmp_path / "boxes.png")
        page.locator("#classes button").nth(0).click()
        expect(page.locator(CHOSEN)).to_have_count(1)
        page.select_option("#model", "nets.py:segmenter")
        expect(page.locator("#choose")).to_contain_text("click a place")
        size = heat.bounding_box()
        heat.click(position={"x": size["width"] * 20.5 / 48, "y": size["height"] * 10.5 / 32})
        expect(page.locator("#account")).to_contain_text("at the point (20, 10)")
        page.locator("#classes button").nth(0).click()
        expect(page.locator("#account")).to_contain_text("where it is predicted")
        edges = heat.bounding_box()
        corners = [
            (edges["x"] + edges["width"] * x / 48, edges["y"] + edges["height"] * y / 32) for x, y in ((4.5, 6.5), (20.5, 18.5))
        ]
        page.mouse.move(*corners[0])
        page.mouse.down()
        page.mouse.move(*corners[1])
        page.mouse.up()
        expect(page.locator("#account")).to_contain_text("in the box (4, 6, 21, 19)")
        browser.close()
