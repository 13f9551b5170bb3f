"""Files of exported programs."""

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from whence.core.argument_checks import check_arguments
from whence.core.fingerprints import fingerprint
from whence.core.trees import short_repr
from whence.errors import InputError, LoadError, ModelError, first_line

METADATA_FILE = "whence.json"  # in a .pt2: the method, and a fingerprint of the model
SUFFIXES = (".pt2", ".onnx")


def check_writable(path: Path, compiled: bool) -> None:
    """Raise `InputError` if a program cannot be written to this path."""
    suffixes = SUFFIXES[:1] if compiled else SUFFIXES
    if path.suffix not in suffixes:
        raise InputError(f"{path}: {'a compiled program' if compiled else 'a program'} is written to {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent}; create it before writing {path.name}")


def write_program(program: ExportedProgram, path: Path, model: Any, method: Any, compiled: bool) -> None:
    about = json.dumps({"method": short_repr(method), "fingerprint": fingerprint(model)})
    if path.suffix == ".onnx":
        from whence.exporting.onnx import write_onnx

        write_onnx(program, path)
        return
    if compiled:
        _write_compiled(program, path)
    else:
        serialised = BytesIO()  # torch ends the process if it writes to a full disk
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about weights that share memory
            torch.export.save(program, serialised)
        path.write_bytes(serialised.getbuffer())
    with zipfile.ZipFile(path, "a") as package:
        folder = package.namelist()[0].split("/")[0]
        package.writestr(f"{folder}/extra/{METADATA_FILE}", about)


def load_translated(program: ExportedProgram, path: Path, compiled: bool) -> Callable[..., dict[str, Tensor]] | None:
    """Return the compiled or ONNX form of the program as a function; None if there is none, or if it cannot run here."""
    if compiled:
        return torch._inductor.aoti_load_package(str(path.resolve()))
    if path.suffix == ".pt2":
        return None
    from whence.exporting.onnx import run_with_onnxruntime

    return run_with_onnxruntime(program, path)


@check_arguments
def check_exported(path: str | Path, model: Any) -> None:
    """Raise if the model is not the one that a `.pt2` was exported from: its weights, structure or settings have changed.

    >>> whence.check_exported("explainer.pt2", model)

    Args:
        path: A `.pt2` file written by `whence.export`.
        model: The model to compare with.
    Raises:
        ModelError: The model has changed since the export.
        LoadError: The file is not a `.pt2` written by `whence.export`.
    """
    try:
        with zipfile.ZipFile(path) as package:
            kept = next(name for name in [*package.namelist(), METADATA_FILE] if name.endswith(METADATA_FILE))
            before = json.loads(package.read(kept))["fingerprint"]
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise LoadError(f"{path} is not a .pt2 file exported by whence: {first_line(error)}") from error
    if before != fingerprint(model):
        raise ModelError(f"the model has changed since {path} was exported; export it again")


def _write_compiled(program: ExportedProgram, path: Path) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise InputError("AOT Inductor needs a C++ compiler on this machine; install one, or pass compiled=False")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path.resolve()))
        except Exception as error:
            raise ModelError(f"AOT Inductor cannot compile the program: {first_line(error)}") from error
