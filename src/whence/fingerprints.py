"""What a computation depends on, in one word: the same settings, weights and data have the same fingerprint."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def fingerprint(*things: Any) -> str:
    """Sixteen letters that differ where any of the things does, their numbers included.

    >>> fingerprint(whence.LRP(), torch.ones(2)) == fingerprint(whence.LRP(), torch.ones(2))
    True

    Of modules it reads weights and structure, of dataclasses their fields, of functions their code and what they close over,
    but for lists, dicts and sets, which functions fill.
    """
    made = sha256()
    for thing in things:
        _add(made, thing)
    return made.hexdigest()[:16]


def _add(made: Any, thing: Any) -> None:
    made.update(f"{type(thing).__qualname__}(".encode())
    if isinstance(thing, Tensor | np.ndarray):
        _add_numbers(made, torch.as_tensor(thing))
    elif isinstance(thing, nn.Module):
        made.update(str(thing).encode())
        for name, tensor in thing.state_dict().items():
            made.update(name.encode())
            _add(made, tensor)
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            _add(made, key)
            _add(made, value)
    elif isinstance(thing, list | tuple | set | frozenset):
        for value in thing:
            _add(made, value)
    elif is_dataclass(thing) and not isinstance(thing, type):
        for field in fields(thing):
            _add(made, getattr(thing, field.name))
    elif isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        closed = [value for value in cells if not isinstance(value, list | dict | set)]
        made.update(thing.__code__.co_code)
        for value in (thing.__qualname__, thing.__code__.co_names, thing.__defaults__, *closed):
            _add(made, value)
    elif isinstance(thing, type):
        made.update(thing.__qualname__.encode())
    else:
        made.update(_words(thing).encode())
    made.update(b")")


def _add_numbers(made: Any, tensor: Tensor) -> None:
    made.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    made.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _words(thing: Any) -> str:
    """Of what is neither: its words, without where it lies in memory."""
    words = repr(thing)
    return type(thing).__module__ if " at 0x" in words else words
