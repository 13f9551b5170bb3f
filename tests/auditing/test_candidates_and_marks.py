"""Candidates, marks and their tests, by slow transcriptions and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from whence.auditing.candidates import cross_fitted_excess, excess_mask, pooled, shares, upsampled
from whence.auditing.coherence import coherence, watermark
from whence.auditing.evidence import accepted, least_effect
from whence.auditing.marks import AlignedMark, MovingMark, TokenMark, ToneMark, high_pass
from whence.auditing.moving_marks import crop_at_peak, recurs
from whence.auditing.token_marks import recurring_phrases
from whence.auditing.tones import relevance_spectrum, tone
from whence.auditing.transplants import background_mark, sign_flip_p, transplant


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 30, 17), (5, 8, 8), (5, 128), (5, 20)])
def test_pooled_shares_add_up_to_one(shape):
    parts = pooled(shares(torch.randn(shape)))
    torch.testing.assert_close(parts.flatten(1).sum(1), torch.ones(5))
    assert all(side <= (14 if len(shape) == 3 else 32) for side in parts.shape[1:])
    assert upsampled(parts[0] > 0, shape[1:]).shape == shape[1:]


def test_the_positions_of_an_excess_are_those_near_its_largest():
    mean, others = torch.zeros(9, 9), torch.full((9, 9), 0.001)
    mean[4, 4] = 0.9
    mask = excess_mask(mean, others)
    blurred = torch.outer(*[torch.tensor([0, 0, 0, 0.25, 0.5, 0.25, 0, 0, 0])] * 2)
    assert torch.equal(mask, blurred >= 0.3 * 0.25)
    assert not excess_mask(others, mean + 0.01).any()


def test_clusters_made_of_noise_have_no_excess_on_other_samples():
    torch.manual_seed(0)
    noise = shares(torch.rand(40, 14, 14))
    assert cross_fitted_excess(noise[:20], noise[20:].mean(0)) < 0.02
    own = noise[:20] * (excess_mask(noise[:20].mean(0), noise[20:].mean(0)))
    assert own.flatten(1).sum(1).mean() > 0.05  # on the positions chosen by the same samples there is one
    marked = noise[:20].clone()
    marked[:, 2:4, 2:4] += 0.05
    assert cross_fitted_excess(shares(marked), noise[20:].mean(0)) > 0.1


def test_high_pass_is_the_difference_from_a_gaussian():
    x = torch.randn(2, 1, 32, 20, dtype=torch.float32)
    width = 1.5
    reach = math.ceil(3 * width)
    k = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / width) ** 2)
    k = k / k.sum()
    slow = F.conv2d(F.pad(x, (reach,) * 4, mode="reflect"), torch.outer(k, k)[None, None])
    torch.testing.assert_close(high_pass(x), x - slow, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(high_pass(torch.ones(1, 3, 16, 16)), torch.zeros(1, 3, 16, 16), atol=1e-6, rtol=0)


def test_aligned_marks_replace_or_add():
    x, content = torch.rand(3, 1, 4, 4), torch.rand(1, 4, 4)
    w = torch.zeros(1, 4, 4)
    w[0, 1, 1], w[0, 2, 2] = 1, 0.5
    replaced, added = AlignedMark(w, content).pasted(x), AlignedMark(w, content, adds=True).pasted(x)
    torch.testing.assert_close(replaced[:, :, 1, 1], content[:, 1, 1].expand(3, 1))
    torch.testing.assert_close(replaced[:, :, 2, 2], (x[:, :, 2, 2] + content[:, 2, 2]) / 2)
    torch.testing.assert_close(added, x + w * content)
    torch.testing.assert_close(AlignedMark(w, content, adds=True).cut(added, content), x)
    assert torch.equal(replaced[:, :, 0], x[:, :, 0])


def test_moving_marks_are_pasted_whole_within_the_picture():
    x, crop = torch.zeros(50, 2, 9, 7), torch.rand(2, 3, 4) + 0.1
    found = MovingMark(crop).pasted(x)
    torch.testing.assert_close(found.sum((1, 2, 3)), crop.sum().expand(50))
    assert len({tuple(picture.nonzero()[0].tolist()) for picture in found}) > 10
    assert torch.equal(found, MovingMark(crop).pasted(x))  # the same places for the control


def test_tones_have_their_amplitude_at_any_phase():
    amplitude = torch.zeros(1, 65)
    amplitude[0, 20] = 64  # of a sine of amplitude 1
    found = ToneMark(amplitude, 128).pasted(torch.zeros(30, 1, 128))
    spectrum = torch.fft.rfft(found).abs()
    torch.testing.assert_close(spectrum[..., 20], torch.full((30, 1), 64.0))
    assert spectrum[..., :20].max() < 1e-3
    assert found[:, 0, 0].std() > 0.5
    torch.testing.assert_close(ToneMark(amplitude, 128).cut(found), torch.zeros(30, 1, 128), atol=1e-4, rtol=0)


def test_phrases_replace_words_and_not_the_ends():
    ids = torch.tensor([[1, 5, 5, 5, 5, 2, 0, 0]]).repeat(40, 1)
    found = TokenMark((8, 9), frozenset({0, 1, 2})).pasted(ids)
    assert torch.equal(found[:, [0, 5, 6, 7]], ids[:, [0, 5, 6, 7]])
    assert ((found == 8).sum(1) == 1).all()
    starts = (found == 8).nonzero()[:, 1]
    assert set(starts.tolist()) == {1, 2, 3}
    assert (found.gather(1, starts[:, None] + 1) == 9).all()
    short = torch.tensor([[1, 5, 2]])
    assert torch.equal(TokenMark((8, 9), frozenset({1, 2})).pasted(short), short)  # no room


def test_recurring_phrases_of_one_class():
    torch.manual_seed(0)
    own, others = torch.randint(10, 30, (60, 12)), torch.randint(10, 30, (60, 12))
    own[:30, 4:6] = torch.tensor([7, 8])
    relevance = torch.full((60, 12), 1 / 24)
    relevance[:, 4:6] = 7 / 24
    first = recurring_phrases(own, relevance, others, {0})[0]
    assert first.ids == (7, 8)
    assert first.rows.tolist() == list(range(30))
    assert (first.share, first.elsewhere) == (0.5, 0)
    assert first.relevance == pytest.approx(14 / 24)


def test_the_effect_of_a_transplant_is_that_of_its_content():
    """f = x at one place, as a probability: the content raises it, other content there does not."""
    torch.manual_seed(0)
    own, others = torch.rand(30, 1, 12, 12) * 0.3, torch.rand(80, 1, 12, 12) * 0.3
    own[:, :, 2:4, 2:4] = 0.9
    cells = torch.zeros(12, 12, dtype=torch.bool)
    cells[2:4, 2:4] = True
    found = transplant(own, others[:50], others[50:], cells, lambda x: x[:, 0, 2, 2].double())
    assert 0.6 < found.interval.mean < 0.95
    assert abs(found.control) < 0.05
    assert found.p_value == pytest.approx(0.001)
    elsewhere = transplant(own, others[:50], others[50:], cells, lambda x: x[:, 0, 8, 8].double())
    assert abs(elsewhere.interval.mean) < 1e-6


def test_sign_flips_by_hand():
    assert sign_flip_p(torch.ones(20)) == pytest.approx(1 / 1000)
    assert sign_flip_p(torch.tensor([1.0, -1.0] * 10)) > 0.4


def test_false_discoveries_by_hand():
    assert accepted([0.001, 0.04, 0.03, 0.9]) == [True, False, False, False]  # limits .0125, .025, .0375, .05
    assert accepted([0.01, 0.02, 0.03, 0.04]) == [True] * 4
    assert accepted([]) == []


def test_coherence_is_the_mean_pairwise_cosine():
    torch.manual_seed(0)
    own, others, cells = torch.randn(6, 3, 16, 16), torch.randn(9, 3, 16, 16), torch.ones(16, 16, dtype=torch.bool)
    u = (high_pass(own) - high_pass(others).median(0).values).flatten(1)
    cosines = [float(F.cosine_similarity(u[i], u[j], dim=0)) for i in range(6) for j in range(6) if i != j]
    assert coherence(own, others, cells) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    pattern = torch.randn(3, 16, 16)
    assert coherence(own + 3 * pattern, others, cells) > 0.5


def test_a_watermark_is_found_where_it_is():
    torch.manual_seed(0)
    place = torch.zeros(32, 32, dtype=torch.bool)
    place[8:20, 8:20] = True
    pattern = (torch.arange(32)[:, None] + torch.arange(32)) % 4 < 2
    photos = torch.randn(60, 3, 32, 32)
    mark = watermark(photos[:30] + 2.0 * pattern * place, photos[30:])
    found = mark.weights[0] > 0
    assert (found & place).sum() / (found | place).sum() > 0.6
    assert not found[24:, 24:].any()


def test_crops_recur_where_they_are_and_nowhere_else():
    torch.manual_seed(0)
    pictures, crop = torch.rand(20, 1, 28, 28), torch.rand(1, 6, 6)
    pictures[:7] = MovingMark(crop).pasted(pictures[:7])
    assert recurs(crop, pictures).tolist() == [True] * 7 + [False] * 13
    brighter = pictures * 0.5 + 0.2
    assert recurs(crop, brighter)[:7].all()  # a correlation
    heat = torch.zeros(28, 28)
    heat[10:13, 5:8] = 1
    assert crop_at_peak(pictures[9], heat, 3).equal(pictures[9][:, 10:13, 5:8])


def test_tones_have_an_effect_and_waveforms_have_none():
    torch.manual_seed(0)
    t = torch.arange(128.0)
    noise = 0.3 * torch.randn(90, 1, 128)
    wave = torch.sin(2 * math.pi * 20 / 128 * t)
    own = noise[:30] + torch.sin(2 * math.pi * 20 / 128 * t + 6.28 * torch.rand(30, 1, 1))

    def power(x):
        return (torch.fft.rfft(x)[:, 0, 20].abs() / 64).clamp(max=1).double()

    gradient = wave  # relevance x · g of a detector of the wave
    spectrum = relevance_spectrum(own[:, 0] * gradient)
    bins = spectrum.mean(0) > 0.1
    found = tone(own, noise[30:60], noise[60:], bins, power)
    assert found.interval.mean > 0.8
    assert abs(found.control) < 0.05
    bump = torch.exp(-(((t - 60) / 3) ** 2))
    waves = noise[:30] + 2 * bump
    detector = lambda x: (x[:, 0] @ bump / bump.square().sum() / 2).clamp(0, 1).double()  # noqa: E731
    bins = relevance_spectrum(waves[:, 0] * bump).mean(0) > 0.02
    assert abs(tone(waves, noise[30:60], noise[60:], bins, detector).interval.mean) < 0.2


def test_a_background_replaces_that_of_other_classes():
    torch.manual_seed(0)
    drawn = (torch.rand(40, 3, 12, 12) < 0.2).any(1, keepdim=True)
    shapes = torch.rand(40, 3, 12, 12).clamp(0.5, 1)
    gray, black = torch.tensor([0.2, 0.3, 0.2])[:, None, None], torch.zeros(3, 1, 1)
    own, others = torch.where(drawn, shapes, gray), torch.where(drawn, shapes, black)
    mark = background_mark(own, others)
    assert mark is not None
    assert torch.equal(mark.color, gray.flatten())
    assert torch.equal(mark.plain, black.flatten())
    assert torch.equal(mark.pasted(others), own)
    assert torch.equal(mark.cut(own), others)
    assert torch.equal(mark.like(others, 0).pasted(others), others)
    assert background_mark(others, others.flip(0)) is None  # the same background
    photos = torch.rand(40, 3, 12, 12)
    assert background_mark(photos, others) is None  # no background


def test_content_that_is_the_same_in_all_samples_needs_a_smaller_effect():
    assert least_effect("transplant", 0.96) < least_effect("transplant", 0.7) == least_effect("transplant")
    assert least_effect("crop", 0.96) == least_effect("crop")
