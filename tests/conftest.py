"""Fixtures and options of the whole suite."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import support.torchvision_operators  # noqa: F401
from support.selection import ALL, in_turn

os.environ["HF_HUB_OFFLINE"] = "1"

HEAVY = ("test_docs", "test_page", "test_compiled", "test_program", "test_torchvision", "test_transformers", "test_sweep",
         "test_random_networks", "test_data_commands", "test_store", "test_explain_dataset", "test_app")  # fmt: skip
REMEDIES = {  # of skips, by the beginning of their reasons
    "slow": "run make test-all",
    "no real data": "needs ../shared/data beside this folder",
    "no accelerator": "needs a GPU that torch sees",
    "no chromium": "needs chromium, which scripts/browser.sh installs",
}

settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.register_profile("all", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("all" if ALL else "default")


def pytest_collection_modifyitems(items):
    """Put heavy files first, so that no worker ends with one of them; of tests marked slow, run the commit's seventh."""
    items.sort(key=lambda item: HEAVY.index(item.path.stem) if item.path.stem in HEAVY else len(HEAVY))
    if ALL:
        return
    slow = sorted((item for item in items if item.get_closest_marker("slow")), key=lambda item: item.nodeid)
    chosen = set(in_turn(slow, 7))
    for item in slow:
        if item not in chosen:
            item.add_marker(pytest.mark.skip(reason="slow, not chosen by this commit"))


def pytest_terminal_summary(terminalreporter):
    """Sum up what was skipped, and what it takes to run it."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        remedy = next((remedy for start, remedy in REMEDIES.items() if reason.startswith(start)), "")
        terminalreporter.line(f"{count:5d}  {reason}{f': {remedy}' if remedy else ''}")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def state_of_torch():
    """The modes and dispatch keys of this thread."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "excluded dispatch keys": torch._C._dispatch_tls_local_exclude_set(),
        "included dispatch keys": torch._C._dispatch_tls_local_include_set(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "vmap levels": torch._C._functorch.maybe_current_level(),
    }


@pytest.fixture(autouse=True)
def _torch_as_before():
    """Every test leaves the modes and dispatch keys of torch as they were."""
    before = state_of_torch()
    yield
    assert state_of_torch() == before


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
