"""How soon the page of `whence serve` answers: one who draws, and fifty at once for a minute.

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
from test_serve import serving
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
        alone = one_who_draws(address)
        before = memory(port)
        together, failed = asyncio.run(many_at_once(address))
        after = memory(port)
    ms = [statistics.median(times) * 1e3 for times in (alone, together)]
    late = [statistics.quantiles(times, n=20)[-1] * 1e3 for times in (alone, together)]
    lines = [
        "# The page of `whence serve`", "",
        f"`python benchmarks/serve.py`, torch {torch.__version__}, two cores, the clients on the same; from a question sent",
        "to its answer arrived, bundled digits.", "",
        "| who asks | answers | median, ms | 95 % below, ms | errors | MiB before → after |", "|---|---|---|---|---|---|",
        f"| one who draws | {len(alone)} | {ms[0]:.0f} | {late[0]:.0f} | 0 | |",
        f"| {CLIENTS} at once for {SECONDS} s | {len(together)} | {ms[1]:.0f} | {late[1]:.0f} | {failed} "
        f"| {before:.0f} → {after:.0f} |",
    ]  # fmt: skip
    print("\n".join(lines))
    (Path(__file__).parent / "results" / "serve.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
