"""Exported programs in ONNX, with decompositions of the backward passes that torch's exporter does not support."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram, default_decompositions

from whence.errors import MissingPackageError, ModelError, first_line
from whence.exporting.signature import signature_names
from whence.graphs.backward_decompositions import DECOMPOSITIONS


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write a program as `.onnx`, with the names of its inputs and outputs.

    Raises `ModelError`, with the name of the operator, if ONNX does not support one.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingPackageError("onnxscript is not installed; pip install 'whence[onnx]'") from None
    decompositions = default_decompositions()
    decompositions.update(DECOMPOSITIONS)
    inputs, outputs = map(list, signature_names(program))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = program.run_decompositions(decompositions)
            made = torch.onnx.export(plain, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    except Exception as error:
        missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
        if missing is None:
            raise ModelError(f"torch cannot export the program to ONNX: {first_line(error)}") from error
        raise ModelError(
            f"ONNX does not support the operator {missing[1]}; deploy the .pt2, or replace that operator"
        ) from None
    assert made is not None
    made.save(path)


def run_with_onnxruntime(program: ExportedProgram, path: Path) -> Callable[..., dict[str, Tensor]] | None:
    """Return an ONNX file as a function, or None if ONNX Runtime is not installed.

    The function raises `ModelError` if ONNX Runtime cannot run the file.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    inputs, outputs = signature_names(program)

    def run(*args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        given = dict(zip(inputs, args, strict=False)) | kwargs
        try:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            found: Any = session.run(None, {name: t.detach().cpu().numpy() for name, t in given.items()})
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):  # on this CPU: the file may be valid on other devices
                raise NotImplementedError(first_line(error)) from error
            raise ModelError(f"ONNX Runtime cannot run the exported program: {first_line(error)}") from error
        return {name: torch.as_tensor(t) for name, t in zip(outputs, found, strict=True)}

    return run
