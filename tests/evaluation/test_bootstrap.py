"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import math

import torch
from torch import nn

import whence
from whence.evaluation.bootstrap import mean_interval


def linear(n=12):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, 3, bias=False)).eval()


def test_intervals_hold_the_mean_as_often_as_they_say():
    held = 0
    for i in range(200):
        values = torch.randn(60, generator=torch.Generator().manual_seed(i)).double() + 1
        found = mean_interval(values)
        held += found.low < 1 < found.high
    assert 178 < held < 200


def test_few_samples_have_no_interval():
    few = mean_interval(torch.tensor([1.0, 2.0]))
    assert few.mean == 1.5
    assert math.isnan(few.low)
    assert "too few for intervals" in repr(
        whence.evaluate(linear(), torch.rand(2, 12), ["lrp"], ["sparseness"], progress=False)
    )
