"""The example inputs of the start page, one card for each kind of input that a served model takes."""

from base64 import b64encode
from typing import Any

from whence.frontends.web.images import tensor_to_png
from whence.frontends.web.served_models import models
from whence.models import example_networks as networks
from whence.models.digits import digit_samples
from whence.models.preprocessing import Preprocessing

DIGIT = 7  # of the bundled digits: a seven


def examples_handler(_: None) -> list[dict[str, Any]]:
    """Return the examples whose models are served: the input as the page sends it, a title, and what there is to see."""
    return [make(name) for name, make in EXAMPLES.items() if name in dict(models.served.models)]


def _card(model: str, title: str, text: str, example: dict[str, Any], sample: int = 0) -> dict[str, Any]:
    return {"model": model, "title": title, "text": text, "sample": sample, "input": example}


def _digit(model: str) -> dict[str, Any]:
    pixels = (digit_samples()[0][DIGIT] * 255).round().byte().flatten().tolist()
    return _card(
        model,
        "A digit",
        "Why is this a 7? The bar and the bend speak for it.",
        {"drawing": b64encode(bytes(pixels)).decode()},
        sample=DIGIT,
    )


def _surfaces(model: str) -> dict[str, Any]:
    photo = networks.surface_photos()[0]
    png = tensor_to_png(photo, Preprocessing((128, 128), channels=1))
    return _card(model, "A photo", "Half wall, half lawn: only the lawn speaks for “grass”.", {"picture": png})


def _reviews(model: str) -> dict[str, Any]:
    return _card(
        model,
        "A sentence",
        "Which words made it negative? “rude” and “dirty”, against “delicious”.",
        {"text": networks.review_texts()[0]},
    )


def _wine(model: str) -> dict[str, Any]:
    reader = models[model].table
    assert reader is not None
    return _card(
        model,
        "A table",
        "Which columns tell who grew this wine? The bars lead from the mean output to this one.",
        {"table": reader.write(networks.wine_rows()[:5])},
    )


def _heartbeats(model: str) -> dict[str, Any]:
    reader = models[model].series
    assert reader is not None
    return _card(
        model,
        "A time series",
        "One heartbeat comes too early: the network looks at that one.",
        {"series": reader.write(networks.heartbeat_series()[:1])},
    )


EXAMPLES = {"digits": _digit, "surfaces": _surfaces, "reviews": _reviews, "wine": _wine, "heartbeats": _heartbeats}
