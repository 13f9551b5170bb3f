"""Texts of the command line: files, standard input, or the argument itself."""

import sys
from pathlib import Path

from whence.errors import InputError, missing_path

STANDARD_INPUT = "-"
SUFFIXES = (".txt", ".md")


def read_text_file(path: Path) -> str:
    """Return the text of a file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8") from error


def read_text(given: str) -> str:
    """Return the text of a .txt or .md file, that of standard input for "-", or the argument as it is."""
    if given == STANDARD_INPUT:
        return sys.stdin.read()
    path = Path(given)
    if path.suffix not in SUFFIXES or len(given.split()) > 1:
        return given
    if not path.is_file():
        raise InputError(f"{missing_path(path)}; pass a text, a .txt or .md file, or - for standard input")
    return read_text_file(path)
