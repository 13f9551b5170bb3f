"""Reliability: shares against closed forms, coverage of the intervals on known truth, and how often chance is told."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.evaluation.reliability import KINDS, _student_quantile
from whence.imputers import BackgroundSamples, OtherPlaces


def linear(features=20, samples=400, shift=1.5):
    """A linear function, samples, a background, and the true shares of the four most relevant features."""
    torch.manual_seed(0)
    w, x = torch.randn(features, 1).double(), torch.randn(samples, features).double() + shift
    background = torch.randn(4000, features).double()
    relevance, mean = x * w.T, background.mean(0) * w[:, 0]
    top = torch.zeros_like(relevance, dtype=torch.bool).scatter(1, relevance.argsort(dim=1, descending=True)[:, :4], True)
    span = relevance.sum(1) - mean.sum()
    share = (torch.where(top, relevance, mean).sum(1) - mean.sum()) / span
    return (lambda x: x @ w), x, background, share


def explained(model, x):
    return whence.explain(model, x, 0, method="gradient_times_input")


@pytest.mark.parametrize("n_samples", [6, 12])
def test_intervals_cover_the_truth(n_samples):
    model, x, background, share = linear(samples=4000)
    r = whence.reliability(model, explained(model, x), imputer=BackgroundSamples(background), share=0.2, n_samples=n_samples)
    known = ~r.sufficiency.value.isnan()
    assert known.double().mean() > 0.3
    for measure in (r.sufficiency, r.necessity):  # of a linear function, both are the same
        covered = ((measure.low <= share) & (share <= measure.high))[known].double().mean()
        assert 0.93 < covered < 0.97, covered


def test_random_relevance_is_no_better_than_chance():
    model, x, background, _ = linear(samples=3000)
    shown = explained(model, x)
    random = replace(shown, relevance=torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double())
    found = [whence.reliability(model, e, imputer=BackgroundSamples(background), share=0.2) for e in (random, shown)]
    by_chance, better = (r.better_than_chance[~r.sufficiency.value.isnan()].double().mean() for r in found)
    assert by_chance < 0.05
    assert better > 3 * by_chance


def test_shares_by_hand_without_noise():
    """Of a function whose features are replaced by constants, all draws are equal."""
    w = torch.tensor([[4.0], [3.0], [2.0], [1.0], [0.0]])
    model, x = (lambda x: x @ w), torch.ones(2, 5)
    e = explained(model, x)
    r = whence.reliability(model, e, imputer=0.0, share=0.2)
    torch.testing.assert_close(r.sufficiency.value, torch.full((2,), 0.4).double())
    torch.testing.assert_close(r.necessity.value, torch.full((2,), 0.4).double())
    torch.testing.assert_close(r.sufficiency.low, r.sufficiency.high)
    assert "keeping the most relevant 20 % of the features keeps 40 % [40, 40] of the output" in r.sentences[0]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["picture", "series", "volume", "tokens"])
def test_defaults_by_kind_of_input(kind, batch, tmp_path):
    torch.manual_seed(0)
    model, x = {
        "picture": lambda: (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 2)), (1, 16, 16)),
        "series": lambda: (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 28, 2)), (2, 30)),
        "volume": lambda: (nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 216, 2)), (1, 8, 8, 8)),
        "tokens": lambda: (nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(8 * 12, 2)), (12,)),
    }[kind]()
    given = torch.randint(20, (batch, *x)) if kind == "tokens" else torch.randn(batch, *x)
    e = whence.explain(model.eval(), given)
    r = whence.reliability(model, e)
    assert r.sufficiency.value.shape == (batch,)
    assert len(r.sentences) == batch
    assert all("% of the features keeps" in text or "no statement" in text for text in r.sentences)
    again = whence.reliability(model, e)
    torch.testing.assert_close(again.sufficiency.value, r.sufficiency.value, equal_nan=True)
    assert r.save(tmp_path / "r.png").stat().st_size > 5000
    assert len(r.table) == 2 * batch


def test_it_costs_at_most_sixty_evaluations_of_each_sample():
    calls = []

    def model(x):
        calls.append(len(x))
        return x.flatten(1).sum(1, keepdim=True)

    e = whence.explain(model, torch.rand(2, 1, 8, 8), 0, method="gradient_times_input")
    calls.clear()
    whence.reliability(model, e)
    assert sum(calls) <= 2 * (len(KINDS) * 12 + 12)  # and the check that rows are independent
    assert len(KINDS) * 12 == 60


@pytest.mark.parametrize(("freedom", "expected"), [(2, 4.303), (5, 2.571), (11, 2.201), (30, 2.042)])
def test_the_quantile_of_student(freedom, expected):
    assert _student_quantile(freedom) == pytest.approx(expected, rel=0.01)


def test_shifts_are_of_the_same_sample():
    x = torch.arange(2 * 2 * 16.0).view(2, 2, 16)
    fills = OtherPlaces(5).fills(x, [torch.Generator().manual_seed(i) for i in range(2)])
    for fill in fills:
        copy = fill(torch.ones(1, *x.shape, dtype=torch.bool))[0]
        assert torch.equal(copy.sort(2).values, x)
        assert not (copy == x).any()
    with pytest.raises(errors.InputError, match="expects images or series"):
        OtherPlaces().fills(torch.rand(2, 3), [])


def test_what_is_refused():
    model, x, _, _ = linear(samples=1)
    e = explained(model, x)
    with pytest.raises(errors.InputError, match="nothing to be replaced by; pass imputer="):
        whence.reliability(model, e)
    for settings in ({"share": 0}, {"share": 1.5}, {"n_samples": 2}):
        with pytest.raises(errors.RuleError, match="expected"):
            whence.reliability(model, e, imputer=0.0, **settings)
    with pytest.raises(errors.InputError, match="expected what whence"):
        whence.reliability(model, x)
    masked = whence.explain(
        lambda x, mask: (x * mask).sum(1, keepdim=True), {"x": torch.rand(2, 4), "mask": torch.ones(2, 4)}, 0
    )
    with pytest.raises(errors.InputError, match="does not have the inputs mask; pass inputs="):
        whence.reliability(lambda x, mask: (x * mask).sum(1, keepdim=True), masked)
