"""The page of `whence serve`: what is asked is answered, who may not ask is refused, what is no picture does no harm."""

import base64
import os
import random

import pytest

from support.server import picture

pytest.importorskip("fastapi")
from whence.errors import InputError
from whence.frontends.web.images import decode_base64, open_image
from whence.frontends.web.schemas import ChannelRequest, RuleSettings


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
    with pytest.raises(InputError, match=r"not a readable image|not an image that can be|at most 24,000,000 pixels"):
        open_image(bomb())
    with pytest.raises(InputError, match="not an image that can be read"):
        open_image(base64.b64decode(picture("red", kind="TIFF")))
    with pytest.raises(InputError, match="the image upload is incomplete; send it again"):
        decode_base64("%%%")


def test_rules_of_the_page_are_those_of_the_library():
    assert RuleSettings().rule == "default"
    with pytest.raises(ValueError, match="less than or equal to 100"):
        RuleSettings(gamma=1e9)
    assert ChannelRequest(model="digits", layer="0").channel is None
