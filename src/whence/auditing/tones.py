"""Tones in series: frequencies with relevance in a cluster, which raise the class whatever their phase."""

import torch
from torch import Tensor

from whence.auditing.marks import ToneMark
from whence.auditing.transplants import Effect, Probability, effect

MIN_CYCLES = 8  # of a tone, in a series


def relevance_spectrum(relevance: Tensor) -> Tensor:
    """Return the power spectrum of the relevance of series `[n, T]`, of sum 1, summed over pairs of frequencies, `[n, F]`.

    Frequencies of less than eight cycles are left out: what is so slow is a waveform.
    """
    centered = relevance.float() - relevance.float().mean(1, keepdim=True)
    power = torch.fft.rfft(centered).abs().square()
    power = power[:, : power.shape[1] // 2 * 2].unflatten(1, (-1, 2)).sum(2)
    power[:, : MIN_CYCLES // 2] = 0
    return power / power.sum(1, keepdim=True).clamp(min=1e-30)


def tone(own: Tensor, others: Tensor, onto: Tensor, bins: Tensor, probability: Probability) -> Effect:
    """Return the effect of the frequencies that series of a cluster have and others have not, with random phases.

    The control has the amplitudes at other frequencies, half the band away. Random phases destroy waveforms, which represent
    classes, and keep tones.

    Args:
        own: Series of the cluster, `[n, C, T]`.
        others: Series of other classes, `[m, C, T]`.
        onto: Series of other classes on which the tone is pasted.
        bins: Pairs of frequencies with excess relevance, a boolean tensor.
        probability: The probability of the class.
    """
    length = own.shape[-1]
    mine, theirs = (torch.fft.rfft(x.float()).abs().square().mean(0) for x in (own, others))
    inside = torch.zeros(mine.shape[-1], dtype=torch.bool)
    inside[: 2 * len(bins)] = bins.repeat_interleave(2)
    inside[MIN_CYCLES : len(bins)] |= bins[MIN_CYCLES:]  # R = x · g of a tone is at twice its frequency
    amplitude = (mine - theirs).clamp(min=0).sqrt() * inside
    mark = ToneMark(amplitude, length)
    return effect(mark, mark.like(others, 0), onto, probability(onto), probability)
