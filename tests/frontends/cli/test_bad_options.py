"""Each first error of a user: one clear line of the library's own hierarchy that says what to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def whence_command(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "whence", *args], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("explain", "none.jpg"), "no file none.jpg"),
        (("explain", "text.jpg"), "not an image"),
        (("explain", "--target", "10"), "classes 0 to 9"),
        (("explain", "--sample", "99"), "out of range"),
        (("explain", "--method", "gradcom"), "unknown method 'gradcom'"),
        (("explain", "--rules", "gamma"), "choose from attn_lrp"),
        (("explain", "--method", "saliency"), "'sensitivity' is its square"),
        (("explain", "--method", "epsilon_plus", "--rules", "deep_taylor"), "--rules deep_taylor cannot be combined with"),
        (("explain", "--method", "sensitivity", "--rules", "epsilon_plus"), "cannot be combined with --method sensitivity"),
        (("explain", "--rules", "vgg16_falling_gamma"), "'features.0' matched no linear map"),
        (("explain", "--model", "nothing"), "unknown model 'nothing'"),
        (("explain", "--model", "fine.py:make"), "nothing to explain"),
        (("explain", "--out", "heat.gif"), "must be one of .png"),
        (("explain", "--out", "nowhere/heat.png"), "no folder nowhere"),
        (("explain", "--weights", "text.jpg"), "weights must be"),
        (("explain", "bytes.npy", "--model", "fine.py:make"), "floating-point tensors"),
        (("explain", "text.npy", "--model", "fine.py:make"), "not a readable .npy"),
    ],
)
def test_command_line(tmp_path, args, message):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "bytes.npy", np.zeros((1, 2), np.uint8))
    (tmp_path / "fine.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)")
    done = whence_command(*args, cwd=tmp_path)
    assert done.returncode == 2, done
    assert message in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert "Traceback" not in done.stderr
