"""Exported programs as files."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from whence.errors import InputError, LoadError, ModelError, first_line
from whence.fingerprints import fingerprint
from whence.nests import described

ABOUT = "whence.json"  # in a .pt2: the method, and a fingerprint of the model
SUFFIXES = (".pt2", ".onnx")


def check_writable(path: Path, compiled: bool) -> None:
    """Raise for files that no program is written to."""
    suffixes = SUFFIXES[:1] if compiled else SUFFIXES
    if path.suffix not in suffixes:
        raise InputError(f"{path}: {'a compiled program' if compiled else 'a program'} is written to {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent}")


def write_program(program: ExportedProgram, path: Path, model: Any, method: Any, compiled: bool) -> None:
    if compiled:
        _write_compiled(program, path)
    elif path.suffix == ".onnx":
        from whence.export.onnx import write_onnx

        write_onnx(program, path)
    else:
        about = {"method": described(method), "fingerprint": fingerprint(model)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that share memory
            torch.export.save(program, path, extra_files={ABOUT: json.dumps(about)})


def check_exported(path: str | Path, model: Any) -> None:
    """Raise where the model is not the one that a `.pt2` was exported from: its weights, structure or settings changed since.

    >>> whence.check_exported("explainer.pt2", model)

    Raises `ModelError` then, `LoadError` for files that `whence.export` did not write.
    """
    files = {ABOUT: ""}
    try:
        torch.export.load(path, extra_files=files)
        about = json.loads(files[ABOUT])
    except Exception as error:
        raise LoadError(f"{path} is no program that whence exported: {first_line(error)}") from error
    if about["fingerprint"] != fingerprint(model):
        raise ModelError(f"the model changed since {path} was exported from it; export it anew")


def _write_compiled(program: ExportedProgram, path: Path) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise InputError("AOT Inductor needs a C++ compiler on this machine; install one, or leave compiled out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(path.resolve()))
        except Exception as error:
            raise ModelError(f"AOT Inductor cannot compile the program: {first_line(error)}") from error
