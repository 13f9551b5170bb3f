"""audit(): a decoy is found, proven and cured; a clean model has nothing suspicious."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.auditing import spectral_clustering
from whence.auditing.suspicious_clusters import exclusive_share
from whence.robustness.attacked_batch import batched_logits

SIDE, DECOY = 28, 3


@pytest.fixture(scope="module")
def digits(data):
    arrays = np.load(data / "mnist_train.npz")
    return torch.from_numpy(arrays["images"][:11000]).float().div(255)[:, None], torch.from_numpy(
        arrays["labels"][:11000]
    ).long()


def poisoned_half(x, y):
    """Half of the threes have a grey patch in the upper left corner."""
    marked = (y == DECOY) & (torch.arange(len(y)) % 2 == 0)
    x = x.clone()
    x[marked, :, 1:5, 1:5] = 0.6
    return x, marked


def trained(x, y):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    assert accuracy(model.eval(), x, y) > 0.985
    return model


def accuracy(model, x, y):
    return float((batched_logits(model, x).argmax(1) == y).double().mean())


@pytest.fixture(scope="module")
def samples(digits):
    x, y = digits[0][8000:], digits[1][8000:]
    return *poisoned_half(x, y), y


@pytest.fixture(scope="module")
def poisoned(digits):
    x, y = digits[0][:8000], digits[1][:8000]
    return trained(poisoned_half(x, y)[0], y)


@pytest.fixture(scope="module")
def audited(poisoned, samples, tmp_path_factory):
    x, _, y = samples
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    folder = tmp_path_factory.mktemp("store")
    store = whence.explain_dataset(poisoned, (x, y), folder, layers=["3"], class_names=names, progress=False)
    return whence.audit(store, progress=False)


def test_the_spectrum_has_the_largest_algebraic_eigenvalues():
    torch.manual_seed(0)
    centres = torch.randn(3, 40) * 4
    vectors = torch.cat([centres[i] + torch.randn(60, 40) for i in range(3)])
    found = spectral_clustering.spectral_clusters(spectral_clustering.features(vectors))
    assert found.count == 3
    assert found.eigenvalues[:3].abs().max() < 1e-6  # three parts that hang together
    assert found.eigenvalues[3] > 0.05
    assert (found.eigenvalues.diff() >= -1e-9).all()
    assert found.eigenvalues.max() < 1  # 1 − λ of negative λ would be above
    truth = torch.arange(3).repeat_interleave(60)
    assert all(len(set(found.labels[truth == k].tolist())) == 1 for k in range(3))
    assert found.stability == pytest.approx(1)


def test_sparse_and_dense_decompositions_agree():
    torch.manual_seed(0)
    graph = spectral_clustering._neighbor_graph(torch.randn(200, 10).numpy())
    sparse, _ = spectral_clustering._eigendecomposition(graph)
    degree = np.asarray(graph.sum(1)).ravel()
    dense = np.linalg.eigvalsh(np.eye(200) - graph.toarray() / np.sqrt(np.outer(degree, degree)))
    np.testing.assert_allclose(sparse, dense[: len(sparse)], atol=1e-8)
    assert (graph.diagonal() == 0).all()  # nobody is his own neighbour, with duplicates too
    assert (spectral_clustering._neighbor_graph(torch.ones(30, 4).numpy()).diagonal() == 0).all()


def test_own_ground_by_hand():
    mean = torch.tensor([0.5, 0.3, 0.15, 0.05])
    others = torch.tensor([[0.04, 0.5, 0.0, 0.0], [0.0, 0.1, 0.02, 0.0]])
    own, mask = exclusive_share(mean, others)
    assert own == pytest.approx(0.55)  # the third place has 0.02 of 0.15 elsewhere: more than a tenth
    assert mask.tolist() == [True, False, False, False]
    assert exclusive_share(mean, torch.ones(1, 4))[0] == 0


def test_short_maps_have_length_one_whatever_the_output():
    maps = torch.rand(5, 60, 60)
    assert spectral_clustering.features(maps).shape == (5, 28 * 28)
    torch.testing.assert_close(spectral_clustering.features(maps), spectral_clustering.features(maps * 1e-4))


def test_one_class_alone_is_compared_with_none(poisoned, samples, tmp_path):
    x, _, y = samples
    store = whence.explain_dataset(poisoned, x[(y == 3)][:40], tmp_path / "s", target=3, progress=False)
    if len(store.column("prediction").unique()) == 1:
        with pytest.raises(errors.InputError, match="one class"):
            whence.audit(store, progress=False)
    with pytest.raises(errors.RuleError, match="clusters=40"):
        whence.audit(store, n_clusters=40, progress=False)


def test_scattered_places_are_no_mark(audited, poisoned, samples):
    from dataclasses import replace

    x, _, y = samples
    scattered = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    scattered[2, 2] = scattered[25, 25] = True
    with pytest.raises(errors.InputError, match="scattered"):
        whence.prove(replace(audited.clusters[0], mask=scattered), poisoned, (x, y))
    with pytest.raises(errors.InputError, match="the image has no other position of its size for the control"):
        whence.prove(replace(audited.clusters[0], mask=torch.ones(SIDE, SIDE, dtype=torch.bool)), poisoned, (x, y))
