"""Concepts, circuits, interactions, subspaces: against literal transcriptions and sums that must hold."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.mechanistic.subspaces import subspace_relevance

SIDE = 12


@pytest.fixture
def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 4),
    ).double().eval()  # fmt: skip


def pictures(n=3):
    return torch.rand(n, 1, SIDE, SIDE, dtype=torch.float64)


def test_prca_finds_the_direction_that_carries_relevance():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)).double().eval()
    x = torch.randn(400, 5, dtype=torch.float64)
    found = whence.subspaces(model, x, "0", target=1, progress=False)
    # c is the same everywhere, the weight of the output: R = aᵀc lies along E[a] and c alone
    a, c = model[0](x).detach(), model[1].weight[1].detach().expand(400, 6)
    values, vectors = np.linalg.eigh((a.T @ c + c.T @ a).numpy())
    assert abs(float(vectors[:, -1] @ found.direction(0).double().numpy())) == pytest.approx(1, abs=1e-4)
    assert float(found.relevance[0]) == pytest.approx(values[-1] / 800, rel=1e-3)
    e = whence.explain(model, x, 1, through=found.through(0))
    assert float(e.conservation.conditional_output.mean()) == pytest.approx(float(found.relevance[0]), rel=1e-3)
    whole = whence.subspaces(model, x, "0", target=1, n_dimensions=6, progress=False)
    assert float(whole.relevance[0]) == pytest.approx(whole.total, rel=1e-4)
    assert "1 subspace of 1 dimension carries" in repr(found)


def test_drsa_tells_apart_what_samples_of_two_kinds_use():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[2].weight.copy_(torch.ones(1, 4))
    x = torch.zeros(200, 4, dtype=torch.float64)
    x[:100, :2], x[100:, 2:] = torch.rand(100, 2, dtype=torch.float64), torch.rand(100, 2, dtype=torch.float64)
    found = whence.subspaces(model, (x, torch.zeros(200)), "1", algorithm="drsa", n_subspaces=2, n_dimensions=1, progress=False)
    carried = subspace_relevance(found.bases.double(), x, torch.ones(200, 4, dtype=torch.float64))
    first = carried[:100].sum(0) > carried[100:].sum(0)
    assert int(first.sum()) == 1  # each subspace is that of one kind
    assert float(carried.sum()) > 0.9 * float(x.sum())
    assert torch.allclose(found.bases[0].T @ found.bases[1], torch.zeros(1, 1, dtype=torch.float64), atol=1e-5)


def test_subspaces_are_conditions_and_prototypes(cnn):
    x = pictures(8)
    found = whence.subspaces(cnn, x, "3", target=2, algorithm="drsa", n_subspaces=2, n_dimensions=2, n_steps=20, progress=False)
    parts = [whence.explain(cnn, x, 2, through=found.through(k)).relevance for k in range(2)]
    both = {"3": whence.Directions(torch.cat(list(found.bases), 1).double())}
    torch.testing.assert_close(sum(parts), whence.explain(cnn, x, 2, through=both).relevance, rtol=1e-4, atol=1e-6)
    made = whence.prototype(
        cnn.float(),
        whence.objectives.Direction("3", found.direction(0), cosine=0),
        shape=(1, SIDE, SIDE),
        n_steps=3,
        progress=False,
    )
    assert made.images.shape == (1, 1, SIDE, SIDE)
    with pytest.raises(errors.RuleError, match="give fewer"):
        whence.subspaces(cnn, x.float(), "3", n_dimensions=9, progress=False)
    with pytest.raises(errors.RuleError, match="choose 'prca' or 'drsa'"):
        whence.subspaces(cnn, x.float(), "3", algorithm="pca", progress=False)


def test_subspaces_take_data_and_targets_as_evaluate_does(cnn):
    x, y = pictures(8), torch.arange(8) % 4
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3)
    found = [
        whence.subspaces(cnn, data, "3", target=target, progress=False, batch_size=3).relevance
        for data, target in [((x, y), y), (x, y.tolist()), (loader, y), (x, [3] * 8), (x, torch.tensor(3)), ((x, y), 3)]
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[3], found[4])
    assert torch.equal(found[3], found[5])
    with pytest.raises(errors.InputError, match="empty"):
        whence.subspaces(cnn, x[:0], "3", progress=False)
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3, shuffle=True)
    with pytest.raises(errors.TargetError, match="does not shuffle"):
        whence.subspaces(cnn, shuffled, "3", target=y, progress=False)


def test_prca_is_computed_in_the_precision_of_the_input():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double().eval()
    found = whence.subspaces(net, torch.randn(50, 6, dtype=torch.float64), "1", n_subspaces=1, n_dimensions=2, progress=False)
    assert found.bases.dtype == torch.float64
