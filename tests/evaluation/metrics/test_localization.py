"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import math

import pytest
import torch
from torch import nn

import whence
from whence import errors, metrics

SIDE = 6


def cnn(seed=0, channels=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5)
    ).eval()  # fmt: skip


def scores(model, x, method, metric, **more):
    more = {"progress": False} | more
    return whence.evaluate(model, x, {"m": method}, [metric], **more).values["m"][metric.name]


def given_map(relevance):
    return lambda model, x, target: relevance[: len(x)]


def test_an_empty_mask_is_no_hit():
    """In Quantus it is (its defect 1)."""
    model, x = cnn(), torch.rand(3, 2, SIDE, SIDE)
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    masks[1] = True
    masks[2, :2] = True
    for metric in (metrics.PointingGame(), metrics.RelevanceMass(), metrics.RelevanceRank()):
        found = scores(model, x, "lrp", metric, masks=masks)
        assert math.isnan(found[0])
        assert float(found[1]) == pytest.approx(1)
    row = whence.evaluate(model, x, ["lrp"], ["pointing_game"], masks=masks, progress=False).table[0]
    assert row["n"] == 2


def test_localisation_by_hand():
    model, x = cnn(channels=1), torch.rand(1, 1, SIDE, SIDE)
    heat = torch.zeros(1, 1, SIDE, SIDE)
    heat[0, 0, 2, 2], heat[0, 0, 4, 4], heat[0, 0, 0, 0] = 3, 1, -5
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[0, 2, 3] = mask[0, 4, 4] = True
    way = given_map(heat)
    assert float(scores(model, x, way, metrics.PointingGame(), masks=mask)) == 0
    assert float(scores(model, x, way, metrics.PointingGame(tolerance=1), masks=mask)) == 1
    assert float(scores(model, x, way, metrics.RelevanceMass(), masks=mask)) == pytest.approx(0.25)
    assert float(scores(model, x, way, metrics.RelevanceRank(), masks=mask)) == pytest.approx(0.5)


def test_masks_that_do_not_fit_are_refused():
    model, x = cnn(), torch.rand(3, 2, SIDE, SIDE)
    with pytest.raises(errors.InputError, match="needs masks"):
        whence.evaluate(model, x, ["lrp"], ["relevance_mass"])
    with pytest.raises(errors.InputError, match="masks of"):
        whence.evaluate(model, x, ["lrp"], ["relevance_mass"], masks=torch.ones(3, 4, 4))
    with pytest.raises(errors.InputError, match="2 masks for 3 samples"):
        whence.evaluate(model, x, ["lrp"], ["relevance_mass"], masks=torch.ones(2, SIDE, SIDE))


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_top_k_intersection_by_hand(k):
    model, x = cnn(), torch.rand(3, 2, SIDE, SIDE)
    relevance = torch.randn(3, 2, SIDE, SIDE)
    masks = torch.rand(3, SIDE, SIDE) > 0.6
    found = scores(model, x, given_map(relevance), metrics.TopKIntersection(k), masks=masks)
    for i in range(3):
        heat = relevance[i].sum(0).flatten().tolist()
        top = sorted(range(len(heat)), key=lambda j, heat=heat: -heat[j])[:k]
        expected = sum(bool(masks[i].flatten()[j]) for j in top) / len(top)
        assert float(found[i]) == pytest.approx(expected)
    with pytest.raises(errors.RuleError, match="k=0; expected at least 1"):
        metrics.TopKIntersection(0)
