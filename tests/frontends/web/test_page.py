"""The page of `whence serve` as a person uses it, in a headless browser."""

import base64
import importlib.util
import json
import re
import shutil
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

import whence
from support.server import picture, serving
from whence.models.digits import digit_samples, digits

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


expect = playwright.expect


expect.set_options(timeout=60_000)


CHOSEN = "#classes button[aria-pressed=true]"


DATA = Path(__file__).parents[4] / "shared" / "data"


AXE = Path(__file__).parents[3] / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"


PHOTOS = """
from whence.models.preprocessing import Preprocessing
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


STORIES = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import support.torchvision_operators  # noqa: F401
from support.story_model import story_model, story_tokenizer
from whence.models.preprocessing import Preprocessing
from whence.models.registry import LoadedModel
from whence.models.text_tokenizer import TextTokenizer


def llama():
    data = Path({data!r})
    return LoadedModel("stories", story_model(data), Preprocessing(None), text=TextTokenizer(story_tokenizer(data)))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos.py").write_text(PHOTOS)
    models = ["digits", "photos.py:net", "surfaces", "reviews", "wine", "heartbeats"]
    if has_stories():
        (folder / "texts.py").write_text(STORIES.format(tests=str(Path(__file__).parents[2]), data=str(DATA)))
        models.append("texts.py:llama")
    explanations(folder / "explanations")
    options = [part for name in models for part in ("--model", name)]
    with serving(folder, *options, "--store", "explanations") as (port, _):
        yield f"http://127.0.0.1:{port}/"


def explanations(folder):
    """A store of digits, with a mark in one class."""
    x, y = digit_samples()
    x = torch.cat([x.roll(shift, 3) for shift in (-1, 0, 1)])
    x[y.repeat(3) == 3, :, :4, :4] = 1
    whence.explain_dataset(digits(), (x, y.repeat(3)), folder, progress=False)


def has_stories():
    return importlib.util.find_spec("transformers") is not None and (DATA / "stories260k.npz").is_file()


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


def opened(page, *sections):
    """Open sections under "What next?"."""
    for name in sections:
        page.click(f"#{name} > summary")


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
    page.select_option("#rather", label=str(int(y[3])))
    expect(page.locator("#account")).to_have_text(re.compile(f"^{second} rather than"))
    page.click("#likeliest")
    page.select_option("#rather", "")
    page.click("#rules summary")
    page.select_option("#rule", "gamma")
    assert page.locator("#gamma").is_visible()
    page.locator("#gamma").fill("1")
    expect(page.locator("#gamma-value")).to_have_text("1")
    page.select_option("#method", "gradient_times_input")
    assert page.locator("#rules").is_hidden()
    expect(page).to_have_url(re.compile("gradient_times_input"))
    assert not np.array_equal(heat(page), before)
    page.select_option("#palette", "safe")
    expect(page.locator("#for-colour")).to_have_text("Orange")
    pixels = heat(page)
    assert ((pixels[..., 0] > 200) & (pixels[..., 1] < 140) & (pixels[..., 1] > 60)).any()  # orange


def test_layers_and_channels(page):
    opened(page, "flow")
    page.wait_for_selector("#layers button")
    assert page.locator("#layers button").count() >= 8
    page.locator("#layers button").nth(3).click()
    page.wait_for_selector("#channels button")
    page.locator("#channels button").first.click()
    page.wait_for_selector("#channels canvas")
    assert "relevance through channel" in page.locator("#channels canvas").get_attribute("aria-label")


def test_pictures_downloads_and_permalinks(page, address, tmp_path):
    page.select_option("#model", "photos.py:net")
    (tmp_path / "photo.png").write_bytes(base64.b64decode(picture((90, 120, 60))))
    page.set_input_files("#file", tmp_path / "photo.png")
    expect(page.locator("#account")).to_have_text(re.compile("output"))
    expect(page.locator("#picture")).to_be_visible()
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "none.png")
    expect(page.locator("#error")).to_have_text(re.compile("not an image that can be read"))
    page.select_option("#model", "digits")
    page.select_option("#sample", "7")
    expect(page.locator("#account")).to_have_text(re.compile("output"))
    with page.expect_download() as arriving:
        page.click("[data-format=npz]")
    assert "relevance" in np.load(arriving.value.path()).files
    page.click("#rules summary")
    page.select_option("#rule", "z_plus")
    expect(page).to_have_url(re.compile("z_plus"))
    link, said = page.url, page.inner_text("#account")
    assert json.loads(unquote(link.split("#")[1]))["settings"]["rule"] == "z_plus"
    other = page.context.new_page()
    other.goto(link)
    expect(other.locator("#account")).to_contain_text(said.split("\n")[0])
    assert other.input_value("#rule") == "z_plus"


def test_what_a_channel_stands_for(page):
    opened(page, "flow")
    page.locator("#layers button").nth(3).click()
    page.locator("#channels button").first.click()
    page.get_by_role("button", name="responds to").click()
    expect(page.locator("#concept figure")).to_have_count(7)
    assert page.locator("#concept figcaption span").first.inner_text() == "prototype"


def test_methods_side_by_side(page):
    page.select_option("#sample", "7")
    opened(page, "beside")
    shown = page.locator("#methods figure")
    expect(shown.last).to_contain_text("occlusion")
    expect(shown.last).not_to_contain_text("…")
    said = [figure.inner_text() for figure in shown.all()]
    assert len(said) == 8
    assert re.search(r"^LRP\nadds up: ([\d.]+) of \1$", said[0])
    assert "does not add up" in next(words for words in said if words.startswith("Grad-CAM"))
    common = heat(page, "#methods figure:nth-child(1) canvas")
    page.uncheck("#common")
    assert not np.array_equal(heat(page, "#methods figure:nth-child(1) canvas"), common)  # its largest value is another


def test_an_attack_grows_with_epsilon(page):
    page.select_option("#sample", "7")
    opened(page, "attack")
    page.locator("#distance").fill("0.01")
    expect(page.locator("#twin")).to_contain_text("still 7")
    page.locator("#distance").fill("0.25")
    expect(page.locator("#twin")).to_contain_text("was 7")
    assert page.locator("#twin canvas").get_attribute("aria-label").startswith("heatmap of the adversarial example for")


def test_one_steps_through_a_tiny_network(page, address):
    page.goto(address + "flow.html")
    expect(page.locator("#step")).to_have_text("Step 0 of 3: the forward pass gives y = 3.")
    assert page.locator("#back").is_disabled()
    for said in ("is its activation", "from y down to h1, h2, h3", "from h1, h2, h3 down to a1, a2"):
        page.click("#next")
        expect(page.locator("#step")).to_contain_text(said)
    assert page.locator("#next").is_disabled()
    expect(page.locator("#numbers caption")).to_have_text("a1 receives 1.5 + 1 + 0 = 2.5; a2 receives 0.5 + 0 + 0 = 0.5")
    assert page.locator("#numbers tbody tr").first.inner_text().split("\t") == ["h1 → a1", "3", "0.5", "1.5", "2", "2", "1.5"]
    page.select_option("#way", "min, by the first")
    page.locator("#a2").fill("3")
    page.select_option("#rule", "gamma")
    expect(page.locator("#numbers caption")).to_contain_text("a2 receives 0 + 0 = 0")  # at a1 = a2 all goes to one
    expect(page.locator("#formula")).to_contain_text("γ")


def test_prototypes_of_all_digits(page, address):
    page.goto(address + "prototypes.html")
    expect(page.locator("#prior")).to_have_value("expert")
    page.locator("#steps").fill("64")
    page.click("#search")
    expect(page.locator("#found figure")).to_have_count(10)
    shares = re.findall(r"probability ([\d.]+) %", page.inner_text("#found"))
    assert all(float(share) > 90 for share in shares)
    page.select_option("#model", "photos.py:net")
    page.locator("#which").fill("bee, unicorn")
    page.click("#search")
    expect(page.locator("#busy .error")).to_contain_text("no class 'unicorn'")


def test_evaluations_and_audits_are_shown_as_reports(page, address):
    page.goto(address + "reports.html")
    for name in ("integrated_gradients", "sensitivity", "max_sensitivity"):
        page.uncheck(f"input[value={name}]")
    page.locator("#count").fill("5")
    page.click("#evaluation button")
    report = page.frame_locator("#report")
    expect(report.locator("h1")).to_have_text("Evaluation of explanation methods")
    assert report.locator("tbody tr").count() == 3
    page.locator("#audit button").press("Enter")
    expect(report.locator("h1")).to_have_text("Audit of explanations")
    expect(report.locator("body")).to_contain_text("not tested: pass")
    assert "Class" in report.locator("h2").first.inner_text()
    assert report.locator("img.usual").first.is_visible()
    report.locator("#safe").check()
    assert report.locator("img.safe").first.is_visible()
    assert not report.locator("img.usual").first.is_visible()
    page.locator("#tested").press("Space")
    page.click("#audit button")
    expect(page.locator("#audit-busy .error")).to_contain_text(
        "the dataset has 50 samples, but the store was computed from 150"
    )
    page.select_option("#model", "photos.py:net")
    expect(page.locator("#of-data")).to_contain_text("--data FOLDER")
    expect(page.locator("#tested-label")).to_be_hidden()


def test_a_token_is_asked_by_a_click(page):
    if not has_stories():
        pytest.skip("no small Llama in ../shared/data, or no transformers")
    page.select_option("#model", "texts.py:llama")
    page.locator("#text").fill("Lily and Tim went to the park. Lily saw")
    page.click("#text-input button")
    tokens = page.locator("#tokens button")
    expect(tokens.first).to_be_visible()
    said = page.inner_text("#account")
    tokens.nth(5).click()
    expect(page.locator("#account")).not_to_have_text(said)
    assert "background: rgb(255, 255, 255)" in tokens.nth(8).get_attribute("style")  # what comes later has no part in it
    tokens.nth(0).click()
    expect(page.locator("#error")).to_contain_text("the first token has no preceding context")
    assert page.locator("#flow").is_hidden()


def test_examples_of_each_kind(page):
    """Each card explains an input of its kind, which can be read, and as the card says."""
    cards = page.locator("#examples button")
    expect(cards).to_have_count(5)
    cards.filter(has_text="A photo").click()
    expect(page.locator("#account")).to_contain_text("grass: output")
    red = (heat(page)[..., 0] - heat(page)[..., 2]) > 60
    assert red[:, 64:].sum() > 10 * red[:, :60].sum()  # the lawn is on the right
    cards.filter(has_text="A sentence").click()
    expect(page.locator("#account")).to_contain_text("negative: output")
    rude = page.locator("#tokens span", has_text="rude")
    assert rude.get_attribute("title").startswith("relevance +")
    assert page.locator("#tokens span", has_text="delicious").get_attribute("title").startswith("relevance −")
    rude.hover()
    expect(page.locator("#readout")).to_contain_text("“rude”: relevance +")
    cards.filter(has_text="A table").click()
    expect(page.locator("#waterfall tr").first).to_contain_text("base value")
    expect(page.locator("#waterfall tr").last).to_contain_text("output")
    cards.filter(has_text="A time series").click()
    expect(page.locator("#account")).to_contain_text("early beat: output")
    page.locator("#curves svg").first.hover()
    expect(page.locator("#readout")).to_contain_text(re.compile(r"lead I at 1\.(49|5) s: value"))
    expect(cards.filter(has_text="A time series")).to_have_attribute("aria-pressed", "true")


def test_values_at_the_pointer_and_the_legend(page):
    page.select_option("#sample", "4")
    expect(page.locator("#legend")).to_contain_text("for 4")
    page.locator("#heat").focus()
    page.keyboard.press("ArrowRight")  # from the pixel of the largest relevance
    expect(page.locator("#cursor")).to_be_visible()
    expect(page.locator("#readout")).to_have_text(re.compile(r"x \d+, y \d+: relevance [+−\d.e-]+, [−\d.e-]+ % of the output"))
    box = page.locator("#heat").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("#readout")).to_contain_text("x 14, y 14")


def test_values_of_a_row_are_typed_or_pasted(page):
    page.select_option("#model", "wine")
    expect(page.locator("#account")).to_contain_text("grower 1: output 3.03")
    page.locator("#fields input").last.fill("200")
    page.locator("#fields input").last.press("Enter")
    expect(page.locator("#waterfall")).to_contain_text("proline = 200")
    expect(page.locator("#account")).not_to_contain_text("output 3.03")
    page.locator("#fields input").first.fill("13,5")  # a decimal comma is no number, and not 135
    page.locator("#fields input").first.press("Enter")
    expect(page.locator("#error")).to_contain_text("'13,5' is not a number")
    expect(page.locator("#waterfall")).to_be_hidden()  # no answer to another question remains
    page.click("#table-input summary")
    header = page.input_value("#csv").splitlines()[0]
    page.fill("#csv", header + "\n" + ",".join(["1"] * 13))
    page.click("#table-input button[type=submit]")
    expect(page.locator("#row option")).to_have_count(1)
    expect(page.locator("#waterfall")).to_contain_text("proline = 1")
    row = ",".join(["2"] * 13)
    page.fill("#csv", f"{header}\n\n{row}\n\n{row.replace('2', '3')}\n")  # empty lines are no rows
    page.click("#table-input button[type=submit]")
    expect(page.locator("#row option")).to_have_count(2)
    page.select_option("#row", "1")
    expect(page.locator("#waterfall")).to_contain_text("proline = 3")
    assert page.locator("#fields input").first.input_value() == "3"
    page.reload()
    expect(page.locator("#waterfall")).to_contain_text("proline = 3")
    assert page.locator("#fields input").first.input_value() == "3"
    page.click("#table-input summary")
    page.fill("#csv", "alcohol,hue\n1,2")
    page.click("#table-input button[type=submit]")
    expect(page.locator("#error")).to_contain_text("the table has no column 'malic acid'")
    page.select_option("#model", "heartbeats")
    expect(page.locator("#account")).to_contain_text("output")
    page.set_input_files("#series-file", files=[{"name": "s.csv", "mimeType": "text/csv", "buffer": b"1,2\n3,4"}])
    expect(page.locator("#error")).to_contain_text("the series has 2 time steps; the model takes 300")


def test_a_slow_answer_shows_its_progress_and_is_cancelled(page, address):
    page.goto(address + "prototypes.html")
    expect(page.locator("#prior")).to_have_value("expert")
    page.locator("#steps").fill("512")
    page.click("#search")
    expect(page.locator("#busy progress[value]")).to_be_visible()
    expect(page.locator("#busy")).to_contain_text(re.compile(r"step \d+ of 512"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#busy .working")).to_have_count(0)
    expect(page.locator("#search")).to_be_enabled()
    assert page.locator("#found figure").count() == 0


def test_code_for_what_is_on_the_page(page):
    page.select_option("#sample", "3")
    page.locator("#classes button").nth(1).click()
    opened(page, "reuse")
    expect(page.locator("#code pre").first).to_contain_text("loaded.examples()[3]")
    expect(page.locator("#code pre").last).to_contain_text("--sample 3")
    page.select_option("#model", "reviews")
    expect(page.locator("#code pre").first).to_contain_text("loaded.examples()[0]")
    page.fill("#text", "the soup was good")
    page.select_option("#method", "sensitivity")  # explains the text as it is now
    expect(page.locator("#code pre").first).to_contain_text("loaded.text.read('the soup was good')")


def test_an_empty_drawing_and_outdated_answers(page):
    page.click("#clear")
    expect(page.locator("#empty")).to_contain_text("Draw a digit")
    assert page.locator("#classes button").count() == 0
    page.select_option("#sample", "7")
    expect(page.locator("#account")).to_contain_text("7: output")
    page.select_option("#rather", label="7")
    expect(page.locator("#error")).to_contain_text("7 is compared with itself")
    expect(page.locator("#heat")).to_be_hidden()
    page.select_option("#rather", label="no other class")
    page.locator("#classes button").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#classes button:focus")).to_have_attribute("aria-pressed", "true")
    page.select_option("#palette", "grey")
    expect(page.locator("#legend")).to_contain_text("much, for or against")


def test_what_is_written_and_its_sources(page):
    if not has_stories():
        pytest.skip("no small Llama in ../shared/data, or no transformers")
    page.select_option("#model", "texts.py:llama")
    page.locator("#text").fill("Lily and Tim went to the park. Lily saw")
    page.click("#text-input button")
    expect(page.locator("#account")).to_have_text(re.compile("^a: output"))
    page.fill("#rather-token", "her")
    page.keyboard.press("Enter")
    expect(page.locator("#account")).to_have_text(re.compile("^a rather than her: output"))
    opened(page, "write", "sources")
    page.locator("#new-tokens").fill("3")
    page.click("#write-form button[type=submit]")
    new = page.locator("#written .tokens .new")
    expect(new).to_have_count(3)
    new.first.click()
    expect(page.locator("#written .account")).to_contain_text(f"“{new.first.inner_text().strip()}”: output")
    for place, text in zip(page.locator("#documents textarea").all(), ("Tom has a red ball.", "The cat is big."), strict=True):
        place.fill(text)
    page.fill("#sources-question", "Tom and Lily played with")
    page.fill("#sources-response", " the ball.")
    page.click("#sources-form button[type=submit]")
    expect(page.locator("#found-sources .source").first).to_contain_text("Tom has a red ball.")


def reports(folder):
    """The pages that are saved."""
    x, y = digit_samples()
    whence.explain(digits(), x[:2]).save(folder / "explanation.html")
    whence.evaluate(digits(), (x[:4], y[:4]), ["lrp", "random"], ["sparseness"], progress=False).save(
        folder / "evaluation.html"
    )
    whence.explain_dataset(digits(), (x.repeat(3, 1, 1, 1), y.repeat(3)), folder / "store", progress=False)
    whence.audit(folder / "store", progress=False).save(folder / "audit.html")
    return [(f"file://{folder / name}.html", "h1") for name in ("explanation", "evaluation", "audit")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_those_who_see_or_hear_it_otherwise(browser, address, scheme, tmp_path):
    if not AXE.is_file():
        pytest.skip("no axe-core: npm install --prefix .venv/axe axe-core")
    context = browser.new_context(bypass_csp=True, color_scheme=scheme, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#classes button")
    opened(page, "flow", "beside", "attack", "check", "reuse")
    page.wait_for_selector("#layers button")
    page.wait_for_selector("#twin figure")
    page.wait_for_selector("#code pre")
    expect(page.locator("#reliability")).to_contain_text("%")
    expect(page.locator("#methods figure")).to_have_count(8)
    check_accessible(page)
    for model in ("reviews", "wine", "heartbeats"):
        page.select_option("#model", model)
        expect(page.locator("#account")).to_contain_text("output")
        check_accessible(page)
    page.goto(address + "flow.html")
    for _ in range(3):
        page.locator("#next:not([disabled])").click()
    check_accessible(page)
    page.goto(address + "prototypes.html")
    page.locator("#which").fill("3")
    page.click("#search")
    page.wait_for_selector("#found figure")
    check_accessible(page)
    for place, ready in ((f"{address}reports.html", "#store option"), *reports(tmp_path)):
        page.goto(place)
        page.wait_for_selector(ready, state="attached")
        check_accessible(page)
    context.close()


def check_accessible(page):
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run().then(({ violations }) => violations)")
    serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390  # readable on a phone
