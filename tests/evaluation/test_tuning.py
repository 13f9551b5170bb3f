"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.evaluation.evaluation_batch import MethodAdapter
from whence.evaluation.random_baseline import Random
from whence.lrp.engine.prepared_model import PreparedModel

SIDE = 6


def cnn(seed=0, channels=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5)
    ).eval()  # fmt: skip


def linear(n=12):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, 3, bias=False)).eval()


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
        ({"fields": {"n_steps": [1]}}, "varies a single method; pass one, as in tune"),
        ({"metric": "sparseness"}, "neither higher nor lower values of sparseness are better"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"candidates": {"a": whence.LRP()}, "bounds": (0, 1)}, "bounds= applies to the default candidates"),
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


def test_the_winner_is_compared_with_the_default_on_samples_that_chose_nothing():
    model, x = linear(), torch.rand(40, 12)
    noise = {f"noise {i}": Random(seed=i) for i in range(4)}
    better = whence.tune(model, x, {**noise, "mine": whence.GradientTimesInput()}, imputer=0.0, progress=False)
    assert not better.better_than_default  # of a linear model, the default is the same
    assert better.gain.mean == pytest.approx(0, abs=1e-6)
    assert "no better than the default there" in repr(better)
    worse = whence.tune(model, x, noise, imputer=0.0, progress=False)
    assert worse.gain.high < 0
    itself = whence.tune(model, x, {"default": whence.LRP(), **noise}, imputer=0.0, progress=False)
    assert itself.gain is None
    assert "is the default itself" in repr(itself)


def test_candidates_vary_the_default():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2),
    ).eval()  # fmt: skip
    x = torch.rand(6, 3, 8, 8)
    sets = whence.experiments.rule_sets(model, x[:1], bounds=(0.0, 1.0))
    names = {"flat input, default", "w² input, default", "z^B, default", "γ input, default", "z⁺ below, default"}
    assert names <= sets.keys()
    for name in (*names, "flat input, z⁺ below, default", "flat input, step 1", "γ input, step 0.3"):
        e = whence.explain(model, x, 0, method=sets[name])
        assert e.conservation.error.max() < 1e-4, name
    found = whence.tune(model, x, bounds=(0.0, 1.0), progress=False)
    assert "expected gradients" in {row["method"] for row in found.table}
