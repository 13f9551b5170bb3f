"""The page of `whence serve` as a person uses it, in a headless browser."""

import base64
import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from test_serve import picture, serving
from whence.models.digits import digit_samples

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
CHOSEN = "#classes button[aria-pressed=true]"
AXE = Path(__file__).parents[1] / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"

PHOTOS = """
from whence.models.images import Preprocessing
from whence.models.registry import LoadedModel
from torch import nn


def net():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return LoadedModel("photos", body, Preprocessing((16, 16)), ["ape", "bee", "cat"])
"""


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos.py").write_text(PHOTOS)
    with serving(folder, "--model", "digits", "--model", "photos.py:net") as (port, _):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1200, "height": 1000}, accept_downloads=True)
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#classes button")
    yield page
    context.close()


def draw(page, *points):
    box = page.locator("#drawing").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=12)
    page.mouse.up()


def heat(page, canvas="#heat"):
    """The pixels of a canvas, [H, W, 3]."""
    data = page.eval_on_selector(canvas, "canvas => canvas.toDataURL('image/png')").split(",")[1]
    return np.asarray(Image.open(BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def pressed(page):
    return page.locator(CHOSEN).inner_text().split()[0]


def test_one_draws_a_seven_and_sees_why(page):
    page.click("#clear")
    draw(page, (0.25, 0.25), (0.75, 0.25), (0.45, 0.8))
    expect(page.locator(CHOSEN)).to_have_text(re.compile("^7"))
    pixels = heat(page)
    red = (pixels[..., 0] - pixels[..., 2]) > 60
    stroke = np.asarray([[y, x] for y, x in zip(*np.nonzero(red), strict=True)])
    assert len(stroke) > 100
    assert stroke[:, 0].min() < 100  # the bar of the seven is red
    assert re.match(r"7: output [\d.]+ = relevance [\d.]+", page.inner_text("#account"))


def test_classes_methods_rules_and_colours(page):
    _, y = digit_samples()
    page.select_option("#sample", "3")
    expect(page.locator(CHOSEN)).to_have_text(re.compile(f"^{int(y[3])}"))
    before = heat(page)
    page.locator("#classes button").nth(1).click()
    expect(page.locator("#classes button").first).to_have_attribute("aria-pressed", "false")
    second = pressed(page)
    assert second != str(int(y[3]))
    page.select_option("#rather", str(int(y[3])))
    expect(page.locator("#account")).to_have_text(re.compile(f"^{second} rather than"))
    page.click("#likeliest")
    page.select_option("#rather", "")
    page.select_option("#rule", "gamma")
    assert page.locator("#gamma").is_visible()
    page.locator("#gamma").fill("1")
    expect(page.locator("#gamma-value")).to_have_text("1")
    page.select_option("#method", "gradient_times_input")
    assert page.locator("#rules").is_hidden()
    expect(page).to_have_url(re.compile("gradient_times_input"))
    assert not np.array_equal(heat(page), before)
    page.select_option("#palette", "safe")
    pixels = heat(page)
    assert ((pixels[..., 0] > 200) & (pixels[..., 1] < 140) & (pixels[..., 1] > 60)).any()  # orange


def test_layers_and_channels(page):
    page.click("#show-layers")
    page.wait_for_selector("#layers button")
    assert page.locator("#layers button").count() >= 8
    page.locator("#layers button").nth(3).click()
    page.wait_for_selector("#channels button")
    page.locator("#channels button").first.click()
    page.wait_for_selector("#channels canvas")
    assert "what flows through channel" in page.locator("#channels canvas").get_attribute("aria-label")


def test_pictures_downloads_and_permalinks(page, address, tmp_path):
    page.select_option("#model", "photos.py:net")
    (tmp_path / "photo.png").write_bytes(base64.b64decode(picture((90, 120, 60))))
    page.set_input_files("#file", tmp_path / "photo.png")
    expect(page.locator("#account")).to_have_text(re.compile("output"))
    assert page.locator("#picture").is_visible()
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "none.png")
    expect(page.locator("#error")).to_have_text(re.compile("no picture that can be read"))
    page.select_option("#model", "digits")
    page.select_option("#sample", "7")
    expect(page.locator("#account")).to_have_text(re.compile("output"))
    with page.expect_download() as arriving:
        page.click("[data-format=npz]")
    assert "relevance" in np.load(arriving.value.path()).files
    page.select_option("#rule", "z_plus")
    expect(page).to_have_url(re.compile("z_plus"))
    link, said = page.url, page.inner_text("#account")
    assert json.loads(unquote(link.split("#")[1]))["settings"]["rule"] == "z_plus"
    other = page.context.new_page()
    other.goto(link)
    expect(other.locator("#account")).to_have_text(said)
    assert other.input_value("#rule") == "z_plus"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_those_who_see_or_hear_it_otherwise(browser, address, scheme):
    if not AXE.is_file():
        pytest.skip("no axe-core: npm install --prefix .venv/axe axe-core")
    context = browser.new_context(bypass_csp=True, color_scheme=scheme, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#classes button")
    page.click("#show-layers")
    page.wait_for_selector("#layers button")
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run().then(({ violations }) => violations)")
    serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390  # readable on a phone
    context.close()
