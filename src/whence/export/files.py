"""Exported programs as files."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from whence.errors import InputError
from whence.fingerprints import fingerprint
from whence.nests import described

ABOUT = "whence.json"


def write_program(program: ExportedProgram, path: Path, model: Any, method: Any) -> None:
    if path.suffix == ".pt2":
        about = {"method": described(method), "fingerprint": fingerprint(model)}
        torch.export.save(program, path, extra_files={ABOUT: json.dumps(about)})
    elif path.suffix == ".onnx":
        from whence.export.onnx import write_onnx

        write_onnx(program, path)
    else:
        raise InputError(f"{path}: a program is written to .pt2 or .onnx")
