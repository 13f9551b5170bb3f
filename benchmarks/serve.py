"""How soon the page of `whence serve` answers: from stroke to picture, and fifty at once for a minute.

python benchmarks/serve.py   # prints the table and writes benchmarks/results/serve.md
"""

import asyncio
import base64
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.server import serving
from whence.models.digits import digit_samples

STROKES, CLIENTS, SECONDS = 200, 50, 60


def drawings() -> list[str]:
    x, _ = digit_samples()
    return [base64.b64encode((one * 255).round().byte().numpy().tobytes()).decode() for one in x]


def memory(port: int) -> float:
    """MiB of the server and its processes."""
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            of_server = str(port).encode() in command or str(port).encode() in Path(f"/proc/{parent}/cmdline").read_bytes()
            pages += int((folder / "statm").read_text().split()[1]) * of_server
        except (OSError, IndexError):
            continue
    return pages * 4096 / 2**20


def one_who_draws(address: str) -> list[float]:
    found = []
    with httpx.Client(base_url=address, timeout=60) as client:
        for i, drawing in enumerate(drawings() * (STROKES // 50 + 1)):
            start = time.perf_counter()
            client.post("/api/explain", json={"model": "digits", "drawing": drawing}).raise_for_status()
            found += [time.perf_counter() - start] if i >= 10 else []
    return found


STROKE = """async () => {
  const drawing = document.getElementById("drawing"), box = drawing.getBoundingClientRect(), found = [];
  const pen = document.getElementById("heat").getContext("2d"), draw = pen.drawImage.bind(pen);
  let painted = null;
  pen.drawImage = (...given) => { draw(...given); painted?.(); };
  drawing.setPointerCapture = () => {};
  for (let i = 0; i < 100; i++) {
    const at = { clientX: box.left + 60 + 1.5 * i, clientY: box.top + 60 + 40 * Math.sin(i / 8), buttons: 1, bubbles: true };
    const start = performance.now();
    const moved = new PointerEvent(i ? "pointermove" : "pointerdown", at);
    await new Promise(done => { painted = done; drawing.dispatchEvent(moved); });
    found.push(performance.now() - start);
  }
  return found.slice(10);
}"""


def strokes(address: str) -> list[float]:
    """Seconds from the movement of a pen to the picture painted, in a headless browser."""
    import shutil

    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#classes button")
        page.click("#clear")
        page.wait_for_timeout(500)
        return [ms / 1e3 for ms in page.evaluate(STROKE)]


async def many_at_once(address: str) -> tuple[list[float], int]:
    found, failed, given, end = [], 0, drawings(), time.perf_counter() + SECONDS

    async def client(number: int) -> None:
        nonlocal failed
        async with httpx.AsyncClient(base_url=address, timeout=60) as session:
            while time.perf_counter() < end:
                start = time.perf_counter()
                answer = await session.post("/api/explain", json={"model": "digits", "drawing": given[number]})
                failed += answer.status_code != 200
                found.append(time.perf_counter() - start)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return found, failed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (port, _):
        address = f"http://127.0.0.1:{port}"
        drawn = strokes(address)
        alone = one_who_draws(address)
        before = memory(port)
        together, failed = asyncio.run(many_at_once(address))
        after = memory(port)
    ms = [statistics.median(times) * 1e3 for times in (alone, together, drawn)]
    late = [statistics.quantiles(times, n=20)[-1] * 1e3 for times in (alone, together, drawn)]
    lines = [
        "# The page of `whence serve`", "",
        f"`python benchmarks/serve.py`, torch {torch.__version__}, two cores, the clients on the same; from a question sent",
        "to its answer arrived, bundled digits.", "",
        "| who asks | answers | median, ms | 95 % below, ms | errors | MiB before → after |", "|---|---|---|---|---|---|",
        f"| in the browser, from stroke to picture | {len(drawn)} | {ms[2]:.0f} | {late[2]:.0f} | 0 | |",
        f"| one who asks without pause | {len(alone)} | {ms[0]:.0f} | {late[0]:.0f} | 0 | |",
        f"| {CLIENTS} at once for {SECONDS} s | {len(together)} | {ms[1]:.0f} | {late[1]:.0f} | {failed} "
        f"| {before:.0f} → {after:.0f} |",
    ]  # fmt: skip
    print("\n".join(lines))
    (Path(__file__).parent / "results" / "serve.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
