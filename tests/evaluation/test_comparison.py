"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.models.digits import digit_samples, digits


def linear(n=12):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, 3, bias=False)).eval()


def test_methods_are_compared_on_one_target(tmp_path):
    x, _ = digit_samples()
    found = whence.compare(digits(), x[:2], {"lrp": "lrp", "theirs": lambda m, x, t: x})
    assert torch.equal(found["lrp"].relevance, whence.explain(digits(), x[:2]).relevance)
    assert found.save(tmp_path / "c.png").stat().st_size > 5000
    rows = found.table
    assert [(row["sample"], row["method"]) for row in rows] == [(0, "lrp"), (0, "theirs"), (1, "lrp"), (1, "theirs")]
    heat = found["lrp"].relevance[0]
    against = float(heat.clamp(max=0).abs().sum() / heat.abs().sum())
    assert rows[0]["counter_relevance"] == pytest.approx(against, rel=1e-4)
    assert "counter-relevance" in repr(found)
    whence.compare(linear(), torch.rand(2, 12), ["lrp", "sensitivity"]).save(tmp_path / "v.png")
    with pytest.raises(errors.WhenceError, match=r"^rise: "):
        whence.compare(linear(), torch.rand(2, 12), ["lrp", "rise"])
