"""The server of the page, in a thread of the test."""

import base64
import io
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
from PIL import Image


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


def picture(colour, size=(20, 20), kind="PNG"):
    written = io.BytesIO()
    Image.new("RGB", size, colour).save(written, kind)
    return base64.b64encode(written.getvalue()).decode()
