"""Prototypes: exercise A and further closed forms, priors, objectives, images, batches that equal single runs, bad input."""

import math

import pytest
import torch
from torch import nn

import whence
from support.comparisons import close
from whence import Logit, errors, prototype

pytestmark = pytest.mark.usefixtures("float64")


def deep():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 14 * 14, 4),
    ).eval()  # fmt: skip


def test_top_samples_by_activation_and_relevance():
    model, data = deep(), torch.randn(30, 3, 34, 34)
    top = whence.top_samples(model, ["3:2", 1, Logit(0, rather_than=3)], data, n_samples=4, batch_size=7)
    channel = model[:4](data.clone())[:, 2].mean((1, 2)).detach()
    logits = model(data.clone()).detach()
    for row, values in enumerate((channel, logits[:, 1], logits[:, 0] - logits[:, 3])):
        expected = values.topk(4)
        assert torch.equal(top.indices[row], expected.indices)
        close(top.values[row], expected.values)
    relevant = whence.top_samples(model, "3:2", data, n_samples=3, ranking="relevance", batch_size=8)
    e = whence.explain(model, data, layers=["3"])
    close(relevant.values[0], e.layers["3"][:, 2].sum((1, 2)).topk(3).values)
    p = prototype(model, "3:2", shape=(3, 34, 34), n_steps=2).beside(data[top.indices[:1]])
    assert p.samples.shape == (1, 4, 3, 34, 34)
    with pytest.raises(errors.RuleError, match="needs channels, written"):
        whence.top_samples(model, 1, data, ranking="relevance")
    with pytest.raises(errors.InputError, match="sample 3 gives NaN"):
        whence.top_samples(model, "3:2", data.index_fill(0, torch.tensor([3]), math.nan))
    with pytest.raises(errors.InputError, match="batch_size=-1"):
        whence.top_samples(model, "3:2", data, batch_size=-1)
    with pytest.raises(errors.InputError, match="n_samples must be from 1 to 30"):
        whence.top_samples(model, 1, data, n_samples=31)
