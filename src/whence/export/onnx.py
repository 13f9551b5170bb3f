"""Exported programs in ONNX, with a form for what torch's exporter has none for: the ways back through linear functions."""

import re
import warnings
from pathlib import Path

import torch
from torch.export import ExportedProgram, default_decompositions

from whence.errors import MissingPackageError, ModelError, first_line
from whence.export.forms import FORMS
from whence.export.signature import names


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write `.onnx`, its inputs and outputs named as the program's are.

    Raises `ModelError` for an operator that has no form in ONNX, by its name.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingPackageError("onnxscript is not installed; pip install 'whence[onnx]'") from None
    decompositions = default_decompositions()
    decompositions.update(FORMS)
    inputs, outputs = map(list, names(program))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = program.run_decompositions(decompositions)
            made = torch.onnx.export(plain, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    except Exception as error:
        missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
        if missing is None:
            raise ModelError(f"torch cannot write the program in ONNX: {first_line(error)}") from error
        raise ModelError(
            f"ONNX has no form for the operator {missing[1]}; serve the .pt2, or write that part otherwise"
        ) from None
    assert made is not None
    made.save(path)
