"""Whether `whence serve` lives on: mixed requests while workers are killed and clients hang up.

python benchmarks/serve_soak.py   # prints the table and writes benchmarks/results/serve_soak.md
"""

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from serve import drawings, memory
from support.server import serving

REQUESTS, CLIENTS, KILLED, GONE = 2000, 8, 0.05, 0.2


def questions(random: random.Random) -> tuple[str, dict]:
    """Return the path and body of a random request."""
    asked = {"model": "digits", "drawing": random.choice(drawings())}
    name = random.choices(
        ["explain", "rules", "layers", "through", "download", "attack", "prototypes", "evaluation", "invalid"],
        [40, 15, 10, 10, 5, 8, 5, 2, 5],
    )[0]
    return {
        "explain": ("explain", asked),
        "rules": ("explain", asked | {"settings": {"rule": "gamma", "gamma": random.random()}}),
        "layers": ("layers", asked),
        "through": ("through", asked | {"layer": "0", "channel": random.randrange(4)}),
        "download": ("download", asked | {"format": random.choice(["png", "npz", "html"])}),
        "attack": ("attack", asked | {"epsilon": 0.1}),
        "prototypes": ("prototypes", {"model": "digits", "classes": [random.randrange(10)], "n_steps": 64}),
        "evaluation": (
            "evaluation",
            {"model": "digits", "methods": ["gradient_times_input"], "metrics": ["mif"], "count": 10},
        ),
        "invalid": ("explain", asked | {"method": "unknown"}),
    }[name]


def workers(port: int) -> list[int]:
    """Return the process numbers of the server's workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            served = str(port).encode() in Path(f"/proc/{parent}/cmdline").read_bytes()
            if served and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


async def soak(port: int) -> tuple[Counter[str], int]:
    """Return how many requests ended in which way, and how many workers were killed."""
    chance, left, counts, killed = random.Random(0), REQUESTS, Counter(), 0

    async def client() -> None:
        nonlocal left, killed
        while left > 0:
            left -= 1
            (path, body), fate = questions(chance), chance.random()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=180) as session:
                asking = asyncio.create_task(session.post(f"/api/{path}", json=body))
                if fate < KILLED:
                    await asyncio.sleep(chance.random() * 0.05)
                    alive = workers(port)
                    if alive:
                        os.kill(chance.choice(alive), signal.SIGKILL)
                        killed += 1
                if KILLED < fate < KILLED + GONE:
                    await asyncio.sleep(chance.random() * 0.05)
                    asking.cancel()
                try:
                    counts[str((await asking).status_code)] += 1
                except asyncio.CancelledError:
                    counts["hung up"] += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return counts, killed


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        with serving(Path(folder)) as (port, log), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=180) as client:
            asked = {"model": "digits", "drawing": drawings()[0]}
            warm = [client.post("/api/explain", json=asked) for _ in range(20)]
            before, start = memory(port), time.perf_counter()
            counts, killed = asyncio.run(soak(port))
            seconds = time.perf_counter() - start
            after = [client.post("/api/explain", json=asked) for _ in range(200)]
            assert all(answer.status_code == 200 for answer in (*warm, *after)), Counter(a.status_code for a in after)
            memory_after, said = memory(port), log.read_text().splitlines()[1:]
            folders = len(list(Path(folder).glob("whence-worker-*")))
        left = [path.name for path in Path(folder).iterdir() if path.name != "log"]
    lines = [
        "# A soak of `whence serve`", "",
        f"`python benchmarks/serve_soak.py`, torch {torch.__version__}, two cores: {REQUESTS} mixed requests by {CLIENTS}",
        f"clients in {seconds:.0f} s, {killed} workers killed by SIGKILL, {GONE:.0%} of the clients hung up.", "",
        "| ended with | requests |", "|---|---|",
        *(f"| {name} | {count} |" for name, count in sorted(counts.items())), "",
        f"200 questions afterwards: all answered. Memory of the server and its workers: {before:.0f} → {memory_after:.0f} MiB.",
        f"Folders of temporary files: {folders} while it ran, {len(left)} after it stopped. Lines in its log: {len(said)}.",
    ]  # fmt: skip
    print("\n".join([*lines, *said[:20]]))
    (Path(__file__).parent / "results" / "serve_soak.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
