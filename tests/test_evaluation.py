"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import json
import math
import os
import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import whence
from whence import errors, imputers, metrics
from whence.core.fingerprints import fingerprint
from whence.core.inputs import Inputs
from whence.evaluation.bootstrap import mean_interval
from whence.evaluation.case import EvaluationBatch, MethodAdapter
from whence.evaluation.metrics.faithfulness_curves import rank_regions
from whence.evaluation.metrics.randomization import spearman
from whence.evaluation.random_baseline import Random
from whence.evaluation.regions import Regions
from whence.evaluation.retraining import label_randomisation, roar
from whence.lrp.engine.prepared_model import PreparedModel
from whence.models.digits import digit_samples, digits

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


# curves


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


# what no score may depend on


@pytest.mark.parametrize("name", sorted(set(metrics.METRICS) - {"pointing_game", "relevance_mass", "relevance_rank"}))
def test_no_score_depends_on_batches(name):
    model, x = cnn(), torch.rand(7, 2, SIDE, SIDE)
    whole = whence.evaluate(model, x, ["lrp", "random"], [name], progress=False)
    parts = whence.evaluate(model, x, ["lrp", "random"], [name], batch_size=3, progress=False)
    for method in ("lrp", "random"):
        a, b = whole.values[method][name], parts.values[method][name]
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4, equal_nan=True)


def test_a_batch_mate_changes_nothing():
    """Quantus divides by the largest value of the whole batch (its defect 10)."""
    model, x = cnn(), torch.rand(2, 2, SIDE, SIDE)
    loud = torch.stack([x[0], x[1] * 1e6])
    for name in ("sparseness", "complexity", "continuity", "srg"):
        a = whence.evaluate(model, x, ["lrp"], [name], progress=False).values["lrp"][name][0]
        b = whence.evaluate(model, loud, ["lrp"], [name], progress=False).values["lrp"][name][0]
        assert float(a) == pytest.approx(float(b), rel=1e-3), name


# subsets


def test_sensitivity_n_is_1_for_a_linear_model_and_equals_a_transcription():
    """Quantus reads the first batch alone and sums single steps (its defect 3)."""
    model, x = linear(), torch.randn(6, 12)
    ones = scores(model, x, "gradient_times_input", metrics.SensitivityN())
    torch.testing.assert_close(ones, torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0)
    metric = metrics.SensitivityN(sizes=(0.25, 0.5), n_samples=40)
    net, relevance = cnn(), torch.randn(2, 2, SIDE, SIDE)
    x = torch.rand(2, 2, SIDE, SIDE)
    found = scores(net, x, given_map(relevance), metric)
    batch = EvaluationBatch.of(PreparedModel(net), Inputs.of(x), None)
    regions, _, chosen = metric._lost(batch)
    mask = regions.masks[0]
    for i in range(2):
        target, means = int(net(x[i : i + 1]).argmax()), []
        for part in chosen[:, i].split(40):
            sums, lost = [], []
            for subset in part:
                hidden = subset[mask[0, 0]]
                sums.append(float(relevance[i][:, hidden].sum()))
                lost.append(float((net(x[i : i + 1]) - net((x[i] * ~hidden)[None]))[0, target].detach()))
            means.append(np.corrcoef(sums, lost)[0, 1])
        assert float(found[i]) == pytest.approx(np.mean(means), abs=1e-4)


def test_infidelity_is_0_for_a_linear_model():
    """Quantus' samples are all alike (its defect 4)."""
    model, x = linear(), torch.randn(4, 12)
    assert scores(model, x, "gradient_times_input", metrics.Infidelity(scaled=False)).max() < 1e-8
    scaled = scores(model, x, given_map(3 * x * model[0].weight[model(x).argmax(1)].detach()), metrics.Infidelity())
    assert scaled.max() < 1e-8  # the best factor is a third
    assert scores(model, x, given_map(torch.randn(4, 12)), metrics.Infidelity()).min() > 0.1


def test_any_size_of_picture_divides_into_patches():
    """Quantus fails where the patch does not divide the side (its defect 4)."""
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(2)).eval()
    model(torch.rand(1, 1, 7, 11))
    found = whence.evaluate(model, torch.rand(3, 1, 7, 11), ["lrp"], ["infidelity", "srg"], regions=4, progress=False)
    assert torch.isfinite(found.values["lrp"]["infidelity"]).all()


# continuity


def test_continuity_of_a_linear_model_is_known():
    """R = w ⊙ x: moving x by d moves R by w ⊙ d."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 1, bias=False)).eval()
    x = torch.rand(2, 1, 3, 3)
    found = scores(model, x, "gradient_times_input", metrics.Continuity(relative=False))
    w = model[1].weight.detach().view(3, 3)
    for i in range(2):
        ratios = []
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            places = (torch.arange(3) - step).clamp(0, 2)
            moved = x[i, 0].index_select(axis, places)
            ratios.append(float((w * (moved - x[i, 0])).abs().sum() / (moved - x[i, 0]).norm()))
        assert float(found[i]) == pytest.approx(max(ratios), rel=1e-5)


def test_max_sensitivity_of_a_linear_model_stays_below_its_bound():
    model, x = linear(), torch.randn(5, 12)
    found = scores(model, x, "gradient_times_input", metrics.MaxSensitivity(radius=0.1))
    w = model[0].weight[model(x).argmax(1)].detach()
    bound = 0.1 * w.norm(dim=1) / (w * x).norm(dim=1)
    assert (found < bound).all()
    assert (found > 0.3 * bound).all()
    assert scores(model, x, given_map(torch.ones(5, 12)), metrics.MaxSensitivity()).max() == 0


@pytest.mark.filterwarnings("ignore")
def test_captum_agrees_on_max_sensitivity():
    import captum.metrics
    from captum.attr import Saliency

    model, x = cnn(), torch.rand(3, 2, SIDE, SIDE)
    target = model(x).argmax(1)
    ours = scores(
        model, x, lambda m, x, t: Saliency(m).attribute(x.requires_grad_(), t, abs=False), metrics.MaxSensitivity(n_samples=60)
    )
    theirs = captum.metrics.sensitivity_max(Saliency(model).attribute, x, target=target, n_perturb_samples=60, abs=False)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.35, atol=1e-3)  # both are random searches


# localisation


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


# complexity and completeness


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9).filter(lambda v: sum(map(abs, v)) > 1e-3))
def test_sparseness_and_entropy_equal_their_formulas(values):
    heat = torch.tensor([values])
    model, x = linear(len(values)), torch.rand(1, len(values))
    found = whence.evaluate(model, x, {"m": given_map(heat)}, ["sparseness", "complexity"], progress=False).values["m"]
    magnitude = sorted(abs(v) for v in heat[0].double().tolist())
    n, total = len(values), sum(magnitude)
    gini = sum((2 * k - n - 1) * v for k, v in enumerate(magnitude, 1)) / (n * total)
    assert float(found["sparseness"]) == pytest.approx(gini, abs=1e-9)
    entropy = -sum(v / total * math.log(v / total) for v in magnitude if v > 0)
    assert float(found["complexity"]) == pytest.approx(entropy, abs=1e-9)


def test_complete_explanations_have_no_gap():
    """Quantus compares floats with == after normalising and a softmax (its defect 2)."""
    model, x = linear(), torch.randn(8, 12)
    assert scores(model, x, "gradient_times_input", metrics.Completeness()).max() < 1e-5
    net = cnn()
    x = torch.rand(3, 2, SIDE, SIDE)
    complete = whence.IntegratedGradients(n_steps=300)
    assert scores(net, x, complete, metrics.Completeness()).max() < 1e-2
    assert scores(net, x, "lrp", metrics.ConservationGap()).max() < 1e-5
    assert scores(net, x, "sensitivity", metrics.ConservationGap()).min() > 1e-3
    arrived = scores(net, x, "lrp", metrics.RelevanceRatio())
    account = whence.explain(net, x).conservation
    torch.testing.assert_close(arrived.float(), account.relevance / account.output)


# randomisation


def test_mprt_leaves_out_the_intact_model_and_the_model_alone():
    """Quantus averages the 1 of the intact model in (its defect 5)."""
    model, x = linear(), torch.rand(20, 12)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    signed = metrics.MPRT(absolute=False)
    found = scores(model, x, "gradient_times_input", signed)
    assert abs(float(found.mean())) < 0.75  # one layer: half of 1 and chance would be 0.5 and more
    constant = scores(model, x, given_map(torch.rand(20, 12)), signed)
    torch.testing.assert_close(constant, torch.ones(20, dtype=torch.float64))
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    state = torch.get_rng_state()
    scores(model, x, "gradient_times_input", metrics.SmoothMPRT(n_samples=2))
    assert torch.equal(state, torch.get_rng_state())


def test_mprt_equals_a_cascade_by_hand():
    model, x = cnn(), torch.rand(2, 2, SIDE, SIDE)
    found = scores(model, x, "gradient_times_input", metrics.MPRT(absolute=False, seed=3))
    other, target = cnn(), model(x).argmax(1)
    other.load_state_dict(model.state_dict())
    here = whence.explain(model, x, target, method="gradient_times_input").relevance
    with torch.random.fork_rng():
        torch.manual_seed(3)
        stages = []
        for layer in (other[3], other[0]):
            layer.reset_parameters()
            there = whence.explain(other, x, target, method="gradient_times_input").relevance
            stages.append(spearman(here.flatten(1).double(), there.flatten(1).double()))
    torch.testing.assert_close(found, torch.stack(stages).mean(0))


def test_spearman_equals_scipy():
    from scipy.stats import spearmanr

    a, b = torch.randint(0, 5, (6, 40)).double(), torch.randn(6, 40).double()
    for i in range(6):
        assert float(spearman(a, b)[i]) == pytest.approx(spearmanr(a[i], b[i]).statistic)


def test_random_logit_and_efficient_mprt():
    model, x = linear(), torch.rand(30, 12)
    assert scores(model, x, given_map(torch.rand(30, 12)), metrics.RandomLogit()).min() > 0.999
    assert abs(float(scores(model, x, "gradient_times_input", metrics.RandomLogit()).mean())) < 0.6
    assert torch.isfinite(scores(cnn(), torch.rand(3, 2, SIDE, SIDE), "lrp", metrics.EfficientMPRT())).all()


def _train(x, y, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2))
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(80):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def test_retraining():
    """Two pixels tell the class: without what gradient × input calls relevant nothing is left to learn, at random much is."""
    torch.manual_seed(0)
    y = torch.randint(2, (200,))
    x = torch.rand(200, 1, 4, 4) - 0.5
    x[:, 0, 0, :2] = 2 * y[:, None].float() - 1 + 0.1 * torch.rand(200, 2)
    rows = roar(_train, (x[:100], y[:100]), (x[100:], y[100:]), ["gradient_times_input", "random"],
                fractions=(0.15,), regions="pixels", imputer=0.0)  # fmt: skip
    accuracy = {row["method"]: row["accuracy"][0] for row in rows}
    assert accuracy["gradient_times_input"] < 0.8 < accuracy["random"]
    found = label_randomisation(_train, (x, y), ["gradient_times_input"])
    assert found["gradient_times_input"].shape == (100,)
    assert float(found["gradient_times_input"].mean()) < 0.8


# imputers and regions


def test_imputers_by_hand():
    x = torch.rand(2, 3, 8, 8)
    everywhere, nowhere = torch.ones(1, 2, 3, 8, 8, dtype=torch.bool), torch.zeros(1, 2, 3, 8, 8, dtype=torch.bool)
    random = [torch.Generator().manual_seed(i) for i in range(2)]
    for imputer in (imputers.ConstantValue(0.5), imputers.Mean(), imputers.Blur(2), imputers.Inpainting(), imputers.BackgroundSamples(x)):
        (fill,) = imputer.fills(x, random)
        assert torch.equal(fill(nowhere)[0], x)
        filled = fill(everywhere)[0]
        assert filled.shape == x.shape
        assert filled.min() >= x.min() - 1e-6
        assert filled.max() <= x.max() + 1e-6
    assert torch.allclose(imputers.Mean().fills(x, random)[0](everywhere)[0], x.mean((2, 3), keepdim=True).expand_as(x))
    flat = torch.full((1, 1, 9, 9), 0.3)
    hole = torch.zeros(1, 1, 1, 9, 9, dtype=torch.bool)
    hole[..., 2:6, 3:7] = True
    assert torch.allclose(imputers.Inpainting().fills(flat, random[:1])[0](hole)[0], flat, atol=1e-6)


def test_blur_equals_scipy():
    from scipy.ndimage import gaussian_filter

    x = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    (fill,) = imputers.Blur(1.5).fills(x, [torch.Generator()])
    ours = fill(torch.ones(1, *x.shape, dtype=torch.bool))[0, 0, 0]
    theirs = gaussian_filter(x[0, 0].numpy(), 1.5, mode="nearest", radius=5)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-9)


def test_regions():
    x = torch.rand(2, 3, 28, 28)
    assert Regions.of(None, Inputs.of(x), [0]).valid.shape == (2, 196)
    assert Regions.of("pixels", Inputs.of(x), [0]).valid.shape == (2, 784)
    cut = whence.superpixels(x, 20)
    found = Regions.of(lambda x: whence.superpixels(x, 20), Inputs.of(x), [0])
    assert found.counts.tolist() == [int(cut[0].max()) + 1, int(cut[1].max()) + 1]
    with pytest.raises(errors.InputError, match="no regions 'tiles'"):
        Regions.of("tiles", Inputs.of(x), [0])
    with pytest.raises(errors.InputError, match="whole numbers"):
        Regions.of(torch.zeros(1, 1, 5, 5).long(), Inputs.of(x), [0])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.table(input_ids) * mask).sum(1))


def test_tokens_are_taken_away_and_padding_never():
    model = Words().eval()
    ids = torch.randint(1, 20, (4, 6))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    found = whence.evaluate(model, (text, None), ["lrp", "random"], ["srg"], imputer=0, progress=False)
    assert found.best("srg") == "lrp"
    assert Regions.of(None, Inputs.of(text), [0]).counts.tolist() == [6, 3, 6, 6]
    marked = torch.zeros(4, 6)
    marked[:, 0] = 1
    mass = whence.evaluate(model, (text, None), ["lrp"], ["relevance_mass"], masks=marked, progress=False)
    assert 0 <= float(mass.values["lrp"]["relevance_mass"].nanmean()) <= 1
    with pytest.raises(errors.InputError, match="ids have no mean"):
        whence.evaluate(model, (text, None), ["lrp"], ["srg"], progress=False)
    with pytest.raises(errors.InputError, match="ids have nothing between them"):
        whence.evaluate(model, (text, None), ["lrp"], ["max_sensitivity"], progress=False)


# intervals


def test_intervals_hold_the_mean_as_often_as_they_say():
    held = 0
    for i in range(200):
        values = torch.randn(60, generator=torch.Generator().manual_seed(i)).double() + 1
        found = mean_interval(values)
        held += found.low < 1 < found.high
    assert 178 < held < 200


def test_few_samples_have_no_interval():
    few = mean_interval(torch.tensor([1.0, 2.0]))
    assert few.mean == 1.5
    assert math.isnan(few.low)
    assert "too few for intervals" in repr(
        whence.evaluate(linear(), torch.rand(2, 12), ["lrp"], ["sparseness"], progress=False)
    )


# data, failures, files


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return torch.rand(2, SIDE, SIDE, generator=generator), i % 5


def test_all_kinds_of_data_give_the_same():
    model, pairs = cnn(), Pairs()
    x, y = torch.stack([pairs[i][0] for i in range(10)]), torch.tensor([pairs[i][1] for i in range(10)])
    loader = torch.utils.data.DataLoader(pairs, batch_size=4)
    expected = whence.evaluate(model, (x, y), ["lrp"], ["srg"], target="label", progress=False).values["lrp"]["srg"]
    for data in (pairs, loader, (x, y.tolist()), (x, y.numpy())):
        found = whence.evaluate(model, data, ["lrp"], ["srg"], target="label", progress=False).values["lrp"]["srg"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(errors.TargetError, match="needs labels"):
        whence.evaluate(model, x, ["lrp"], ["srg"], target="label")
    with pytest.raises(errors.TargetError, match="9 labels for 10 samples"):
        whence.evaluate(model, (x, y[:9]), ["lrp"], ["srg"])
    with pytest.raises(errors.InputError, match="empty"):
        whence.evaluate(model, [], ["lrp"], ["srg"])


def test_a_sample_that_fails_is_named_and_the_rest_counted():
    model, x = cnn(), torch.rand(8, 2, SIDE, SIDE)

    def theirs(model, x, target):
        if any(torch.equal(row, x_bad) for row in x):
            raise ValueError("no explanation today")
        return x

    x_bad = x[3].clone()
    found = whence.evaluate(model, x, {"theirs": theirs, "lrp": "lrp"}, ["srg"], progress=False)
    assert [f.sample for f in found.failures] == [3]
    rows = {row["method"]: row for row in found.table}
    assert (rows["theirs"]["n"], rows["theirs"]["failed"], rows["lrp"]["n"]) == (7, 1, 8)
    assert "theirs failed on 1: 3 (no explanation today)" in repr(found)
    with pytest.raises(ValueError, match="always"):
        whence.evaluate(model, x, {"m": lambda *given: (_ for _ in ()).throw(ValueError("always"))}, ["srg"])
    with pytest.raises(errors.InputError, match="'m' gave relevance of"):
        whence.evaluate(model, x, {"m": lambda m, x, t: x[:, :, :2]}, ["srg"])


def test_wrong_names_say_what_is_meant():
    model, x = cnn(), torch.rand(2, 2, SIDE, SIDE)
    for settings, message in [
        ({"methods": ["lpr"]}, "did you mean 'lrp'"),
        ({"metrics": ["sgr"]}, "did you mean 'srg'"),
        ({"metrics": ["sparseness"], "regions": 4}, "no metric by name takes anything away"),
        ({"metrics": ["srg", "srg"]}, "two metrics are called"),
        ({"methods": []}, "no methods"),
        ({"methods": [lambda m, x, t: x]}, "has no name"),
        ({"metrics": [metrics.SRG]}, "is no metric"),
        ({"imputer": "mena"}, "did you mean 'mean'"),
        ({"score": "logits"}, "choose from logit"),
    ]:
        with pytest.raises(errors.RuleError, match=message):
            whence.evaluate(model, x, **({"methods": ["lrp"], "metrics": ["srg"]} | settings), progress=False)
    with pytest.raises(errors.ModelError, match="must be a torch"):
        whence.evaluate(lambda x: model(x), x, ["lrp"], ["mprt"])


def test_results_are_written(tmp_path):
    x, y = digit_samples()
    found = whence.evaluate(digits(), (x[:6], y[:6]), ["lrp", "random"], ["srg", "sparseness"], progress=False)
    for suffix in (".png", ".csv", ".json", ".html"):
        assert found.save(tmp_path / f"e{suffix}").stat().st_size > 100
    read = json.loads((tmp_path / "e.json").read_text())
    assert read["table"][0]["method"] == "lrp"
    assert len(read["values"]["random"]["srg"]) == 6
    assert (tmp_path / "e.csv").read_text().startswith("method,metric,mean,low,high,n,failed,better\nlrp,srg,")
    page = (tmp_path / "e.html").read_text()
    assert "<td>lrp</td>" in page
    assert "http" not in page.replace("http-equiv", "")
    assert set(found.curves) == {"lrp", "random"}


def test_a_run_goes_on_where_it_was(tmp_path):
    model, x, log = cnn(), torch.rand(6, 2, SIDE, SIDE), tmp_path / "log"
    tmp_path = tmp_path / "kept"
    log.touch()

    def theirs(model, x, target):
        log.write_text(log.read_text() + f"{len(x)} ")
        return x

    first = whence.evaluate(model, x, {"m": theirs}, ["srg"], batch_size=2, cache_dir=tmp_path, progress=False)
    again = whence.evaluate(model, x, {"m": theirs}, ["srg"], batch_size=2, cache_dir=tmp_path, progress=False)
    assert log.read_text().split() == ["2"] * 3
    assert torch.equal(first.values["m"]["srg"], again.values["m"]["srg"])
    whence.evaluate(cnn(1), x, {"m": theirs}, ["srg"], batch_size=2, cache_dir=tmp_path, progress=False)
    assert len(log.read_text().split()) == 6  # other weights are another run
    whence.evaluate(model, x, {"m": theirs}, [metrics.SRG(FLAT)], batch_size=2, cache_dir=tmp_path, progress=False)
    assert len(log.read_text().split()) == 9


class Broken(Pairs):
    """The third row cannot be read, the seventh is of another size."""

    def __getitem__(self, i):
        if i == 2:
            raise OSError("no picture")
        x, y = super().__getitem__(i)
        return (x[:, :4], y) if i == 6 else (x, y)


def test_rows_that_cannot_be_read_are_named():
    found = whence.evaluate(cnn(), Broken(), ["lrp", "random"], ["srg"], batch_size=4, progress=False)
    whole = whence.evaluate(cnn(), Pairs(), ["lrp", "random"], ["srg"], batch_size=4, progress=False)
    assert [(f.method, f.sample) for f in found.failures] == [("lrp", 2), ("random", 2), ("lrp", 6), ("random", 6)]
    good = torch.tensor([0, 1, 3, 4, 5, 7, 8, 9])
    for method in ("lrp", "random"):
        assert found.values[method]["srg"].isnan().nonzero().flatten().tolist() == [2, 6]
        torch.testing.assert_close(found.values[method]["srg"][good], whole.values[method]["srg"][good], rtol=1e-4, atol=1e-5)
    assert "every method failed on 1: 2 (OSError: no picture); every method failed on 1: 6 (a sample of (2, 4, 6)" in repr(
        found
    )
    with pytest.raises(errors.InputError, match="sample 2 cannot be read"):
        whence.tune(cnn(), Broken())
    with pytest.raises(errors.InputError, match=r"none of 2 samples can be read: .* give read="):
        whence.evaluate(cnn(), [object(), object()], ["lrp"], ["srg"])


def test_rows_are_made_inputs_of_by_read(tmp_path):
    rows = [{"picture": x.numpy(), "kind": y} for x, y in (Pairs()[i] for i in range(10))]
    expected = whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], target="label", progress=False).values["lrp"]["srg"]
    found = whence.evaluate(
        cnn(),
        rows,
        ["lrp"],
        ["srg"],
        target="label",
        read=lambda r: (torch.from_numpy(r["picture"]), r["kind"]),
        progress=False,
    )
    torch.testing.assert_close(found.values["lrp"]["srg"], expected)
    with pytest.raises(errors.InputError, match="read makes inputs of the rows"):
        whence.evaluate(cnn(), torch.rand(4, 2, SIDE, SIDE), ["lrp"], ["srg"], read=len)


def test_parts_of_array_jobs_are_gathered(tmp_path):
    expected = whence.evaluate(cnn(), Pairs(), ["lrp", "random"], ["srg"], batch_size=3, progress=False).values
    for i in range(3):
        part = whence.evaluate(
            cnn(), Pairs(), ["lrp", "random"], ["srg"], batch_size=3, cache_dir=tmp_path, shard=f"{i}/3", progress=False
        )
        assert int(part.values["lrp"]["srg"].isfinite().sum()) == (4 if i == 0 else 3)
        assert not part.failures
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(made) == 8  # four batches, two methods
    found = whence.evaluate(cnn(), Pairs(), ["lrp", "random"], ["srg"], batch_size=3, cache_dir=tmp_path, progress=False).values
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made
    assert all(torch.equal(found[way]["srg"], expected[way]["srg"]) for way in ("lrp", "random"))
    with pytest.raises(errors.RuleError, match="give both"):
        whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], shard="0/3")
    with pytest.raises(errors.RuleError, match="choose from local, ray"):
        whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], engine="rays")
    with pytest.raises(errors.RuleError, match="give engine='ray' too"):
        whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], address="127.0.0.1:9")


def test_loaders_count_what_they_give():
    whole = whence.evaluate(cnn(), Pairs(), ["lrp"], ["srg"], progress=False).values["lrp"]["srg"]
    for loader, count in (
        (torch.utils.data.DataLoader(Pairs(), 4, drop_last=True), 8),
        (torch.utils.data.DataLoader(Pairs(), 4, sampler=range(2)), 2),
        (torch.utils.data.DataLoader(Pairs(), batch_sampler=[[0, 1, 2], [3]]), 4),
    ):
        found = whence.evaluate(cnn(), loader, ["lrp"], ["srg"], progress=False).values["lrp"]["srg"]
        torch.testing.assert_close(found, whole[:count], rtol=1e-4, atol=1e-5)
    shuffled = torch.utils.data.DataLoader(Pairs(), 4, shuffle=True)
    with pytest.raises(errors.InputError, match="shuffles"):
        whence.evaluate(cnn(), shuffled, ["lrp"], ["srg"], target=torch.zeros(10).long())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_finds_the_same():
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    rows = ["no picture" if i == 2 else Pairs()[i] for i in range(10)]
    expected = whence.evaluate(cnn(), rows, ["lrp", "random"], ["srg"], batch_size=3, progress=False)
    try:
        found = whence.evaluate(cnn(), rows, ["lrp", "random"], ["srg"], batch_size=3, engine="ray", progress=False)
    finally:
        ray.shutdown()
    for way in ("lrp", "random"):
        assert torch.equal(found.values[way]["srg"].nan_to_num(7), expected.values[way]["srg"].nan_to_num(7))
    assert found.failures == expected.failures
    assert {f.sample for f in found.failures} == {2}


def test_fingerprints_tell_things_apart():
    same = [whence.LRP(whence.presets.epsilon_plus()), whence.LRP(whence.presets.epsilon_plus())]
    assert fingerprint(same[0]) == fingerprint(same[1])
    others = [
        whence.LRP(),
        same[0],
        torch.ones(2),
        torch.ones(2).double(),
        torch.zeros(2),
        "a",
        b"a",
        1,
        1.0,
        None,
        cnn(),
        cnn(1),
    ]
    assert len({fingerprint(thing) for thing in others}) == len(others)


def test_nothing_stays_on_the_model():
    model, x = cnn(), torch.rand(2, 2, SIDE, SIDE)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    masks = torch.ones(2, SIDE, SIDE)
    whence.evaluate(model, x, ["lrp", "random"], list(metrics.METRICS), masks=masks, progress=False)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


# by default


def test_the_defaults_rank_lrp_before_chance():
    x, y = digit_samples()
    found = whence.evaluate(digits(), (x, y), progress=False)
    assert found.best("srg") == "lrp"
    assert all(row["low"] > 0 for row in found.differences("srg", to="random"))


# comparison


def test_methods_are_compared_on_one_target(tmp_path):
    x, _ = digit_samples()
    found = whence.compare(digits(), x[:2], {"lrp": "lrp", "theirs": lambda m, x, t: x})
    assert torch.equal(found["lrp"].relevance, whence.explain(digits(), x[:2]).relevance)
    assert found.save(tmp_path / "c.png").stat().st_size > 5000
    rows = found.table
    assert [(row["sample"], row["method"]) for row in rows] == [(0, "lrp"), (0, "theirs"), (1, "lrp"), (1, "theirs")]
    heat = found["lrp"].relevance[0]
    against = float(heat.clamp(max=0).abs().sum() / heat.abs().sum())
    assert rows[0]["counter_relevance"] == pytest.approx(against, rel=1e-4)
    assert "counter-relevance" in repr(found)
    whence.compare(linear(), torch.rand(2, 12), ["lrp", "sensitivity"]).save(tmp_path / "v.png")
    with pytest.raises(errors.WhenceError, match=r"^rise: "):
        whence.compare(linear(), torch.rand(2, 12), ["lrp", "rise"])


# tuning


def test_tuning_finds_the_oracle():
    model, x = linear(), torch.rand(40, 12)
    ways = {f"noise {i}": Random(seed=i) for i in range(6)} | {"oracle": whence.GradientTimesInput()}
    found = whence.tune(model, x, ways, imputer=0.0, progress=False)
    assert found.name == "oracle"
    assert found.score.n == 20
    assert "oracle" in found.front
    assert found.table[0]["n"] == 20
    assert found.table[-1]["n"] < 20  # fell out early


def test_tuning_varies_fields_and_writes(tmp_path):
    model, x = cnn(), torch.rand(12, 2, SIDE, SIDE)
    found = whence.tune(model, x, whence.IntegratedGradients(), fields={"n_steps": [2, 8]}, progress=False)
    assert {row["method"] for row in found.table} == {"n_steps=2", "n_steps=8"}
    assert isinstance(found.method, whence.IntegratedGradients)
    found.save(tmp_path / "t.png")
    assert json.loads(found.save(tmp_path / "t.json").read_text())["best"] == found.name
    for settings, message in [
        ({"candidates": whence.IntegratedGradients(), "fields": {"steps": [1]}}, "no field 'steps'"),
        ({"fields": {"n_steps": [1]}}, "fields vary one method"),
        ({"metric": "sparseness"}, "no better end"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"candidates": {"a": whence.LRP()}, "bounds": (0, 1)}, "bounds are for"),
    ]:
        with pytest.raises(errors.RuleError, match=message):
            whence.tune(model, x, **settings)
    with pytest.raises(errors.InputError, match="at least 4"):
        whence.tune(model, x[:2])


def test_rule_sets_of_a_network_all_run():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(3 * 36, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3),
    ).eval()  # fmt: skip
    x = torch.rand(8, 1, 12, 12)
    found = whence.tune(model, x, bounds=(0.0, 1.0), progress=False)
    names = {row["method"] for row in found.table}
    assert {"default", "γ 1 → 0.01", "z^B, γ 0.25", "attn_lrp(gamma=0.25)"} <= names


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_command_goes_on(tmp_path):
    program = (
        "import sys, os, signal, torch, whence\n"
        "from whence.evaluation.evaluate import evaluate\n"
        "from whence.models.digits import digits, digit_samples\n"
        "x, y = digit_samples()\n"
        "seen = []\n"
        "def way(model, x, t):\n"
        "    seen.append(1)\n"
        "    if len(sys.argv) > 2 and len(seen) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return x\n"
        "e = evaluate(digits(), x[:20], {'m': way}, ['srg'], batch_size=5, cache_dir=sys.argv[1], progress=False)\n"
        "print(len(seen), float(e.values['m']['srg'].sum()))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "kept", "die"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    rest = subprocess.run([sys.executable, "-c", program, tmp_path / "kept"], capture_output=True, text=True, check=True)
    whole = subprocess.run([sys.executable, "-c", program, tmp_path / "other"], capture_output=True, text=True, check=True)
    assert rest.stdout.split()[0] == "2"
    assert rest.stdout.split()[1] == whole.stdout.split()[1]


def test_ways_of_other_libraries_stand_beside_ours():
    model = cnn()
    way = MethodAdapter("m", lambda model, x, target: x, PreparedModel(model))
    assert way.external
    assert not MethodAdapter("m", whence.LRP(), PreparedModel(model)).external


# what a reviewer found wrong


def test_samples_of_other_numbers_of_regions_change_nothing():
    model, x = cnn(), torch.rand(4, 2, SIDE, SIDE)

    def cut(x):
        counts = 3 + (x.sum((1, 2, 3)) * 100).long() % 30
        return torch.arange(SIDE * SIDE).view(1, 1, SIDE, SIDE).expand(len(x), 1, SIDE, SIDE) % counts.view(-1, 1, 1, 1)

    for name in ("srg", "aopc", "abpc", "sensitivity_n", "infidelity"):
        whole, single = (
            whence.evaluate(model, x, ["lrp"], [name], regions=cut, batch_size=size, progress=False).values["lrp"][name]
            for size in (None, 1)
        )
        torch.testing.assert_close(whole, single, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_tuning_pairs_targets_with_samples_and_lets_the_users_names_be():
    x, y = digit_samples()
    ways, wanted = {"a": whence.LRP(), "b": whence.GradientTimesInput()}, (y[:20] + 1) % 10
    plain = whence.tune(digits(), x[:20], ways, target=wanted, progress=False)
    logits = whence.tune(digits(), x[:20], ways, target=whence.Logit(wanted), progress=False)
    assert plain.table == logits.table
    named = whence.tune(digits(), x[:12], {"default": whence.Sensitivity()}, progress=False)
    direct = whence.evaluate(digits(), x[:12], {"s": whence.Sensitivity()}, ["srg"], progress=False).values["s"]["srg"]
    assert float(named.held_out.values["default"]["srg"].mean()) < float(direct.max()) + 1e-6
    assert named.held_out.values.keys() == {"default"}
    twins = {"baselines": [torch.zeros(1, 1, 28, 28), torch.ones(1, 1, 28, 28)]}
    assert len(whence.tune(digits(), x[:8], whence.IntegratedGradients(n_steps=4), fields=twins, progress=False).table) == 2
    few = whence.tune(digits(), x[:8], ways, held_out=0.01, progress=False)
    assert few.score.n == 1


def test_as_many_targets_and_masks_as_samples():
    x, y = digit_samples()
    for wrong in ({"target": y}, {"masks": torch.ones(50, 28, 28), "metrics": ["relevance_mass"]}):
        with pytest.raises(errors.InputError, match="for 10 samples"):
            whence.evaluate(digits(), x[:10], ["lrp"], **({"metrics": ["sparseness"]} | wrong), progress=False)


def test_defaults_fit_other_inputs_than_pictures(tmp_path):
    assert len(whence.compare(linear(), torch.rand(2, 12))) == 5
    text = {"input_ids": torch.randint(1, 20, (6, 5)), "attention_mask": torch.ones(6, 5).long(), "labels": torch.arange(6) % 2}
    found = whence.evaluate(Words().eval(), text, imputer=0, target="label", progress=False)
    assert set(found.better) == {"srg", "sparseness"}
    with pytest.raises(errors.InputError, match="ids have no mean"):
        whence.evaluate(Words().eval(), {k: v for k, v in text.items() if k != "labels"}, progress=False)


def test_what_failed_once_is_tried_again(tmp_path):
    x, fails = torch.rand(3, 12), tmp_path / "fails"
    fails.touch()

    def theirs(model, x, target):
        if fails.exists() and torch.equal(x[-1], last):
            raise OSError("disk full")
        return x

    last = x[-1].clone()
    first = whence.evaluate(linear(), x, {"m": theirs}, ["sparseness"], cache_dir=tmp_path / "k", progress=False)
    assert len(first.failures) == 1
    fails.unlink()
    assert not whence.evaluate(linear(), x, {"m": theirs}, ["sparseness"], cache_dir=tmp_path / "k", progress=False).failures


def test_fingerprints_tell_functions_objects_and_attributes_apart():
    from functools import partial

    class Scaled(nn.Module):
        def __init__(self, k):
            super().__init__()
            self.k = k

        def forward(self, x):
            return x * self.k

    class Callable:
        def __init__(self, k):
            self.k = k

        def __call__(self, x):
            return x * self.k

    def g(x, k=1):
        return x * k

    box = {"k": 1}, {"k": -3}
    pairs = [
        (lambda x: x[:, 3], lambda x: x[:, 5]),
        (partial(g, k=2), partial(g, k=3)),
        (Scaled(1.0), Scaled(-5.0)),
        (Callable(1), Callable(2)),
        (Callable(1).__call__, Callable(2).__call__),
        tuple((lambda x, w=w: x * w["k"]) for w in box),
    ]
    for one, other in pairs:
        assert fingerprint(one) != fingerprint(other)
        assert fingerprint(one) == fingerprint(one)
    assert fingerprint(Scaled(1.0)) == fingerprint(Scaled(1.0))


def test_single_samples_of_an_iterable_are_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.rand(3, 12))

    with pytest.raises(errors.InputError, match="DataLoader"):
        whence.evaluate(linear(), Stream(), ["lrp"], ["sparseness"], progress=False)


# as they come


def test_tuning_as_it_comes_is_no_worse_than_the_default_by_its_own_metric():
    x, y = digit_samples()
    found = whence.tune(digits(), (x, y), progress=False)
    rows = {row["method"]: row["srg"] for row in found.table}
    assert rows[found.name] >= rows["default"]
    assert found.score.n == 25
    assert found.score.low > 2  # chance has 0


def test_a_moved_digit_is_drawn_for_each_method(tmp_path):
    from whence.evaluation.metrics.robustness import translation_figure

    x, _ = digit_samples()
    drawn = translation_figure(digits(), x[3:4], ["lrp", "sensitivity"])
    assert [axis.get_xlabel() for axis in drawn.axes] == ["shift in pixels: lrp", "shift in pixels: sensitivity"]
    lines = drawn.axes[0].get_lines()
    assert len(lines) == 9
    here = whence.explain(digits(), x[3:4]).relevance
    cells = nn.functional.adaptive_avg_pool2d(here, 3).flatten()
    unmoved = torch.tensor([float(line.get_ydata()[10]) for line in lines], dtype=cells.dtype)
    torch.testing.assert_close(unmoved / unmoved.abs().max(), cells / cells.abs().max(), rtol=1e-3, atol=1e-4)
    with pytest.raises(errors.InputError, match="one picture"):
        translation_figure(digits(), x[:2], ["lrp"])


def test_retraining_as_it_comes():
    x, y = digit_samples()

    def train(x, y, seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(15):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        return model.eval()

    rows = roar(train, (x[:40], y[:40]), (x[40:], y[40:]), ["gradient_times_input", "random"])
    assert len(rows) == 10
    assert all(0 <= row["accuracy"][0] <= 1 for row in rows)
