"""The command line on poor terminals, full disks and when interrupted: one line, the right exit code, nothing half-written."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import whence
import whence_command
from whence.errors import LoadError
from whence.models.image_files import read_image
from whence.models.preprocessing import Preprocessing
from whence.models.registry import load_model


def run(monkeypatch, capsys, *arguments):
    """Exit code, standard output and error of `whence …` in this process."""
    monkeypatch.setattr(sys, "argv", ["whence", *map(str, arguments)])
    try:
        whence_command.main()
        code = 0
    except SystemExit as ended:
        code = ended.code
    written = capsys.readouterr()
    return code or 0, written.out, written.err


def one_line(text):
    return text.strip() and len(text.strip().splitlines()) == 1


@pytest.fixture
def model_file(tmp_path):
    def write(body):
        path = tmp_path / "nets.py"
        path.write_text(f"import torch, sys\nfrom torch import nn\n{body}\n")
        return f"{path}:make"

    return write


MAKE = "def make(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(2) if 0 else nn.Linear(12, 2))"


def test_version(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--version")
    assert (code, out.strip()) == (0, whence.__version__)


@pytest.mark.parametrize("command", [["explain"], ["attack"], ["models"], ["explain", "--help"]], ids=" ".join)
def test_an_ascii_terminal_of_40_columns(command, tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "40", "TERM": "dumb", "LC_ALL": "C"}
    extra = ["--out", str(tmp_path / "out.png")] if command[0] in ("explain", "attack") and len(command) == 1 else []
    done = subprocess.run(
        [sys.executable, "-m", "whence", *command, *extra], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.isascii()


@pytest.mark.parametrize("out", ["heat.png", "heat.html", "heat.npz", "heat.safetensors"])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_full_disk_leaves_what_was_there(monkeypatch, capsys, tmp_path, out, before):
    def full(self, *args, **kwargs):
        written(Path(self), b"stump")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / out
    if before:
        path.write_bytes(before)
    import matplotlib.figure

    written = Path.write_bytes
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, target, **kw: full(target) if isinstance(target, Path) else target.write(b""),
    )
    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", lambda target, *args, **kwargs: full(target))
    code, _, err = run(monkeypatch, capsys, "explain", "--out", path)
    assert code == 2
    assert one_line(err)
    assert "No space left" in err
    assert [p.name for p in tmp_path.iterdir()] == ([out] if before else [])
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("after", [0.3, 1.2, 2.5])
def test_an_interrupt_at_any_moment_ends_it_quietly(tmp_path, after):
    command = [
        sys.executable,
        "-c",
        "import whence_command; whence_command.main()",
        "prototype",
        "--out",
        "p.png",
        "--n-steps",
        "99999",
    ]
    started = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background would ignore it
    )  # fmt: skip
    try:
        time.sleep(after)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=120)
    finally:
        started.kill()
    assert started.returncode in (1, 130, -signal.SIGINT)
    assert "Traceback" not in err or "whence_command" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("body", ["sys.exit(0)", "def make(): sys.exit(0)"])
def test_a_model_file_that_exits_is_an_error(monkeypatch, capsys, tmp_path, model_file, body):
    np.save(tmp_path / "x.npy", np.zeros((1, 12), dtype=np.float32))
    code, _, err = run(
        monkeypatch, capsys, "explain", tmp_path / "x.npy", "--model", model_file(body), "--out", tmp_path / "h.png"
    )
    assert code == 2
    assert one_line(err)
    assert "SystemExit" in err


def test_published_weights_of_what_has_none(monkeypatch, capsys, model_file):
    for name in ("digits", model_file(MAKE)):
        with pytest.raises(LoadError, match="no published weights"):
            load_model(name, "DEFAULT")
    code, _, err = run(monkeypatch, capsys, "explain", "--weights", "DEFAULT")
    assert code == 2
    assert one_line(err)


def test_nobody_says_whether_a_network_of_a_file_is_trained(model_file, tmp_path):
    name = model_file(MAKE)
    assert load_model(name).trained is None
    torch.save(load_model(name).model.state_dict(), tmp_path / "w.pt")
    assert load_model(name, tmp_path / "w.pt").trained is True


def test_arrays_are_read_in_the_precision_of_the_model(monkeypatch, capsys, tmp_path, model_file):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(2, 12)))
    code, _, err = run(
        monkeypatch, capsys, "explain", tmp_path / "x.npy", "--model", model_file(MAKE), "--out", tmp_path / "h.png"
    )
    assert code == 0, err
    assert "random weights" not in err


def test_equal_targets_are_refused(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "explain", "--target", 3, "--rather-than", 3)
    assert code == 2
    assert "expected two different classes" in err


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_greys_are_scaled_not_clipped(tmp_path, mode):
    grey = np.linspace(0, 255, 28 * 28).round().reshape(28, 28)
    deep = {"I;16": (grey * 257).astype(np.uint16), "I": (grey * 257).astype(np.int32), "F": (grey / 255).astype(np.float32)}[
        mode
    ]
    path = tmp_path / ("x.png" if mode == "I;16" else "x.tiff")
    Image.fromarray(deep).save(path)
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "plain.png")
    reader = Preprocessing((28, 28), channels=1)
    assert read_image(path).mode.startswith(("I", "F"))
    assert torch.allclose(reader.read(path), reader.read(tmp_path / "plain.png"), atol=1e-6)


def test_greys_of_no_known_scale_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 1e6, dtype=np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(LoadError, match="grey values from 1e"):
        Preprocessing((8, 8), channels=1).read(tmp_path / "x.tiff")


def test_windows_that_fill_an_axis_have_no_stride_there():
    model = lambda x: x.flatten(1).sum(1)[:, None]  # noqa: E731
    e = whence.explain(model, torch.rand(1, 3, 64, 64), 0, method=whence.Occlusion((3, 32, 32), strides=16))
    assert e.relevance.shape == (1, 3, 64, 64)


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    from whence.models import hugging_face

    def unreachable(address, timeout):
        raise OSError("no network")

    monkeypatch.setattr(hugging_face.socket, "create_connection", unreachable)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    asked = []

    class Config:
        @staticmethod
        def from_pretrained(name, **where):
            asked.append(where)
            raise OSError("not cached")

    import types

    quiet = types.SimpleNamespace(
        get_verbosity=lambda: 0, is_progress_bar_enabled=lambda: False, set_verbosity_error=lambda: None,
        disable_progress_bar=lambda: None, set_verbosity=lambda v: None, enable_progress_bar=lambda: None,
    )  # fmt: skip
    library = types.SimpleNamespace(AutoConfig=Config, utils=types.SimpleNamespace(logging=quiet))
    with pytest.raises(LoadError, match="not cached; check the name and connection, or pass a folder"):
        hugging_face.load(library, "nobody/nothing")
    assert asked == [{"local_files_only": True}]


@pytest.mark.parametrize("width", [80, 12])
def test_words_in_brackets_are_words(width):
    from io import StringIO

    from rich.console import Console

    from whence.frontends.common.terminal import print_table

    console = Console(file=StringIO(), width=width)
    print_table(console, ("target", "output"), [("[/INST]", "1"), ("[unk]", "2")], "a[b].jpg")
    assert all(word in console.file.getvalue() for word in ("[/INST]", "[unk]", "a[b].jpg"))


def test_an_objective_that_moves_with_nothing_is_said():
    with pytest.raises(whence.errors.ModelError, match="does not depend on the input"):
        whence.prototype(lambda x: torch.zeros(len(x), 3), 0, shape=(4,), n_steps=10)
