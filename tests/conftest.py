"""Fixtures and options of the whole suite."""

import contextlib
import os
from datetime import date
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"

# A CUDA build of torchvision beside a CPU build of torch imports only once its operators are declared.
_torchvision_operators = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):  # a torchvision that fits has them
        _torchvision_operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

ALL = os.environ.get("WHENCE_TEST_ALL") == "1"

settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.register_profile("all", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("all" if ALL else "default")


def in_turn(items: list, parts: int) -> list:
    """One of `parts` parts of the items, another each day; all of them in `make test-all`."""
    return items if ALL else items[date.today().toordinal() % parts :: parts]


def pytest_collection_modifyitems(items):
    """Tests marked slow run by turns: each day another seventh of them."""
    if ALL:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    today = set(in_turn(slow, 7))
    for item in slow:
        if item not in today:
            item.add_marker(pytest.mark.skip(reason="slow, not its turn today; run make test-all"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def data() -> Path:
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder
