"""Ten thousand digits explained through a one-class SVM of a thousand support vectors, beside plain autograd, in one process.

    python benchmarks/neuralize.py ../shared/data   # prints the table and writes benchmarks/results/neuralize.md

Plain autograd is the one-backward form of the literature, R = −½ Σ_j (x − u_j) ⊙ ∂o/∂u_j · o / ‖x − u_j‖², with a copy of the
support vectors for each sample, run over as many samples at once as suits it best. Float64, best of several rounds.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import OneClassSVM
from torch import Tensor

import peers
import whence

ROUNDS, AT_ONCE, SHARED = 3, (1, 4, 16), 1000


def fitted(data: Path) -> tuple[OneClassSVM, Tensor]:
    """A one-class SVM of the digit three with about a thousand support vectors, and all test digits."""
    train, test = (np.load(data / f"mnist_{part}.npz") for part in ("train", "test"))
    threes = train["images"][train["labels"] == 3][:2000].reshape(-1, 784) / 255.0
    svm = OneClassSVM(nu=0.495, gamma=0.02).fit(threes)
    assert 980 <= len(svm.support_vectors_) <= 1020, len(svm.support_vectors_)
    return svm, torch.as_tensor(test["images"].reshape(-1, 784) / 255.0)


def by_autograd(svm: OneClassSVM, x: Tensor, at_once: int) -> Tensor:
    u, gamma = torch.as_tensor(svm.support_vectors_), float(svm._gamma)
    alphas = torch.as_tensor(svm.dual_coef_[0] / svm.dual_coef_.sum())
    return torch.cat([_by_one_backward(part, u, alphas, gamma) for part in x.split(at_once)])


def _by_one_backward(x: Tensor, u: Tensor, alphas: Tensor, gamma: float) -> Tensor:
    centres = u.expand(len(x), -1, -1).clone().requires_grad_()
    squares = (x[:, None] - centres).square().sum(-1)
    o = -torch.logsumexp(alphas.log() - gamma * squares, 1) / gamma
    (g,) = torch.autograd.grad(o.sum(), centres)
    return -0.5 * ((x[:, None] - centres.detach()) * g * (o[:, None] / squares)[..., None].detach()).sum(1)


def main(data: Path) -> None:
    svm, x = fitted(data)
    net = whence.neuralize(svm)

    def by_whence(x: Tensor) -> Tensor:
        return whence.explain(net, x).relevance

    torch.testing.assert_close(by_whence(x[:100]), by_autograd(svm, x[:100], 4), rtol=1e-6, atol=1e-9)
    some = x[:SHARED]
    ways = {"whence": lambda: by_whence(some)} | {
        f"plain autograd, {n} at once": (lambda n=n: by_autograd(svm, some, n)) for n in AT_ONCE
    }
    times = peers.seconds(ways, ROUNDS)
    peaks = [peers.peak_mebibytes(lambda: by_whence(some))]
    peaks += [peers.peak_mebibytes(lambda n=n: by_autograd(svm, some[:n], n)) for n in AT_ONCE]
    rows = [
        f"| {SHARED:,} digits | {name} | {time:.2f} | {time / times['whence']:.1f} | {peak:.0f} |"
        for (name, time), peak in zip(times.items(), peaks, strict=True)
    ]
    (whole,) = peers.seconds({"": lambda: by_whence(x)}, 1).values()
    peak = peers.peak_mebibytes(lambda: by_whence(x))
    rows.append(f"| {len(x):,} digits, one call | whence | {whole:.2f} | | {peak:.0f} |")
    peers.write(
        "neuralize",
        f"# A one-class SVM explained\n\n{peers.versions('scikit-learn')}; {len(svm.support_vectors_)} support vectors, "
        "784 features, float64.\n",
        ["| what | way | seconds | time / whence | peak MiB |", "|---|---|---|---|---|", *rows],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"))
