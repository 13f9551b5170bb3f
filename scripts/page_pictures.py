"""Draw the pictures of docs/howto/serve.md: the pages of `whence serve` in a headless browser.

python scripts/page_pictures.py   # writes docs/images/serve*.png
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "frontends" / "web")]
from test_page import draw, explanations, opened  # noqa: E402

from support.server import serving  # noqa: E402

SEVEN = [(0.25, 0.25), (0.75, 0.25), (0.45, 0.8)]


def explaining(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#classes button")
    page.click("#clear")
    draw(page, *SEVEN)
    expect(page.locator("#account")).to_contain_text("7: output")


def looking_further(page: Page, address: str) -> None:
    explaining(page, address)
    opened(page, "beside", "check", "flow", "attack")
    expect(page.locator("#methods figure")).to_have_count(8)
    expect(page.locator("#methods")).not_to_contain_text("…")
    expect(page.locator("#reliability")).to_contain_text("%")
    page.locator("#layers button").nth(3).click()
    for i in range(3):
        page.locator("#channels > button").nth(i).click()
        page.locator("#channels canvas").nth(i).wait_for()
    page.click("#concept button")
    page.wait_for_selector("#concept figure")
    page.locator("#distance").fill("0.15")
    page.wait_for_selector("#twin figure")


def reading_a_table(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#classes button")
    page.locator("#examples button", has_text="A table").click()
    page.wait_for_selector("#waterfall tr")


def reading_a_series(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#classes button")
    page.locator("#examples button", has_text="A time series").click()
    page.wait_for_selector("#curves svg")


def stepping(page: Page, address: str) -> None:
    page.goto(f"{address}flow.html")
    for _ in range(3):
        page.locator("#next:not([disabled])").click()


def searching(page: Page, address: str) -> None:
    page.goto(f"{address}prototypes.html")
    page.wait_for_selector("#model option", state="attached")
    page.click("#search")
    page.wait_for_selector("#found figure")


def auditing(page: Page, address: str) -> None:
    page.goto(f"{address}reports.html")
    page.wait_for_selector("#store option", state="attached")
    page.click("#audit button")
    page.frame_locator("#report").locator("h2").first.wait_for()
    page.wait_for_timeout(500)


PICTURES = {
    "": explaining,
    "_next": looking_further,
    "_table": reading_a_table,
    "_series": reading_a_series,
    "_steps": stepping,
    "_prototypes": searching,
    "_audit": auditing,
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        explanations(Path(folder) / "explanations")
        with serving(Path(folder), "--store", "explanations") as (port, _):
            browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(60_000)
            for name, fill in PICTURES.items():
                fill(page, f"http://127.0.0.1:{port}/")
                page.screenshot(path=ROOT / "docs" / "images" / f"serve{name}.png", full_page=fill is not auditing)
            browser.close()


if __name__ == "__main__":
    main()
