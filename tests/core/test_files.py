"""Files are written aside and renamed: whatever goes wrong is one clear error, and what was there stays."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.core.files import atomic_write

LIMITED = """
import resource, signal, sys
import torch
import whence

model, (x, y) = whence.load_model("digits").model, (torch.rand(300, 1, 28, 28), torch.zeros(300, dtype=torch.long))
store = whence.explain_dataset(model, (x, y), sys.argv[1] + "/store", progress=False)
from whence.stores.exporters import export_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
try:
    export_store(store, sys.argv[2])
except whence.errors.WhenceError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", [".h5", ".parquet"])
def test_an_export_on_a_full_disk_is_one_error_and_leaves_the_old_file(tmp_path, suffix):
    pytest.importorskip("h5py" if suffix == ".h5" else "pyarrow")
    out = tmp_path / f"out{suffix}"
    out.write_bytes(b"what was there")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, tmp_path, out], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-600:]
    assert f"{out} cannot be written" in done.stdout
    assert "File too large" in done.stdout
    assert out.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "store"]


def test_a_figure_on_a_full_disk_is_one_error(tmp_path, monkeypatch):
    e = whence.explain(nn.Linear(3, 2).eval(), torch.rand(1, 3), 0)

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for suffix in ("pdf", "png", "svg", "jpg"):
        with pytest.raises(errors.WhenceError, match="cannot be written: No space left on device"):
            e.save(tmp_path / f"heat.{suffix}")


def test_a_read_only_file_system_is_one_error(tmp_path, monkeypatch):
    def refused(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    e = whence.explain(nn.Linear(3, 2).eval(), torch.rand(1, 3), 0)
    for name in ("write_bytes", "unlink"):
        monkeypatch.setattr(Path, name, refused)
    with pytest.raises(errors.WhenceError, match=r"e.safetensors cannot be written: Read-only file system"):
        e.save(tmp_path / "e.safetensors")


def test_links_stay_links_and_long_names_are_names(tmp_path):
    e = whence.explain(nn.Linear(3, 2).eval(), torch.rand(1, 3), 0)
    (tmp_path / "there").mkdir()
    (tmp_path / "link.npz").symlink_to(tmp_path / "there" / "real.npz")
    for path in (tmp_path / "link.npz", tmp_path / f"{'x' * 245}.npz"):
        e.save(path)
        assert torch.equal(whence.load(path).relevance, e.relevance)
    assert (tmp_path / "link.npz").is_symlink()
    with pytest.raises(errors.WhenceError, match="cannot be written: File name too long"):
        e.save(tmp_path / f"{'x' * 300}.npz")
    with pytest.raises(errors.WhenceError, match="paths cannot contain NUL"):
        e.save(tmp_path / "a\0b.npz")
    with pytest.raises(errors.LoadError):
        whence.load(tmp_path / f"{'x' * 300}.npz")


def test_a_failed_write_leaves_nothing_aside(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    writing = atomic_write(path)
    writing.__enter__().write_text("new")
    with pytest.raises(KeyboardInterrupt):
        writing.gen.throw(KeyboardInterrupt())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
