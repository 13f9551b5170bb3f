"""Relevance of the frequencies of a series, by an inverse Fourier transform as a virtual first layer."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SpectralRelevance:
    """Amplitude and relevance of each frequency of a series, summed over channels.

    >>> SpectralRelevance.of(x, relevance).relevance.sum()          # that of all steps

    x = Σ_k X_k φ_k makes the series a linear function of its spectrum, so that R_k = Re(X_k conj(G_k)) / T for the transform
    G of the modified gradient g = R / x (DFT-LRP, Vielhaben et al. 2024). Steps where x is zero have no such gradient; their
    relevance is `left_over`.

    Args:
        frequencies: Frequencies in cycles per step, `[T // 2 + 1]`.
        amplitude: |X_k|, summed over channels.
        relevance: R_k, summed over channels.
        left_over: Relevance of steps where the series is zero.
    """

    frequencies: Tensor
    amplitude: Tensor
    relevance: Tensor
    left_over: float

    @classmethod
    def of(cls, x: Tensor, relevance: Tensor) -> "SpectralRelevance":
        """Return the relevance of the frequencies of a series `[C, T]`."""
        x, relevance = (t.detach().double().cpu() for t in (x, relevance))
        steps, present = x.shape[-1], x != 0
        gradient = torch.where(present, relevance / torch.where(present, x, 1.0), 0.0)
        spectrum, of_gradient = torch.fft.rfft(x), torch.fft.rfft(gradient)
        shares = (spectrum * of_gradient.conj()).real / steps
        shares[..., 1 : (steps + 1) // 2] *= 2  # each stands for its conjugate too
        left = float(relevance.masked_select(~present).sum())
        return cls(torch.fft.rfftfreq(steps, dtype=torch.double), spectrum.abs().sum(0), shares.sum(0), left)
