"""Spectral clustering: eigenvalues by hand, and channels that only a part of a class relies on."""

import numpy as np
import pytest
import torch

from whence.auditing import spectral_clustering
from whence.auditing.channel_clusters import exclusive_share


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


def test_channels_that_no_other_class_uses_by_hand():
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
