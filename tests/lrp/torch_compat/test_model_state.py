"""Explainers that cache weights or graphs answer for the model as it is now, however it was changed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import whence


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 3)
        self.config, self.chosen = SimpleNamespace(scale=1.0, nested={"shift": [0.0]}), {1}
        self.mask, self.function = np.ones(3, dtype=np.float32), None

    def forward(self, x):
        h = self.norm(self.conv(x)).relu().flatten(1)
        out = self.head(h) * self.config.scale + self.config.nested["shift"][0]
        out = out * torch.from_numpy(self.mask) * (1 if 1 in self.chosen else 2)
        return out if self.function is None else self.function(out)


def fused_step(model):
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    optimiser.step()


def plain_step(model):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    optimiser.step()


def running_statistics(model):
    model.train()
    for _ in range(5):
        model(3 * torch.randn(16, 1, 8, 8))
    model.eval()


def data(model):
    model.conv.weight.data.mul_(-2)


def replaced_module(model):
    model.head = nn.Linear(144, 3).eval()


def replaced_parameter(model):
    model.head.weight = nn.Parameter(torch.randn(3, 144))


def loaded(model):
    model.load_state_dict(Model().state_dict())


def config(model):
    model.config.scale = 3.0


def nested_config(model):
    model.config.nested["shift"][0] = 5.0


def a_set(model):
    model.chosen.clear()


def an_array(model):
    model.mask[1] = 7


def a_function_with_another_closure(model):
    made = lambda factor: lambda out: factor * out  # noqa: E731
    model.function = made(3)


CHANGES = [
    fused_step, plain_step, running_statistics, data, replaced_module, replaced_parameter, loaded, config, nested_config, a_set,
    an_array, a_function_with_another_closure,
]  # fmt: skip


class Holder:
    """A callable that is no module."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return self.model(x)


CALLABLES = {
    "module": lambda model: model,
    "object": Holder,
    "closure": lambda model: lambda x: model(x),
    "method": lambda model: Holder(model).__call__,
    "list": lambda model: lambda x, models=(model,): models[0](x),
}


@pytest.mark.parametrize(
    ("change", "how"),
    [(change, "module") for change in CHANGES]
    + [(change, how) for change in (fused_step, replaced_module, nested_config) for how in CALLABLES if how != "module"],
)
@pytest.mark.parametrize("capture", [False, True])
def test_changes_of_a_model_are_noticed(change, capture, how):
    torch.manual_seed(0)
    model, x = Model().eval(), torch.rand(2, 1, 8, 8)
    explainer = whence.Explainer(CALLABLES[how](model), capture=capture)
    before = [explainer(x, 1) for _ in range(3)][-1]
    change(model)
    expected, found = whence.explain(model, x, 1), explainer(x, 1)
    assert not close(before, expected)
    assert close(found, expected)
    assert close(explainer(x, 1), expected)


def close(e, other):
    size = float(other.relevance.abs().max())
    same = torch.allclose(e.relevance, other.relevance, rtol=1e-3, atol=1e-4 * size)
    return same and torch.allclose(e.output, other.output, rtol=1e-4, atol=1e-5)
