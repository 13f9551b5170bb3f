"""whence bench: the command line accepts what bench() does, and says what it does not accept."""

import json

import pytest
from typer.testing import CliRunner

import support.torchvision_operators  # noqa: F401
from whence import errors
from whence.frontends.cli import app


def bench(tmp_path, *arguments):
    more = ["--suites", "hand_made", "--no-peers", "--samples", "5", "--cache-dir", str(tmp_path / "cache")]
    return CliRunner().invoke(app, ["bench", *more, "--out", str(tmp_path / "bench.html"), *arguments])


def test_a_report_is_written_and_the_table_printed(tmp_path):
    done = bench(tmp_path, "--methods", "lrp,lrp_from_mean,epsilon_plus,random,edge filter", "--json")
    assert done.exit_code == 0, done.stderr
    table = json.loads(done.stdout)["table"]
    assert {row["method"] for row in table} == {"lrp", "lrp_from_mean", "epsilon_plus", "random"}
    assert {row["n_samples"] for row in table} == {5}
    page = (tmp_path / "bench.html").read_text()
    assert "cells explained" in page
    assert "red: worse than random" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "lpr"], "unknown method 'lpr'; did you mean 'lrp'"),
        (["--suites", "hand"], "unknown suite 'hand'"),
        (["--n-samples", "3"], "n_samples=3; expected an int of at least 5"),
        (["--cache-dir", __file__], "cannot be used as a folder"),
    ],
)
def test_wrong_arguments_are_errors_of_whence(tmp_path, arguments, message):
    done = bench(tmp_path, *arguments)
    assert isinstance(done.exception, errors.WhenceError)  # which the command line prints in one line
    assert message in str(done.exception)
