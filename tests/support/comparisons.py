"""Comparisons with captum and closed forms."""

import pytest
import torch
from torch import nn

import whence


def relevance(model, x, method, target=0):
    return whence.explain(model, x, target, method=method).relevance


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), **tolerance)


def cnn(seed=0, act=nn.ReLU, pool=nn.MaxPool2d):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), act(), pool(2), nn.Conv2d(6, 8, 3), act(), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).eval()


def captum():
    return pytest.importorskip("captum.attr", reason="captum is a development dependency")
