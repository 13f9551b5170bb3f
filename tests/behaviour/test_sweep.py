"""A part of the sweep over all kinds of models, another each day; all of it in `make test-all`."""

import importlib.util
from pathlib import Path

import pytest

from support.selection import ALL, in_turn

PATH = Path(__file__).parents[2] / "scripts/sweep.py"


spec = importlib.util.spec_from_file_location("sweep", PATH)


sweep = importlib.util.module_from_spec(spec)


spec.loader.exec_module(sweep)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_models_are_conserved_or_refused_for_a_reason(monkeypatch):
    import torch

    if not ALL:
        monkeypatch.setattr(sweep, "SECONDS", 20)
        monkeypatch.setattr(sweep, "MOST_WEIGHTS", 30_000_000)
    threads = torch.get_num_threads()
    outcomes = [sweep.outcome(name) for name in in_turn(sweep.names(), 90)]
    torch.set_num_threads(threads)
    explained = [o for o in outcomes if o.kind != "not built"]
    assert len(explained) >= len(outcomes) / 4
    assert not [o for o in explained if o.kind not in ("conserved", "refused")]
    assert sum(o.kind == "refused" for o in explained) <= 1 + len(explained) // 20


def test_the_page_says_what_came_of_each():
    outcomes = [
        sweep.Outcome("timm:a", "conserved", error=1e-7, cost=1.4),
        sweep.Outcome("hf:b", "refused", "a | b"),
        sweep.Outcome("hf:c", "not built", "no"),
    ]
    page = sweep.page(outcomes)
    assert "| timm | 1 | 1 | 0 | 0 | 0 |" in page
    assert "| hf:b | a ∣ b |  |" in page
    assert "| timm:a | 1e-07 | 1.4 |" in page
    assert "1 could not be built or run this small: hf:c." in page
