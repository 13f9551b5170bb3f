"""Attacks by their papers and beside foolbox; robust features in closed form; explanations under attack."""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import whence
from whence.frontends.cli import app


def invoke(*arguments):
    return CliRunner().invoke(app, ["attack", *map(str, arguments)])


def test_attack_with_no_argument_takes_a_bundled_digit(tmp_path):
    done = invoke("--epsilon", 0.15, "--sample", 3, "--out", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    assert "relevance moved" in done.output
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize("by", ["pgd", "fgsm", "mi-fgsm", "deepfool"])
def test_attack_reports_to_scripts(tmp_path, by):
    done = invoke("--attack", by, "--model", "digits-robust", "--json", "--out", tmp_path / "a.png")
    report = json.loads(done.output)
    assert report["model"] == "digits-robust"
    assert report["success"] == [report["samples"][0]["before"] != report["samples"][0]["after"]]


@pytest.mark.parametrize("attack", ["pgd", "mi-fgsm", "deepfool"])
def test_the_number_of_steps_reaches_the_attack(tmp_path, attack, monkeypatch):
    used = []
    monkeypatch.setattr(
        sys.modules["whence.frontends.cli.attack"], "_report", lambda pair, *_: used.append(pair.result.attack.n_steps) or {}
    )
    done = invoke("--attack", attack, "--model", "digits-robust", "--json", "--out", tmp_path / "a.png", "--n-steps", 5)
    assert done.exit_code == 0, done.output
    assert used == [5]


def test_a_label_that_the_model_never_said_is_told(tmp_path):
    done = invoke("--label", 5, "--sample", 0, "--out", tmp_path / "a.png")
    assert "the prediction differs from --label even without an attack" in done.output


ROWS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Linear(5, 3).eval()
"""


def test_rows_of_a_model_that_states_no_bounds_have_none(tmp_path):
    (tmp_path / "rows.py").write_text(ROWS)
    np.save(tmp_path / "rows.npy", 10 * np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32))
    done = invoke(
        tmp_path / "rows.npy", "--model", f"{tmp_path / 'rows.py'}:net", "--epsilon", 9, "--json", "--out", tmp_path / "a.png"
    )
    assert done.exit_code == 0, done.output
    assert [row["largest_change"] for row in json.loads(done.output)["samples"]] == pytest.approx([9, 9], rel=1e-5)


@pytest.mark.slow
def test_experiment_on_the_command_line(tmp_path):
    done = invoke("--experiment", "robust-features", "--out", tmp_path / "e.png")
    assert done.exit_code == 0, done.output
    assert "99.87%" in done.output
    assert (tmp_path / "e.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "foo"], "unknown attack 'foo'"),
        (["--epsilon", "-1"], "expected a finite number of at least 0"),
        (["--attack", "deepfool", "--epsilon", "0.1"], "--epsilon: DeepFool is untargeted"),
        (["--experiment", "robust-features", "--label", "3", "--n-steps", "2"], "remove --label, --n-steps"),
        (["--model", "nowhere.py:net"], "no file"),
        (["--label", "12"], "label 12 is out of range"),
        (["--sample", "3", "--target", "3"], "is its label"),
        (["--experiment", "foo"], "unknown experiment 'foo'"),
        (["x.png", "--experiment", "robust-features"], "its own data"),
        (["--attack", "fgsm", "--n-steps", "3"], "FGSM takes one"),
        (["--attack", "deepfool", "--target", "3"], "DeepFool is untargeted"),
        (["--out", "a.npz"], "npz"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    done = invoke(*arguments)
    assert isinstance(done.exception, whence.errors.WhenceError)
    assert message in str(done.exception)
