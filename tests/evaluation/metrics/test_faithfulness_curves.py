"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import whence
from whence import imputers, metrics
from whence.evaluation.bootstrap import mean_interval
from whence.evaluation.metrics.faithfulness_curves import rank_regions

FLAT = metrics.RegionFlipping(metrics.Removal(imputer=0.0))


SIDE = 6


def cnn(seed=0, channels=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5)
    ).eval()  # fmt: skip


def linear(n=12):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, 3, bias=False)).eval()


def scores(model, x, method, metric, **more):
    more = {"progress": False} | more
    return whence.evaluate(model, x, {"m": method}, [metric], **more).values["m"][metric.name]


def given_map(relevance):
    return lambda model, x, target: relevance[: len(x)]


def literal_curves(model, x, relevance, steps, score, fill, side):
    """One sample `[C, H, W]`, one step at a time, as the papers say."""
    H = x.shape[1]
    cells = [(r, c) for r in range(0, H, side) for c in range(0, H, side)]
    mean = {cell: float(relevance[:, cell[0] : cell[0] + side, cell[1] : cell[1] + side].sum(0).mean()) for cell in cells}
    falling = sorted(cells, key=lambda cell: -mean[cell])
    curves = []
    for order in (falling, falling[::-1]):
        curve = []
        for k in range(steps + 1):
            altered = x.clone()
            for r, c in order[: round(k / steps * len(cells))]:
                altered[:, r : r + side, c : c + side] = fill[:, r : r + side, c : c + side]
            curve.append(score(model(altered[None])[0]))
        curves.append(curve)
    return curves


def trapezoid(curve):
    return sum((a + b) / 2 for a, b in pairwise(curve)) / (len(curve) - 1)


@pytest.mark.parametrize("kind", ["logit", "probability", "logit_difference"])
@torch.no_grad()
def test_curves_equal_a_transcription(kind):
    model, x, side, steps = cnn(), torch.rand(3, 2, SIDE, SIDE), 2, 9
    relevance = torch.randn_like(x)
    found = whence.evaluate(
        model, x, {"m": given_map(relevance)}, ["srg", "mif", "lif", "aopc", "abpc"], regions=side, n_steps=steps, score=kind,
        progress=False,
    ).values["m"]  # fmt: skip
    for i in range(3):
        logits = model(x[i : i + 1])[0]
        first, second = logits.topk(2).indices.tolist()
        score = {
            "logit": lambda out, first=first: float(out[first]),
            "probability": lambda out, first=first: float(out.softmax(0)[first]),
            "logit_difference": lambda out, first=first, second=second: float(out[first] - out[second]),
        }[kind]
        fill = x[i].mean((1, 2), keepdim=True).expand_as(x[i])
        most, least = literal_curves(model, x[i], relevance[i], steps, score, fill, side)
        expected = {
            "srg": trapezoid(least) - trapezoid(most), "mif": trapezoid(most), "lif": trapezoid(least),
            "aopc": sum(most[0] - f for f in most) / (steps + 1),
            "abpc": sum(b - a for a, b in zip(most, least, strict=True)) / (steps + 1),
        }  # fmt: skip
        for name, value in expected.items():
            assert float(found[name][i]) == pytest.approx(value, abs=1e-5), name


@torch.no_grad()
def test_deletion_insertion_and_selectivity_equal_a_transcription():
    model, x = cnn(3), torch.rand(1, 2, SIDE, SIDE)
    relevance = torch.randn_like(x)
    found = whence.evaluate(model, x, {"m": given_map(relevance)}, ["deletion", "insertion", "selectivity"], n_steps=18,
                            regions="pixels", progress=False).values["m"]  # fmt: skip
    target = int(model(x).argmax())

    def probability(out):
        return float(out.softmax(0)[target])

    most, _ = literal_curves(model, x[0], relevance[0], 18, probability, torch.zeros_like(x[0]), 1)
    assert float(found["deletion"]) == pytest.approx(trapezoid(most), abs=1e-5)
    logit, _ = literal_curves(model, x[0], relevance[0], 18, lambda out: float(out[target]), torch.zeros_like(x[0]), 1)
    assert float(found["selectivity"]) == pytest.approx(trapezoid(logit), abs=1e-5)
    blurred = imputers.Blur(5.0).fills(x, [torch.Generator()])[0](torch.ones_like(x, dtype=torch.bool)[None])[0, 0]
    order = relevance[0].sum(0).flatten().argsort(descending=True)
    curve = []
    for k in range(19):  # as RISE does: from the blur, the most relevant put back
        picture = blurred.flatten(1).clone()
        shown = order[: round(k / 18 * 36)]
        picture[:, shown] = x[0].flatten(1)[:, shown]
        curve.append(probability(model(picture.view(1, *x.shape[1:]))[0]))
    assert float(found["insertion"]) == pytest.approx(trapezoid(curve), abs=1e-5)


def test_an_oracle_has_the_best_srg_of_a_linear_model_and_chance_none():
    model, x = linear(), torch.rand(200, 12)
    ways = {"oracle": "gradient_times_input", "against": lambda m, x, t: -x * m[0].weight[t], "random": "random",
            "sensitivity": "sensitivity"}  # fmt: skip
    found = whence.evaluate(model, x, ways, ["srg"], imputer=0.0, progress=False)
    chance = mean_interval(found.values["random"]["srg"])
    assert chance.low < 0 < chance.high
    assert found.best("srg") == "oracle"
    best = found.values["oracle"]["srg"]
    assert torch.allclose(best, -found.values["against"]["srg"], atol=1e-6)
    for _ in range(20):  # no order is better
        other = scores(model, x[:5], given_map(torch.randn(5, 12)), metrics.SRG(FLAT))
        assert (other <= best[:5] + 1e-6).all()
    (row,) = found.differences("srg", to="oracle")[2:]
    assert row["high"] < 0


def test_ties_are_broken_at_random_not_in_the_order_of_the_picture():
    scores, valid = torch.zeros(400, 10, dtype=torch.float64), torch.ones(400, 10, dtype=torch.bool)
    ranks = rank_regions(scores, valid, [torch.Generator().manual_seed(i) for i in range(400)])
    assert (ranks.sort(1).values == torch.arange(10)).all()
    assert (ranks.double().mean(0) - 4.5).abs().max() < 0.7


def test_fewer_regions_than_steps_and_a_single_region():
    model, x = linear(3), torch.rand(2, 3)
    assert torch.isfinite(scores(model, x, "lrp", metrics.SRG(FLAT))).all()
    one = torch.zeros(1, 3, dtype=torch.long)
    found = scores(model, x, "lrp", metrics.SRG(metrics.RegionFlipping(metrics.Removal(regions=one))))
    assert torch.equal(found, torch.zeros(2, dtype=torch.float64))


def test_irof_and_monotonicity_by_hand():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 3)).eval(), torch.rand(2, 6)
    relevance = torch.randn(2, 6)
    way = {"m": lambda model, x, target: relevance}
    found = whence.evaluate(model, x, way, ["irof", "monotonicity"], n_steps=6, progress=False).values["m"]
    for i in range(2):
        label, order = int(model(x[i : i + 1]).argmax()), relevance[i].argsort(descending=True)
        inputs = [x[i].clone()]
        for j in order:
            inputs.append(inputs[-1].clone())
            inputs[-1][j] = 0  # the mean of standardized columns
        outputs = model(torch.stack(inputs)).detach()
        shares = outputs.softmax(1)[:, label] / outputs.softmax(1)[0, label]
        assert float(found["irof"][i]) == pytest.approx(float(1 - torch.trapezoid(shares) / 6), abs=1e-5)
        logits = outputs[:, label]
        assert float(found["monotonicity"][i]) == pytest.approx(float((logits[:-1] >= logits[1:]).float().mean()))
